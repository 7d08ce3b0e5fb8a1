"""One header per teacher against a single header that learns their mean.

python experiments/better_images/headers.py --data_dir=FOLDER --seeds=0,1,2,3,4

Both students learn from the same images of compare.py's three teachers, in the same
order, with equally many updates; the single-header student has the width that brings
its weights nearest to the other's. Paired over seeds: t of the mean difference in
accuracy. What is in headers.json is not done again. Writes it and headers.md into
--output.
"""

import argparse

import numpy as np
from compare import (
    Table,
    add_options,
    measured_on,
    name_of_split,
    train_teachers,
)

import cdfkd_tf
from cdfkd_tf.data.specs import DatasetSpec, spec_of
from cdfkd_tf.networks.students import build_student

TEACHERS, STUDENT_STEPS = 3, 20


def students(sharing: str, spec: DatasetSpec) -> dict[str, dict]:
    """Options of both students: name -> fields of the request."""

    def weights(headers: int, sharing: str, width: float) -> int:
        options = {"sharing": sharing, "width": width}
        sizes = spec.image_shape, spec.num_classes, headers
        student = build_student("compact", *sizes, **options)
        return student.count_params()

    most = weights(TEACHERS, sharing, 1.0)
    widths = [step / 16 for step in range(16, 49)]
    near = {w: abs(weights(1, "single", w) - most) for w in widths}
    wide = min(near, key=near.get)
    return {
        sharing: {"student_headers": sharing, "student_width": 1.0},
        "single": {
            "student_headers": "single",
            "student_width": wide,
            "student_loss": {"header": 0.0, "ensemble": 1.0},
        },
    }


def one_run(given: dict, seed: int, options) -> dict[str, float]:
    """Distils once; accuracy and agreement in [0, 1], and the student's weights."""
    files = train_teachers(options)
    result = cdfkd_tf.distill(
        files,
        seed=seed,
        student="compact",
        student_steps=STUDENT_STEPS,
        epochs=10,
        steps_per_epoch=max(1, options.updates // (10 * STUDENT_STEPS)),
        bank_size=options.bank_size,
        verbose=2,
        **given,
    )
    found = result.evaluate(*measured_on(options))["student"]
    return {key: found[key] for key in ("accuracy", "agreement", "parameters")}


def summary(table: dict[str, dict], names: list[str], end: str) -> str:
    """Markdown: both students on each seed, and the paired t of their differences."""
    runs = {}
    for seed in sorted({int(key.split("/")[1]) for key in table}):
        pair = [table.get(f"{name}/{seed}/{end}") for name in names]
        if all(pair):
            runs[seed] = pair
    sizes = [run["parameters"] for run in next(iter(runs.values()))]
    heads = [f"{name}, {size:,} weights" for name, size in zip(names, sizes)]
    lines = [f"| seed | {' | '.join(heads)} | difference |", "|---|---|---|---|"]
    found = np.array([[100 * r["accuracy"] for r in pair] for pair in runs.values()])
    gaps = found[:, 0] - found[:, 1]
    for seed, (ours, single), gap in zip(runs, found, gaps):
        lines.append(f"| {seed} | {ours:.2f} | {single:.2f} | {gap:+.2f} |")
    ours, single = found.mean(axis=0)
    error = gaps.std(ddof=1) / len(gaps) ** 0.5 if len(gaps) > 1 else np.nan
    last = f"| mean | {ours:.2f} | {single:.2f} | {gaps.mean():+.2f}, t = "
    return "\n".join([*lines, f"{last}{gaps.mean() / error:.2f} |"])


def main(arguments: list[str] | None = None) -> None:
    """Runs what is missing, then writes the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    add_options(parser, seeds="0,1,2,3,4")
    parser.add_argument("--updates", default=8000, type=int)
    parser.add_argument("--bank_size", default=20_000, type=int)
    parser.add_argument("--sharing", default="shared", help="or multi_level, split")
    options = parser.parse_args(arguments)
    both = students(options.sharing, spec_of(options.dataset))
    size = f"{options.updates}/{options.bank_size}/{name_of_split(options)}"
    table = Table(options.output / "headers.json")
    for seed in options.seeds.split(","):
        for name, given in both.items():
            run = given, int(seed), options
            table.complete(f"{name}/{seed}/{options.sharing}/{size}", one_run, run)
        text = summary(table.rows, list(both), f"{options.sharing}/{size}")
        (options.output / "headers.md").write_text(text + "\n")
    print(text)


if __name__ == "__main__":
    main()
