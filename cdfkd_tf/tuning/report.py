"""`search/report.html`: what each option did to the objective, and every trial."""

import html
import pathlib

from cdfkd_tf.report import charts, tables
from cdfkd_tf.report.page import chart, page, section
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
        lead += f" The best reached {name} <b>{summary.best['objective']:.4f}</b>"
        lead += "." if accuracy is None else f", test {tables.share(accuracy)}."
    figures = []
    for option in summary.names:
        points = [
            (o["values"][option], o["objective"])
            for o in finished
            if option in o["values"]
        ]
        if points:
            label = f"{option} and {name}"
            figures.append(chart(charts.points(points, label, option, name), label))
    measured = [
        (o["objective"], o["test_accuracy"])
        for o in finished
        if o["test_accuracy"] is not None
    ]
    correlation, note = summary.rank_correlation, ""
    if measured:
        label = f"{name} and test accuracy"
        figures.append(chart(charts.points(measured, label, name, "test"), label))
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
            tables.share(o["test_accuracy"]),
            str(o["epochs"]),
            *(shown(o["values"].get(option)) for option in summary.names),
            f"{o['seconds']:.0f}",
            o["reason"],
        )
        for o in summary.outcomes
    ]
    opening = (
        f"<header><p class=kicker>{html.escape(config.dataset)} · "
        f"{html.escape(config.method)} · {config.tuner} search</p>"
        f"<h1>Which settings are best?</h1><p class=lead>{lead}</p></header>"
    )
    flagfile = pathlib.Path(config.workdir) / "search" / "best.flags"
    command = html.escape(f"python main.py --flagfile={flagfile}")
    content = [
        opening,
        section(
            "What each option did",
            note,
            f'<div class="charts">{"".join(figures)}</div>' if figures else "",
        ),
        section("Every run", "", tables.table(head, rows, "Trials")),
        section(
            "The best one again",
            "",
            f"<pre><code>{command}</code></pre>" if summary.best else "",
        ),
    ]
    write_text(path, page(f"{config.dataset}, search", content))
