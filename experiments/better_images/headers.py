"""One header per teacher against a single header that learns their mean.

python experiments/better_images/headers.py --data_dir=FOLDER --seeds=0,1,2,3,4

Both students learn from the same images of compare.py's three teachers, in the same
order, with equally many updates; the single-header student is as wide as it takes to
have at least as many weights. Paired over seeds: t of the mean difference in accuracy.
What is in headers.json is not done again. Writes it and headers.md into --output.
"""

import argparse

import numpy as np
from compare import Table, add_options, measured_on, train_teachers

import cdfkd_tf
from cdfkd_tf.networks.students import build_student

SHAPE, CLASSES, TEACHERS, STUDENT_STEPS = (28, 28, 1), 10, 3, 20


def students(sharing: str, width: float) -> dict[str, dict]:
    """Options of both students: name -> fields of the request."""

    def weights(headers: int, sharing: str, width: float) -> int:
        options = {"sharing": sharing, "width": width}
        student = build_student("compact", SHAPE, CLASSES, headers, **options)
        return student.count_params()

    most = weights(TEACHERS, sharing, width)
    widths = [width * (1 + step / 8) for step in range(17)]
    wide = next(w for w in widths if weights(1, "single", w) >= most)
    mean_alone = {"header": 0.0, "ensemble": 1.0}
    return {
        sharing: {"student_headers": sharing, "student_width": width},
        "single": {
            "student_headers": "single",
            "student_width": wide,
            "student_loss": mean_alone,
        },
    }


def one_run(name: str, seed: int, options) -> dict[str, float]:
    """Distils once; accuracy and agreement in [0, 1], and the student's weights."""
    files = train_teachers(options.folder, options.data_dir, options.teacher_epochs)
    result = cdfkd_tf.distill(
        files,
        seed=seed,
        student="compact",
        student_steps=STUDENT_STEPS,
        epochs=10,
        steps_per_epoch=max(1, options.updates // (10 * STUDENT_STEPS)),
        bank_size=options.bank_size,
        verbose=2,
        **students(options.sharing, options.width)[name],
    )
    found = result.evaluate(*measured_on(options.split, options.data_dir))["student"]
    return {key: found[key] for key in ("accuracy", "agreement", "parameters")}


def summary(table: dict[str, dict], names: list[str], end: str) -> str:
    """Markdown: both students on each seed, and the paired t of their differences."""
    rows = {name: {} for name in names}
    for key, run in table.items():
        name, _, rest = key.partition("/")
        if rest.endswith(end) and name in rows:
            rows[name][rest] = run
    seeds = [rest for rest in rows[names[0]] if rest in rows[names[1]]]
    found = [[100 * rows[name][s]["accuracy"] for name in names] for s in seeds]
    sizes = [
        f"{name}, {rows[name][seeds[0]]['parameters']:,} weights" for name in names
    ]
    lines = [f"| seed | {' | '.join(sizes)} | difference |", "|---|---|---|---|"]
    for seed, (ours, single) in zip(seeds, found):
        start = seed.partition("/")[0]
        lines.append(f"| {start} | {ours:.2f} | {single:.2f} | {ours - single:+.2f} |")
    ours, single = np.mean(found, axis=0)
    gaps = np.subtract(*np.transpose(found))
    error = gaps.std(ddof=1) / len(gaps) ** 0.5 if len(gaps) > 1 else np.nan
    t = f"{ours - single:+.2f}, t = {gaps.mean() / error:.2f}"
    return "\n".join([*lines, f"| mean | {ours:.2f} | {single:.2f} | {t} |"])


def main(arguments: list[str] | None = None) -> None:
    """Runs what is missing, then writes the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    add_options(parser, seeds="0,1,2,3,4")
    parser.add_argument("--updates", default=8000, type=int)
    parser.add_argument("--bank_size", default=20_000, type=int)
    parser.add_argument("--sharing", default="shared", help="or multi_level, split")
    parser.add_argument("--width", default=1.0, type=float)
    options = parser.parse_args(arguments)
    names = list(students(options.sharing, options.width))
    size = f"{options.width:g}/{options.updates}/{options.bank_size}/{options.split}"
    table = Table(options.output / "headers.json")
    for seed in options.seeds.split(","):
        for name in names:
            run = name, int(seed), options
            table.complete(f"{name}/{seed}/{options.sharing}/{size}", one_run, run)
        text = summary(table.rows, names, f"{options.sharing}/{size}")
        (options.output / "headers.md").write_text(text + "\n")
    print(text)


if __name__ == "__main__":
    main()
