"""This package, plain PyTorch and the machine's limit, in turn, in one run.

    pip install -e '.[bench]'
    python -m experiments.benchmarks.compare --output=results.json

Each measurement is a process of its own; package, PyTorch and limit take turns
`--repeats` times, so that all see the machine at its fast and slow moments. Prints a
Markdown table: medians over all iterations of all turns, and their range.
"""

import argparse
import itertools
import json
import pathlib
import platform
import statistics
import subprocess
import sys

from experiments.benchmarks.cases import CASES, gigaflop

ROOT = pathlib.Path(__file__).parents[2]
POLICIES = ("float32", "mixed_bfloat16")
RECOMPUTED = ["--option=recompute_teachers=true", "--iterations=3"]
PROGRAMS = {
    "ours": ("engine_loop", []),
    "ours, recomputed": ("engine_loop", RECOMPUTED),
    "pytorch": ("pytorch_loop", []),
    "pytorch, compiled": ("pytorch_loop", ["--compile"]),
}


def run(module: str, *arguments: str) -> dict:
    """What one process measured."""
    command = [sys.executable, "-m", f"experiments.benchmarks.{module}", *arguments]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(f"{' '.join(command)} failed:\n{done.stderr[-2000:]}")
    return json.loads(done.stdout.splitlines()[-1])


def measure(cases: list[str], policies: list[str], repeats: int):
    """All turns: `(case, policy, program) -> list of measurements`, and limits."""
    turns, limits = {}, []
    for turn in range(repeats):
        limits.append(run("limit"))
        for row in itertools.product(cases, policies, PROGRAMS):
            case, policy, program = row
            if program == "ours, recomputed" and policy != "float32":
                continue
            module, options = PROGRAMS[program]
            measured = run(module, f"--case={case}", f"--policy={policy}", *options)
            turns.setdefault(row, []).append(measured)
            median = statistics.median(measured["seconds"])
            print(turn, *row, f"{median:.3f} s", file=sys.stderr, flush=True)
    return turns, limits


def summarise(turns: dict, limits: list[dict]) -> list[dict]:
    """One row per case, policy and program."""
    rows = []
    for (case, policy, program), measured in turns.items():
        seconds = [s for one in measured for s in one["seconds"]]
        median = statistics.median(seconds)
        dtype = policy.removeprefix("mixed_")
        limit = statistics.median(one[dtype] for one in limits)
        images = CASES[case].batch_size * (CASES[case].student_steps + 1)
        rows.append(
            {
                "case": case,
                "policy": policy,
                "program": program,
                "seconds": median,
                "range": [min(seconds), max(seconds)],
                "images_per_second": images / median,
                "gigaflop": gigaflop(CASES[case]),
                "share_of_limit": gigaflop(CASES[case]) / median / limit,
                **{
                    name: statistics.median(one[name] for one in measured)
                    for name in ("imported_megabytes", "peak_megabytes", "first_step")
                },
            }
        )
    return rows


def table(rows: list[dict]) -> str:
    """The rows in Markdown."""
    lines = [
        "| case | arithmetic | | s per iteration | images per s | of the limit "
        "| imports MB | peak MB | first step, s | times as fast |",
        "|---|---|---|---|---|---|---|---|---|---|",
    ]
    plain = {
        row["case"]: row["seconds"]
        for row in rows
        if row["program"] == "pytorch" and row["policy"] == "float32"
    }
    for row in rows:
        ratio = plain.get(row["case"], float("nan")) / row["seconds"]
        low, high = row["range"]
        arithmetic = row["policy"].removeprefix("mixed_")
        lines.append(
            f"| {row['case']} | {arithmetic} | {row['program']} "
            f"| {row['seconds']:.3f} ({low:.3f} to {high:.3f}) "
            f"| {row['images_per_second']:.0f} | {row['share_of_limit']:.2f} "
            f"| {row['imported_megabytes']:.0f} | {row['peak_megabytes']:.0f} "
            f"| {row['first_step']:.1f} | {ratio:.2f} |"
        )
    return "\n".join(lines)


def main() -> None:
    """Measures, prints the table, writes JSON."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--cases", default=",".join(CASES))
    parser.add_argument("--policies", default=",".join(POLICIES))
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--output", help="JSON file")
    arguments = parser.parse_args()
    cases, policies = arguments.cases.split(","), arguments.policies.split(",")
    turns, limits = measure(cases, policies, arguments.repeats)
    rows = summarise(turns, limits)
    print("matrix products, GFLOP/s:", limits)
    print(table(rows))
    if arguments.output:
        machine = {"processor": platform.processor(), "python": sys.version.split()[0]}
        every = [
            {"case": case, "policy": policy, "program": program, "turns": measured}
            for (case, policy, program), measured in turns.items()
        ]
        record = {"rows": rows, "limits": limits, "machine": machine, "all": every}
        pathlib.Path(arguments.output).write_text(json.dumps(record, indent=1) + "\n")


if __name__ == "__main__":
    main()
