"""What the trials of a search amount to: a table, the best one, a correlation."""

import csv
import dataclasses
import io
import pathlib
from typing import Any

from cdfkd_tf.config import RunConfig
from cdfkd_tf.tuning.objective import objective_of
from cdfkd_tf.workdir import write_text

_FEWEST = 3  # pairs that a rank correlation is told of


@dataclasses.dataclass(frozen=True)
class Summary:
    """A search so far.

    Attributes:
        config: the run that trials varied, their teachers named.
        outcomes: a table per trial, best first: `trial`, `status` (`finished` or
            `failed`), `objective`, `test_accuracy`, `epochs`, `seconds`, `values`,
            `options`, `reason`, `folder`.
    """

    config: RunConfig
    outcomes: list[dict[str, Any]]

    @property
    def best(self) -> dict[str, Any] | None:
        """The best finished trial."""
        finished = [o for o in self.outcomes if o["status"] == "finished"]
        return finished[0] if finished else None

    @property
    def best_config(self) -> RunConfig | None:
        """The whole run that the best trial stands for."""
        if not self.best:
            return None
        usual = {
            name: RunConfig.__dataclass_fields__[name].default
            for name in ("max_trials", "tuner", "search_space", "action", "resume")
        }
        workdir = str(pathlib.Path(self.config.workdir) / "best")
        return dataclasses.replace(
            self.config, workdir=workdir, **usual | options_of(self.best)
        )

    @property
    def names(self) -> list[str]:
        """The options that were varied."""
        return sorted({name for o in self.outcomes for name in o["values"]})

    @property
    def rank_correlation(self) -> float | None:
        """Spearman's, of objective with test accuracy; None: too few, or all alike."""
        from scipy.stats import spearmanr

        pairs = [
            (o["objective"], o["test_accuracy"])
            for o in self.outcomes
            if o["objective"] is not None and o["test_accuracy"] is not None
        ]
        columns = list(zip(*pairs))
        if len(pairs) < _FEWEST or any(len(set(column)) == 1 for column in columns):
            return None
        return float(spearmanr(*columns).statistic)

    def write(self, directory: pathlib.Path) -> None:
        """Writes `summary.csv`, and `best.flags` if a trial finished."""
        objective = objective_of(self.config)
        text = io.StringIO()
        table = csv.writer(text, lineterminator="\n")
        head = ("trial", "status", objective, "test_accuracy", "epochs", "seconds")
        table.writerow([*head, *self.names, "reason"])
        for o in self.outcomes:
            cells = (o["status"], o["objective"], o["test_accuracy"])
            values = [o["values"].get(name) for name in self.names]
            reason = o["reason"]
            table.writerow(
                [o["trial"], *cells, o["epochs"], o["seconds"], *values, reason]
            )
        write_text(directory / "summary.csv", text.getvalue())
        if self.best:
            note = (
                f"# Trial {self.best['trial']} of {len(self.outcomes)}, the best by "
                f"{objective}: {self.best['objective']:.4f}.\n"
            )
            write_text(directory / "best.flags", note + self.best_config.flag_lines())

    def __str__(self):
        names = self.names
        head = f"{'trial':8}{objective_of(self.config):>20}{'test':>9}{'epochs':>8}"
        lines = ["", head + "  " + "  ".join(names)]
        for o in self.outcomes:
            if o["status"] == "finished":
                test = o["test_accuracy"]
                test = "-" if test is None else f"{test:.2%}"
                values = "  ".join(
                    f"{shown(o['values'].get(name)):>{len(name)}}" for name in names
                )
                lines.append(
                    f"{o['trial']:8}{o['objective']:>20.4f}{test:>9}{o['epochs']:>8}"
                    f"  {values}"
                )
            else:
                lines.append(f"{o['trial']:8}failed: {o['reason']}")
        correlation = self.rank_correlation
        measured = "-" if correlation is None else f"{correlation:.2f}"
        lines.append(f"Rank correlation of objective and test accuracy: {measured}")
        if self.best:
            folder = pathlib.Path(self.config.workdir) / "search"
            lines.append(f"The best one: --flagfile={folder / 'best.flags'}")
        return "\n".join(lines)


def summarise(config: RunConfig, outcomes: list[dict[str, Any]]) -> Summary:
    """Sorts the trials: longest trained first, among them the best, failed ones last.

    Args:
        config: the run that trials varied.
        outcomes: what they left.
    """

    def place(outcome):
        objective = outcome["objective"]
        if objective is None:
            return (1, 0, 0)
        return (0, -outcome["epochs"], -objective)

    return Summary(config, sorted(outcomes, key=place))


def options_of(outcome: dict[str, Any]) -> dict[str, Any]:
    """The options that a trial changed, as `RunConfig` takes them."""
    options = outcome["options"].items()
    return {k: tuple(v) if isinstance(v, list) else v for k, v in options}


def shown(value: Any) -> str:
    """An option's value in a table."""
    return f"{value:.4g}" if isinstance(value, float) else str(value)
