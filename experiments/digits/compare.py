"""All methods, their ablations and all aggregators on the digits, same teachers.

python experiments/digits/compare.py --seeds=0,1,2,3,4

Each seed trains five teachers; every row learns from them (the first three by default)
with the same number of student updates. Finished seeds are not repeated. Writes
compare.json and compare.png beside this file. One thread per process, so that the same
seed gives the same numbers on any number of cores; start it twice with other seeds to
use two.
"""

import argparse
import csv
import json
import os
import pathlib
import statistics
import sys

os.environ["TF_NUM_INTRAOP_THREADS"] = os.environ["TF_NUM_INTEROP_THREADS"] = "1"
HERE = pathlib.Path(__file__).parent
ROOT = HERE.parent.parent
sys.path.insert(0, str(ROOT))

from comparison_table import MAIN_ROW, as_text, plot, signals, table  # noqa: E402

FLAGFILE = HERE / "compare.flags"
NUM_TEACHERS = 5
# Row -> number of teachers, flags. Learning rates were chosen per method on held-out
# training images, see experiments/README.md.
CDFKD = [
    "--method=cdfkd",
    "--student_learning_rate=0.2",
    "--nonesterov",
    "--schedule=steps",
    "--milestones=8,11",
    "--generator_beta1=0.9",
    "--generator_schedule=constant",
]
ROWS = {
    "kd, real data": (3, ["--method=kd", "--student_learning_rate=0.05"]),
    "dfad": (3, ["--method=dfad"]),
    "dfad, one teacher": (1, ["--method=dfad"]),
    "dfq": (3, ["--method=dfq", "--student_learning_rate=0.2"]),
    "dfed": (3, ["--method=dfed"]),
    "dfed, wider student": (3, ["--method=dfed", "--student_width=0.85"]),
    "cdfkd": (3, CDFKD),
    "cdfkd_mfs": (3, []),
    "cdfkd_mfs, no feature term": (3, ["--student_loss=feature=0"]),
    "cdfkd_mfs, no ensemble term": (3, ["--student_loss=ensemble=0"]),
    "cdfkd_mfs, no bn term": (3, ["--generator_loss=bn=0"]),
    "cdfkd_mfs, split headers": (3, ["--student_headers=split"]),
    "cdfkd_mfs, 1 teacher": (1, []),
    "cdfkd_mfs, 2 teachers": (2, []),
    "cdfkd_mfs, 4 teachers": (4, []),
    "cdfkd_mfs, 5 teachers": (5, []),
}
AGGREGATORS = {
    "weights": "weights",
    "attention": "attention",
    "feature_attention": "feature_attention",
    "header fine-tuning": "header_tuning",  # the control
}
LABELLED_SAMPLES = (0, 10, 50, 143)


def main() -> None:
    """Runs the seeds that are missing, then writes table, JSON and plot."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seeds", default="0,1,2,3,4")
    parser.add_argument("--workdir", default=str(ROOT / "runs/digits/compare"))
    parser.add_argument("--output", default=str(HERE / "compare"))
    parser.add_argument("more", nargs="*", help="flags for every run, behind --")
    arguments = parser.parse_args()
    seeds = [int(seed) for seed in arguments.seeds.split(",")]
    results = {}
    for seed in seeds:
        workdir = pathlib.Path(arguments.workdir) / f"seed{seed}"
        file = workdir / "compare.json"
        if not file.exists():
            found = run_seed(seed, workdir, arguments.more)
            file.write_text(json.dumps(found, indent=1) + "\n")
        results[seed] = json.loads(file.read_text())
    report = {
        "command": f"python experiments/digits/compare.py --seeds={arguments.seeds}",
        "rows": table(list(results.values())),
        "signals": signals(list(results.values())),
        "seeds": results,
    }
    pathlib.Path(arguments.output + ".json").write_text(json.dumps(report) + "\n")
    print(as_text(report))
    plot(report["rows"], pathlib.Path(arguments.output + ".png"))


def run_seed(seed: int, workdir: pathlib.Path, more: list[str]) -> dict:
    """Every row of one seed: `accuracy`, `parameters`, `seconds`, `history`."""
    teachers = workdir / "teachers"
    shared = [f"--seed={seed}", *more]
    action(teachers, "train_teachers", f"--num_teachers={NUM_TEACHERS}", *shared)
    rows = {}
    for name, (count, flags) in ROWS.items():
        files = [teachers / f"teachers/teacher_{index}.keras" for index in range(count)]
        given = f"--teachers={','.join(map(str, files))}"
        folder = workdir / name.replace(", ", "-").replace(" ", "_")
        action(folder, "pipeline", given, *shared, *flags)
        result = json.loads((folder / "results.json").read_text())
        rows[name] = {
            "accuracy": result["student"]["accuracy"],
            "agreement": result["student"]["agreement"],
            "parameters": result["student"]["parameters"],
            "seconds": result["seconds"]["distill"],
            "history": history(folder / "history.csv"),
        }
        if name == MAIN_ROW:
            measured = result
            rows |= aggregator_rows(folder, [given, *shared, *flags])
    return {**teacher_rows(measured), **rows}


def action(workdir: pathlib.Path, name: str, *flags: str) -> None:
    """One action of main.py in this process.

    Raises:
        SystemExit: with its exit code, if that is not 0.
    """
    import keras
    from absl import flags as absl_flags

    from cdfkd_tf import cli

    keras.backend.clear_session()
    arguments = [f"--flagfile={FLAGFILE}", f"--workdir={workdir}", f"--action={name}"]
    code = cli.main(["main.py", *arguments, *flags], absl_flags.FlagValues())
    if code:
        raise SystemExit(code)


def teacher_rows(result: dict) -> dict:
    one = result["teachers"]
    single = {
        "accuracy": statistics.fmean(teacher["accuracy"] for teacher in one),
        "parameters": one[0]["parameters"],
    }
    seconds = {"seconds": None}
    return {
        "one teacher": {**single, **seconds},
        "ensemble of three": {**result["teacher_ensemble"], **seconds},
    }


def aggregator_rows(folder: pathlib.Path, flags: list[str]) -> dict:
    """The main row's student with each aggregator and number of labelled samples."""
    rows = {}
    for count in LABELLED_SAMPLES:
        samples = f"--labelled_samples={count}"
        for name, kind in AGGREGATORS.items():
            wanted = [f"--aggregator={kind}", samples, *flags]
            action(folder, "fit_aggregator", *wanted)
            action(folder, "evaluate", *wanted)
            result = json.loads((folder / "results.json").read_text())
            rows[f"cdfkd_mfs + {name}, {count} real"] = {
                "accuracy": result["aggregator"]["accuracy"],
                "learned": result["aggregator"]["learned"],
                "parameters": result["student"]["parameters"],
                "seconds": result["seconds"]["fit_aggregator"],
            }
    return rows


def history(file: pathlib.Path) -> dict[str, list[float]]:
    """Accuracy and the data-free signals after every epoch."""
    with file.open(newline="") as lines:
        rows = list(csv.DictReader(lines))
    names = ("val_accuracy", "agreement", "agreement_earlier")
    return {
        name: [float(row[name]) for row in rows] for name in names if name in rows[0]
    }


if __name__ == "__main__":
    main()
