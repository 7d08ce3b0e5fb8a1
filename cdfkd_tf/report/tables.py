"""The report's tables as text, and how its numbers are written."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

SHARE, COUNT, TIME = ".2%", ",.0f", ".3g"
# What a column is called -> its key in results.json, and how it is written.
_COSTS = {
    "accuracy": ("accuracy", SHARE),
    "parameters": ("parameters", COUNT),
    "multiply-adds": ("multiply_adds", COUNT),
    "bytes": ("bytes", COUNT),
    "ms per image": ("latency_ms", TIME),
}
_EXPORTS = {
    "bytes": ("bytes", COUNT),
    "accuracy": ("accuracy", SHARE),
    "agrees with Keras": ("agreement", SHARE),
    "largest difference": ("max_abs_difference", ".2g"),
    "ms per image": ("latency_ms", TIME),
    "operators": ("operators", COUNT),
    "arena bytes": ("arena_bytes", COUNT),
}


class Table(NamedTuple):
    """A table as text.

    Attributes:
        name: what it shows, for readers who cannot see it.
        head: one cell per column.
        rows: the first cell names the row; `*` before that name marks the row.
    """

    name: str
    head: Sequence[str]
    rows: Sequence[Sequence[str]]


def comparison(results: Mapping[str, Any]) -> Table:
    """Teachers, their mean, and the student as TFLite float32 and int8.

    Args:
        results: of results.json, with at least one teacher.
    """
    costs = results.get("teacher_costs") or [{}] * len(results["teachers"])
    together = {key: total(costs, key) for key, _ in _COSTS.values()}
    student = {**results["student"], "accuracy": results["aggregator"]["accuracy"]}
    files = {entry["format"]: entry for entry in results["exports"]}
    entries = [
        (f"teacher {index}", {**cost, **teacher})
        for index, (teacher, cost) in enumerate(zip(results["teachers"], costs))
    ]
    rule = results["teacher_ensemble"].get("rule") or "mean"
    name = "teachers' mean" if rule == "mean" else f"teachers by {rule}"
    entries.append((name, {**together, **results["teacher_ensemble"]}))
    entries.append(("*student", {**files.get("tflite_float32", {}), **student}))
    if int8 := files.get("tflite_int8"):
        entries.append(
            ("*student, int8", {**int8, "parameters": student["parameters"]})
        )
    columns = dict(_COSTS)
    if results["teacher_ensemble"].get("task_accuracy") is not None:
        columns["among one teacher's classes"] = ("task_accuracy", SHARE)
    return _table("Teachers and student", "", columns, entries)


def readings(results: Mapping[str, Any]) -> Table | None:
    """How teachers are asked and how that is known; None in results of old runs."""
    keys = ("file", "input", "input_evidence", "output")
    rows = [
        (f"teacher {index}", *(str(teacher.get(key) or "-") for key in keys))
        for index, teacher in enumerate(results["teachers"])
        if teacher.get("input")
    ]
    head = ("", "file", "pixel values", "known how", "answers")
    return Table("How teachers are asked", head, rows) if rows else None


def exports(results: Mapping[str, Any]) -> Table:
    """Every exported file and how it was checked; `results` of results.json."""
    entries = [(entry["format"], entry) for entry in results["exports"]]
    micro = any(entry.get("arena_bytes") for _, entry in entries)
    columns = {n: c for n, c in _EXPORTS.items() if micro or c[0] != "arena_bytes"}
    return _table("Exported files", "format", columns, entries)


def total(entries: Sequence[Mapping[str, Any]], key: str) -> float | None:
    """Sum over the entries; None if there are none or one has no such value."""
    values = [entry.get(key) for entry in entries]
    return None if not values or None in values else sum(values)


def written(value: float | None, form: str = SHARE) -> str:
    """A number in one of these forms; `-` for None."""
    return "-" if value is None else format(value, form)


def aligned(rows: Sequence[Sequence[str]], justify: Callable = str.ljust) -> str:
    """Rows of cells as text for a terminal, in columns; the last one is not padded."""
    widths = [max(map(len, column)) for column in zip(*rows)]
    lines = ["  ".join(map(justify, row, (*widths[:-1], 0))) for row in rows]
    return "\n".join(map(str.rstrip, lines))


def _table(name, first, columns, entries) -> Table:
    rows = [
        (row, *(written(entry.get(key), form) for key, form in columns.values()))
        for row, entry in entries
    ]
    return Table(name, (first, *columns), rows)
