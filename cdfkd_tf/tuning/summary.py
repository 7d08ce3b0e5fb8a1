"""What trials leave, and what they amount to: a table, the best one, a correlation."""

import csv
import dataclasses
import io
import pathlib
import shutil
from typing import Any

from cdfkd_tf.config import RunConfig, names_in
from cdfkd_tf.report import charts
from cdfkd_tf.report.page import Section, render, shell_command
from cdfkd_tf.report.tables import Table, aligned, written
from cdfkd_tf.tuning.objective import objective_name
from cdfkd_tf.workdir import read_json, write_json, write_text

FOLDER = "search"  # within the workdir
_OUTCOME = "outcome.json"  # within a trial's folder
_FEWEST = 3  # pairs that make a rank correlation


@dataclasses.dataclass(frozen=True)
class Summary:
    """A search so far.

    Attributes:
        config: the run that trials varied, their teachers named.
        outcomes: a table per trial, best first: `trial`, `status` (`finished` or
            `failed`), `objective` and `test_accuracy` in [0, 1] or None, `epochs`,
            `seconds`, `values` of the hyper-parameters, `options` (the same, as
            `distill` takes them), `reason` of a failure, `folder`.
    """

    config: RunConfig
    outcomes: list[dict[str, Any]]

    @property
    def finished(self) -> list[dict[str, Any]]:
        """The trials that did not fail, best first."""
        return [o for o in self.outcomes if o["status"] == "finished"]

    @property
    def best(self) -> dict[str, Any] | None:
        """The best finished trial."""
        return next(iter(self.finished), None)

    @property
    def names(self) -> list[str]:
        """The options that were varied."""
        return sorted({name for o in self.outcomes for name in o["values"]})

    @property
    def rank_correlation(self) -> float | None:
        """Spearman's, of objective and test accuracy; None: too few, or all alike."""
        from scipy.stats import spearmanr

        columns = list(zip(*self._measured()))
        if len(self._measured()) < _FEWEST or any(len(set(c)) == 1 for c in columns):
            return None
        return float(spearmanr(*columns).statistic)

    def best_config(self) -> RunConfig:
        """The whole run that the best trial stands for."""
        names = ("action", "resume", *names_in("search"))
        usual = {name: getattr(RunConfig(), name) for name in names}
        workdir = str(pathlib.Path(self.config.workdir) / "best")
        options = self.best["options"]
        return self.config.with_values({**usual, "workdir": workdir, **options})

    def write(self) -> str:
        """Writes `summary.csv`, `report.html` and, if a trial finished, `best.flags`.

        Returns:
            The same for the terminal.
        """
        directory = pathlib.Path(self.config.workdir) / FOLDER
        name, flagfile = objective_name(self.config), directory / "best.flags"
        text = io.StringIO()
        columns = ("trial", "status", name, "test_accuracy", "epochs", "seconds")
        columns = (*columns, *self.names, "reason")
        rows = csv.DictWriter(text, columns, extrasaction="ignore", lineterminator="\n")
        rows.writeheader()
        rows.writerows(
            {**o, name: o["objective"], **o["values"]} for o in self.outcomes
        )
        write_text(directory / "summary.csv", text.getvalue())
        write_text(directory / "report.html", self._page(name, flagfile))
        table, found = self._table(name), self.rank_correlation
        found = "-" if found is None else f"{found:.2f}"
        lines = [aligned([table.head, *table.rows], str.rjust)]
        lines.append(f"Rank correlation of objective and test accuracy: {found}")
        if best := self.best:
            note = (
                f"# Trial {best['trial']} of {len(self.outcomes)}, the best by {name}: "
                f"{best['objective']:.4f}.\n"
            )
            write_text(flagfile, note + self.best_config().flag_lines())
            lines.append(f"The best one: --flagfile={flagfile}")
        return "\n".join(lines)

    def _measured(self) -> list[tuple[float, float]]:
        pairs = [(o["objective"], o["test_accuracy"]) for o in self.finished]
        return [pair for pair in pairs if pair[1] is not None]

    def _table(self, objective: str) -> Table:
        rows = [
            (
                ("*" if o is self.best else "") + o["trial"],
                "failed" if o["objective"] is None else f"{o['objective']:.4f}",
                written(o["test_accuracy"]),
                str(o["epochs"]),
                *(_short(o["values"].get(option)) for option in self.names),
                f"{o['seconds']:.0f}",
                o["reason"],
            )
            for o in self.outcomes
        ]
        head = ("trial", objective, "test", "epochs", *self.names, "seconds", "")
        return Table("Trials", head, rows)

    def _page(self, name: str, flagfile: pathlib.Path) -> str:
        best, config, shown = self.best, self.config, name.replace("_", " ")
        figures = []
        for option in self.names:
            pairs = [(o["values"].get(option), o["objective"]) for o in self.finished]
            pairs = [pair for pair in pairs if pair[0] is not None]
            if pairs:
                caption = f"{option} and {shown}"
                figures.append(charts.points(pairs, caption, option, shown))
        if self._measured():
            caption = f"{shown} and test accuracy"
            figures.append(charts.points(self._measured(), caption, shown, "test"))
        note = ""
        if self.rank_correlation is not None:
            note = (
                f"Rank correlation of {shown}, by which the search chose, with test "
                f"accuracy, which it never saw: {self.rank_correlation:.2f}."
            )
        failed = len(self.outcomes) - len(self.finished)
        lead = f"{len(self.finished)} runs finished, {failed} failed."
        if best:
            lead += f" The best reached {shown} *{best['objective']:.4f}*, test "
            lead += f"{written(best['test_accuracy'])}."
        again = shell_command([f"--flagfile={flagfile}"]) if best else ""
        return render(
            f"{config.dataset}, search",
            [
                Section("Effect of each option", note, charts=figures),
                Section("Every run", table=self._table(shown)),
                Section("The best one again", command=again),
            ],
            kicker=f"{config.dataset} · {config.method} · {config.tuner} search",
            question="Which settings are best?",
            lead=lead,
        )


def summarise(config: RunConfig, outcomes: list[dict[str, Any]]) -> Summary:
    """Sorts trials: longest trained first, among them the best, failed ones last."""

    def place(outcome):
        failed = outcome["objective"] is None
        return (failed, -outcome["epochs"], -(outcome["objective"] or 0))

    return Summary(config, sorted(outcomes, key=place))


def keep_outcome(folder: pathlib.Path, objective: str, outcome: dict[str, Any]) -> None:
    """Writes what came out of a trial, also for TensorBoard's HParams page.

    Args:
        folder: of the trial.
        objective: its name.
        outcome: see `Summary.outcomes`.
    """
    import tensorflow as tf
    from tensorboard.plugins.hparams import api

    write_json(folder / _OUTCOME, outcome)
    directory = folder / "logs/hparams"
    shutil.rmtree(directory, ignore_errors=True)
    with tf.summary.create_file_writer(str(directory)).as_default():
        api.hparams(outcome["values"], trial_id=f"trial {outcome['trial']}")
        if outcome["objective"] is not None:
            tf.summary.scalar(objective, outcome["objective"], step=outcome["epochs"])


def read_outcomes(workdir: pathlib.Path) -> list[dict[str, Any]]:
    """What the trials of a search left so far, in their order."""
    files = sorted((workdir / FOLDER).glob(f"trial_*/{_OUTCOME}"))
    return [{**read_json(file), "folder": str(file.parent)} for file in files]


def _short(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)
