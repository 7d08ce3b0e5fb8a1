"""What compare.py shows of its numbers: a table, the signals' worth, a plot."""

import math
import pathlib
import statistics

MAIN_ROW = "cdfkd_mfs"


def table(seeds: list[dict]) -> list[dict]:
    """One row per name: mean and deviation over seeds, in percent."""
    rows = []
    for name in seeds[0]:
        values = [100 * seed[name]["accuracy"] for seed in seeds]
        seconds = [seed[name]["seconds"] for seed in seeds]
        rows.append(
            {
                "name": name,
                "mean": statistics.fmean(values),
                "deviation": statistics.stdev(values) if len(values) > 1 else 0.0,
                "values": values,
                "parameters": seeds[0][name]["parameters"],
                "seconds": statistics.median(seconds) if seconds[0] else None,
                "learned": sum(seed[name].get("learned", False) for seed in seeds),
            }
        )
    return rows


def signals(seeds: list[dict]) -> dict[str, dict[str, float]]:
    """How well each data-free signal follows true accuracy, over all runs.

    `rank_correlation`: Spearman's over the epochs of one run, mean over runs;
    `across_runs`: over the last epochs of all runs; `best_gain`: points of accuracy of
    the epoch that the signal prefers, less those of the last epoch.
    """
    from scipy.stats import spearmanr

    runs = [
        row["history"]
        for seed in seeds
        for row in seed.values()
        if "agreement" in row.get("history", {})
    ]
    found = {}
    for name in ("agreement", "agreement_earlier"):
        within, gains = [], []
        for run in runs:
            rank = float(spearmanr(run[name], run["val_accuracy"]).statistic)
            if math.isfinite(rank):  # a run without any change has no ranks
                within.append(rank)
            last = len(run[name]) - 1
            best = max(range(last + 1), key=lambda i: (run[name][i], i))
            gains.append(100 * (run["val_accuracy"][best] - run["val_accuracy"][last]))
        ends = [[run[key][-1] for run in runs] for key in (name, "val_accuracy")]
        found[name] = {
            "runs": len(runs),
            "rank_correlation": statistics.fmean(within),
            "deviation": statistics.stdev(within),
            "across_runs": float(spearmanr(*ends).statistic),
            "best_gain": statistics.fmean(gains),
        }
    return found


def as_text(report: dict) -> str:
    """The tables in Markdown."""
    lines = ["| | parameters | accuracy | seconds |", "|---|---|---|---|"]
    for row in report["rows"]:
        seconds = f"{row['seconds']:.0f}" if row["seconds"] else ""
        accuracy = f"{row['mean']:.2f} ± {row['deviation']:.2f} %"
        lines.append(
            f"| {row['name']} | {row['parameters']:,} | {accuracy} | {seconds} |"
        )
    lines += [
        "",
        "| signal | rank correlation | across runs | gain of its best epoch |",
        "|---|---|---|---|",
    ]
    for name, row in report["signals"].items():
        lines.append(
            f"| `{name}` | {row['rank_correlation']:.2f} ± {row['deviation']:.2f} | "
            f"{row['across_runs']:.2f} | {row['best_gain']:+.2f} points |"
        )
    return "\n".join(lines)


def plot(rows: list[dict], file: pathlib.Path) -> None:
    """Every row as a mean with its deviation and the seeds as dots."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(8, 0.26 * len(rows) + 0.8))
    for place, row in enumerate(reversed(rows)):
        strong = row["name"] == MAIN_ROW
        colour = "#c0392b" if strong else "#34495e"
        axes.plot(row["values"], [place] * len(row["values"]), ".", color="#b0b7bd")
        axes.errorbar(row["mean"], place, xerr=row["deviation"], fmt="o", color=colour)
    axes.set_yticks(range(len(rows)), [row["name"] for row in reversed(rows)])
    axes.set_xlabel("accuracy on the 360 test images, %")
    axes.grid(axis="x", color="#e5e8ea")
    axes.set_axisbelow(True)
    for side in ("top", "right", "left"):
        axes.spines[side].set_visible(False)
    figure.tight_layout()
    figure.savefig(file, dpi=120)
