"""Runs one flagfile with several seeds and prints mean and deviation.

    python experiments/repeat.py --flagfile=experiments/digits/quickstart.flags
    python experiments/repeat.py --flagfile=... --seeds=0,1 -- --epochs=3

Each seed has a folder of its own beside the flagfile's workdir, and trains its own
teachers; finished ones are not repeated. Flags behind `--` go to every run.
"""

import argparse
import json
import pathlib
import statistics
import subprocess
import sys
from typing import Any

ROOT = pathlib.Path(__file__).parent.parent


def main() -> None:
    """Runs all seeds, one after another, and prints the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--flagfile", required=True)
    parser.add_argument("--seeds", default="0,1,2,3,4")
    parser.add_argument("--workdir", default="runs/repeat")
    parser.add_argument("--output", help="JSON file for the table")
    parser.add_argument("more", nargs="*", help="flags for every run, behind --")
    arguments = parser.parse_args()
    seeds = [int(seed) for seed in arguments.seeds.split(",")]
    name = pathlib.Path(arguments.flagfile).stem
    results = []
    for seed in seeds:
        workdir = pathlib.Path(arguments.workdir) / f"{name}-seed{seed}"
        command = [sys.executable, str(ROOT / "main.py")]
        command += [f"--flagfile={arguments.flagfile}", *arguments.more]
        command += [f"--seed={seed}", f"--workdir={workdir}"]
        code = subprocess.run(command).returncode
        if code:  # the run has printed its error
            raise SystemExit(code)
        results.append(json.loads((workdir / "results.json").read_text()))
    rows = table(results)
    print(f"\nSeeds {arguments.seeds}: mean, standard deviation, each")
    for row in rows:
        values = " ".join(f"{value:.4g}" for value in row["values"])
        print(f"{row['name']:34}{row['mean']:12.4f}{row['deviation']:10.4f}   {values}")
    if arguments.output:
        record = {"seeds": seeds, "rows": rows, "versions": results[0]["versions"]}
        pathlib.Path(arguments.output).write_text(json.dumps(record, indent=1) + "\n")


def table(results: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """One row per measured number: name, mean, sample deviation, values."""
    columns: dict[str, list[float]] = {}
    for result in results:
        for name, value in numbers_of(result).items():
            columns.setdefault(name, []).append(value)
    return [
        {
            "name": name,
            "mean": statistics.fmean(values),
            "deviation": statistics.stdev(values) if len(values) > 1 else 0.0,
            "values": values,
        }
        for name, values in columns.items()
    ]


def numbers_of(result: dict[str, Any]) -> dict[str, float]:
    """The numbers of one results.json that are worth a row, if they were measured."""
    teachers = [teacher["accuracy"] for teacher in result["teachers"]]
    numbers = {
        "teacher accuracy, mean of them": statistics.fmean(teachers),
        "ensemble accuracy": result["teacher_ensemble"]["accuracy"],
        "ensemble parameters": result["teacher_ensemble"]["parameters"],
        "student accuracy, mean of headers": result["student"]["accuracy"],
        "student parameters": result["student"]["parameters"],
        "student agreement with ensemble": result["student"]["agreement"],
        f"accuracy, {result['aggregator']['kind']}": result["aggregator"]["accuracy"],
    }
    for entry in result["exports"]:
        for key in ("accuracy", "agreement", "bytes", "latency_ms"):
            numbers[f"{entry['format']} {key}"] = entry[key]
    for step, seconds in result["seconds"].items():
        numbers[f"seconds, {step}"] = seconds
    return {name: value for name, value in numbers.items() if value is not None}


if __name__ == "__main__":
    main()
