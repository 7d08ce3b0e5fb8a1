"""The report's tables, and how its numbers are written."""

import html
from collections.abc import Sequence
from typing import Any


def table(head: Sequence[str], rows: Sequence[Sequence[str]], name: str) -> str:
    """An HTML table; the first column names the row, `*` before a name marks it."""
    top = "".join(f"<th scope=col>{html.escape(cell)}</th>" for cell in head)
    lines = []
    for first, *others in rows:
        mark = ' class="ours"' if first.startswith("*") else ""
        cells = "".join(f"<td>{html.escape(cell)}</td>" for cell in others)
        name_cell = f"<th scope=row>{html.escape(first.lstrip('*'))}</th>"
        lines.append(f"<tr{mark}>{name_cell}{cells}</tr>")
    return (
        f'<div class="wide"><table aria-label="{html.escape(name)}"><thead><tr>{top}'
        f"</tr></thead><tbody>{''.join(lines)}</tbody></table></div>"
    )


def comparison(results: dict[str, Any]) -> str:
    """Teachers, their mean, and the student in its smallest shipped form."""
    teachers = results["teachers"]
    costs = results.get("teacher_costs") or [{} for _ in teachers]
    rows = [
        _costs(f"teacher {index}", entry["accuracy"], entry["parameters"], cost)
        for index, (entry, cost) in enumerate(zip(teachers, costs))
    ]
    ensemble = results["teacher_ensemble"]
    together = {
        key: total(costs, key) for key in ("multiply_adds", "bytes", "latency_ms")
    }
    rows.append(
        _costs("teachers' mean", ensemble["accuracy"], ensemble["parameters"], together)
    )
    student, shipped = results["student"], {e["format"]: e for e in results["exports"]}
    as_float, as_int8 = shipped.get("tflite_float32"), shipped.get("tflite_int8")
    rows.append(
        _costs(
            "*student",
            results["aggregator"]["accuracy"],
            student["parameters"],
            as_float or {},
        )
    )
    if as_int8:
        entry = _costs(
            "*student, int8", as_int8["accuracy"], student["parameters"], as_int8
        )
        rows.append(entry)
    head = ("", "accuracy", "parameters", "multiply-adds", "bytes", "ms per image")
    return table(head, rows, "Teachers and student")


def exports(results: dict[str, Any]) -> str:
    """Every exported file and how it was checked."""
    rows = [
        (
            entry["format"],
            count(entry["bytes"]),
            share(entry["accuracy"]),
            share(entry["agreement"]),
            small(entry["max_abs_difference"]),
            milliseconds(entry["latency_ms"]),
            count(entry.get("operators")),
        )
        for entry in results["exports"]
    ]
    head = ("format", "bytes", "accuracy", "agrees with Keras",
            "largest difference", "ms per image", "operators")  # fmt: skip
    return table(head, rows, "Exported files")


def total(entries: Sequence[dict[str, Any]], key: str) -> float | None:
    """Sum over the entries; None if one has no such value."""
    values = [entry.get(key) for entry in entries]
    return None if not values or None in values else sum(values)


def share(value: float | None) -> str:
    """As per cent."""
    return "-" if value is None else f"{value:.2%}"


def count(value: float | None) -> str:
    """As a whole number with separators."""
    return "-" if value is None else f"{value:,.0f}"


def milliseconds(value: float | None) -> str:
    """With as many digits as a clock is good for."""
    return "-" if value is None else f"{value:.3g}"


def small(value: float | None) -> str:
    """A small difference."""
    return "-" if value is None else f"{value:.1e}" if value < 1e-3 else f"{value:.3f}"


def _costs(name, accuracy, parameters, cost) -> tuple[str, ...]:
    return (
        name,
        share(accuracy),
        count(parameters),
        count(cost.get("multiply_adds")),
        count(cost.get("bytes")),
        milliseconds(cost.get("latency_ms")),
    )
