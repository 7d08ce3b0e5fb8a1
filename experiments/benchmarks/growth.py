"""How an iteration's time and memory grow with teachers, headers, batch and images.

    python -m experiments.benchmarks.growth

wrn40_2 teachers into wrn16_1, float32, through `fit`; one thing is changed at a time.
Writes growth.json and growth.png beside this file and prints table and fitted laws.
"""

import argparse
import dataclasses
import json
import pathlib
import statistics
import sys

import numpy as np

from experiments.benchmarks.cases import CASES, changed, gigaflop
from experiments.benchmarks.compare import run

HERE = pathlib.Path(__file__).parent
CASE = CASES["wrn"]
BASE = {"teachers": 3, "batch_size": 16, "side": 32}
BASE_OF = {"batch": BASE["batch_size"], "side": BASE["side"]}
COUNTS, BATCHES, SIDES = (1, 2, 3, 4, 5), (4, 8, 16, 32, 48), (16, 24, 32, 48, 64)


@dataclasses.dataclass(frozen=True)
class Point:
    """What one process measures, and in which row of the table it stands."""

    axis: str
    teachers: int
    batch_size: int
    side: int
    one_header: bool = False

    @property
    def varied(self) -> int:
        """The number that this point's axis is about."""
        names = {"batch": "batch_size", "side": "side"}
        return getattr(self, names.get(self.axis, "teachers"))

    @property
    def headers(self) -> int:
        return 1 if self.one_header else self.teachers

    @property
    def gigaflop(self) -> float:
        """Counted operations of one iteration, in 1e9."""
        case = changed(
            CASE,
            side=self.side,
            num_teachers=self.teachers,
            batch_size=self.batch_size,
        )
        return gigaflop(case, one_header=self.one_header)

    @property
    def arguments(self) -> list[str]:
        """Of engine_loop."""
        names = ("teachers", "batch_size", "side")
        method = ["--option=method=dfed"] if self.one_header else []
        return [*(f"--{name}={getattr(self, name)}" for name in names), *method]


def points() -> list[Point]:
    """All that is measured; the point that axes share comes once."""
    own = [Point("teachers", **{**BASE, "teachers": n}) for n in COUNTS]
    one = [
        Point("teachers, one header", **{**BASE, "teachers": n}, one_header=True)
        for n in COUNTS
    ]
    batches = [Point("batch", **{**BASE, "batch_size": n}) for n in BATCHES]
    sides = [Point("side", **{**BASE, "side": n}) for n in SIDES]
    rest = [point for point in batches + sides if point.varied != BASE_OF[point.axis]]
    return own + one + rest


def fit_time(rows: list[dict]) -> dict:
    """Seconds as `fixed + gigaflop / rate`, least squares of the relative error."""
    seconds = np.array([row["seconds"] for row in rows])
    work = np.array([row["gigaflop"] for row in rows])
    terms = np.stack([np.ones_like(work), work], axis=1)
    fixed, each = _relative_fit(terms, seconds)
    off = np.abs(terms @ [fixed, each] / seconds - 1)
    return {
        "fixed_seconds": fixed,
        "gigaflop_per_second": 1 / each,
        "mean_error": off.mean(),
        "largest_error": off.max(),
    }


def fit_memory(rows: list[dict]) -> dict:
    """Peak megabytes as `fixed + a * teachers * pixels + b * headers`.

    `pixels` is batch times image size, in units of the base's 16 images of 32x32.
    """
    peak = np.array([row["peak_megabytes"] for row in rows])
    base = BASE["batch_size"] * BASE["side"] ** 2
    pixels = np.array([row["batch_size"] * row["side"] ** 2 / base for row in rows])
    teachers = np.array([row["teachers"] for row in rows])
    headers = np.array([row["headers"] for row in rows])
    terms = np.stack([np.ones_like(pixels), teachers * pixels, headers], axis=1)
    found = _relative_fit(terms, peak)
    off = np.abs(terms @ found / peak - 1)
    names = ("fixed", "per_teacher_and_pixels", "per_header")
    return {
        **dict(zip(names, found)),
        "mean_error": off.mean(),
        "largest_error": off.max(),
    }


def _relative_fit(terms: np.ndarray, values: np.ndarray) -> list[float]:
    scaled = terms / values[:, None]
    return np.linalg.lstsq(scaled, np.ones_like(values), rcond=None)[0].tolist()


def plot(rows: list[dict], file: pathlib.Path) -> None:
    """Seconds and memory against each axis."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    base = [row for row in rows if row["axis"] == "teachers" and row["varied"] == 3]
    figure, axes = plt.subplots(2, 3, figsize=(11, 6), sharey="row")
    for column, axis in enumerate(("teachers", "batch", "side")):
        for kind, style in ((axis, "o-"), (f"{axis}, one header", "s--")):
            chosen = [row for row in rows if row["axis"] == kind]
            if kind in ("batch", "side"):
                chosen += [{**row, "varied": BASE_OF[kind]} for row in base]
            chosen.sort(key=lambda row: row["varied"])
            if not chosen:
                continue
            label = "one header" if "one" in kind else "a header per teacher"
            for row, measured in enumerate(("seconds", "peak_megabytes")):
                x = [point["varied"] for point in chosen]
                y = [point[measured] for point in chosen]
                axes[row, column].plot(x, y, style, label=label)
        axes[1, column].set_xlabel(NAMES[axis])
    axes[0, 0].set_ylabel("seconds per iteration")
    axes[1, 0].set_ylabel("peak memory, MB")
    axes[0, 0].legend(frameon=False)
    for panel in axes.flat:
        panel.grid(alpha=0.3)
        panel.set_ylim(bottom=0)
    figure.tight_layout()
    figure.savefig(file, dpi=110)


NAMES = {"teachers": "teachers", "batch": "batch", "side": "side of an image, pixels"}


def main() -> None:
    """Measures, writes, prints."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--iterations", type=int, default=5)
    arguments = parser.parse_args()
    rows = []
    print("| axis | teachers | headers | batch | side | GFLOP | s | peak MB |")
    print("|---|---|---|---|---|---|---|---|")
    for point in points():
        flags = ["--case=wrn", f"--iterations={arguments.iterations}"]
        measured = run("engine_loop", *flags, *point.arguments)
        row = {
            **dataclasses.asdict(point),
            "headers": point.headers,
            "varied": point.varied,
            "gigaflop": point.gigaflop,
            "seconds": statistics.median(measured["seconds"]),
            "all_seconds": measured["seconds"],
            "peak_megabytes": measured["peak_megabytes"],
        }
        rows.append(row)
        print(
            f"| {point.axis} | {point.teachers} | {point.headers} "
            f"| {point.batch_size} | {point.side} | {row['gigaflop']:.0f} "
            f"| {row['seconds']:.2f} | {row['peak_megabytes']:.0f} |"
        )
        sys.stdout.flush()
    laws = {"time": fit_time(rows), "memory": fit_memory(rows)}
    print(json.dumps(laws, indent=1))
    record = {"rows": rows, "laws": laws}
    (HERE / "growth.json").write_text(json.dumps(record, indent=1) + "\n")
    plot(rows, HERE / "growth.png")


if __name__ == "__main__":
    main()
