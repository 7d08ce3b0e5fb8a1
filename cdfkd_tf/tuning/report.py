"""`search/report.html`: what each option did to the objective, and every trial."""

import pathlib

from cdfkd_tf.report import charts, tables
from cdfkd_tf.report.page import Section, render, shell_command
from cdfkd_tf.tuning.objective import objective_of
from cdfkd_tf.tuning.summary import Summary, shown
from cdfkd_tf.workdir import write_text


def write_search_report(summary: Summary, path: pathlib.Path) -> None:
    """Writes one self-contained page about a search."""
    config, objective = summary.config, objective_of(summary.config)
    name = objective.replace("_", " ")
    finished = [o for o in summary.outcomes if o["objective"] is not None]
    failed = len(summary.outcomes) - len(finished)
    lead = f"{len(finished)} runs finished" + (f", {failed} failed." if failed else ".")
    if summary.best:
        accuracy = summary.best["test_accuracy"]
        lead += f" The best reached {name} *{summary.best['objective']:.4f}*"
        lead += "." if accuracy is None else f", test {tables.written(accuracy)}."
    figures = []
    for option in summary.names:
        points = [
            (o["values"][option], o["objective"])
            for o in finished
            if option in o["values"]
        ]
        if points:
            figures.append(charts.points(points, f"{option} and {name}", option, name))
    measured = [
        (o["objective"], o["test_accuracy"])
        for o in finished
        if o["test_accuracy"] is not None
    ]
    correlation, note = summary.rank_correlation, ""
    if measured:
        figures.append(
            charts.points(measured, f"{name} and test accuracy", name, "test")
        )
    if correlation is not None:
        note = (
            f"Rank correlation of {name}, by which the search chose, with test "
            f"accuracy, which it never saw: {correlation:.2f}."
        )
    head = ("trial", name, "test", "epochs", *summary.names, "seconds", "")
    rows = [
        (
            f"{'*' if o is summary.best else ''}{o['trial']}",
            "failed" if o["objective"] is None else f"{o['objective']:.4f}",
            tables.written(o["test_accuracy"]),
            str(o["epochs"]),
            *(shown(o["values"].get(option)) for option in summary.names),
            f"{o['seconds']:.0f}",
            o["reason"],
        )
        for o in summary.outcomes
    ]
    flagfile = pathlib.Path(config.workdir) / "search" / "best.flags"
    command = shell_command([f"--flagfile={flagfile}"]) if summary.best else ""
    text = render(
        f"{config.dataset}, search",
        [
            Section("What each option did", note, charts=figures),
            Section("Every run", table=tables.Table("Trials", head, rows)),
            Section("The best one again", command=command),
        ],
        kicker=f"{config.dataset} · {config.method} · {config.tuner} search",
        question="Which settings are best?",
        lead=lead,
    )
    write_text(path, text)
