"""results.json: its form, how it fills up, and its table for people.

Names and shapes are public: a value that was not measured is null, never absent.
"""

import pathlib
from typing import Any

from cdfkd_tf.config import RunConfig
from cdfkd_tf.workdir import broken_record, read_json, write_json

FORMAT = 1
_MEASURED = (
    "teachers",
    "teacher_ensemble",
    "student",
    "aggregator",
    "exports",
    "teacher_costs",
)
# Step -> the values that are stale once it runs again.
_STALE = {
    "train_teachers": _MEASURED,
    "distill": _MEASURED,
    "fit_aggregator": ("aggregator", "exports", "teacher_costs"),
    "evaluate": ("teachers", "teacher_ensemble", "student"),
    "export": ("exports", "teacher_costs"),
}


class Results:
    """The measured values of one run, written at once.

    Args:
        file: results.json; created with the first value.
        config: the request, named in the file.
        versions: package -> version, likewise.
    """

    def __init__(self, file: pathlib.Path, config: RunConfig, versions: dict[str, str]):
        self.file, self.config, self.versions = file, config, versions

    def record(self, key: str, value: dict | list) -> None:
        """Puts a value under `key`; a table is merged with what is there."""
        results = self._read()
        if isinstance(value, dict):
            value = {**results[key], **value}
        results[key] = value
        write_json(self.file, results)

    def begin(self, step: str) -> None:
        """Sets to null what `step` will make anew, or makes stale."""
        blank = self._blank()
        stale = {key: blank[key] for key in _STALE[step]}
        write_json(self.file, {**self._read(), **stale})

    def _read(self) -> dict[str, Any]:
        blank, known = self._blank(), read_results(self.file)
        kept = {key: known[key] for key in (*_MEASURED, "seconds") if key in known}
        return {**blank, **kept}

    def _blank(self) -> dict[str, Any]:
        config = self.config
        steps = ("train_teachers", "distill", "fit_aggregator", "export")
        unmeasured = {"parameters": None, "accuracy": None}
        return {
            "format": FORMAT,
            "dataset": config.dataset,
            "method": config.method,
            "seed": config.seed,
            "teachers": [],
            "teacher_ensemble": dict(unmeasured),
            "student": {**unmeasured, "header_accuracy": None, "agreement": None},
            "aggregator": {
                "kind": config.aggregator,
                "real_samples": config.real_samples,
                "accuracy": None,
                "mean_accuracy": None,
            },
            "exports": [],
            "teacher_costs": [],
            "seconds": dict.fromkeys(steps),
            "versions": self.versions,
        }


# What readers count on: the least that each part holds.
_PARTS = {
    "teachers": [{"parameters", "accuracy"}],
    "teacher_ensemble": {"parameters", "accuracy"},
    "student": {"parameters", "accuracy", "header_accuracy", "agreement"},
    "aggregator": {"kind", "real_samples", "accuracy", "mean_accuracy"},
    "exports": [{"format", "bytes", "accuracy", "agreement", "latency_ms"}],
    "seconds": set(),
}


def read_results(file: pathlib.Path) -> dict[str, Any]:
    """What results.json holds, empty if there is none.

    Raises:
        RequestError: if it was changed into something else.
    """
    known = read_json(file)
    if not known:
        return known
    for name in ("dataset", "method", "seed"):
        if name not in known:
            raise broken_record(file, f"{name!r} is missing")
    for name, form in _PARTS.items():
        several = isinstance(form, list)
        keys = form[0] if several else form
        entries = known.get(name)
        if not isinstance(entries, list if several else dict):
            raise broken_record(file, f"{name!r} is missing or of another form")
        for entry in entries if several else [entries]:
            if not isinstance(entry, dict) or keys - entry.keys():
                raise broken_record(file, f"{name!r} lacks some of {sorted(keys)}")
    return known


def summary(results: dict[str, Any], workdir: str) -> str:
    """The results as a small table for people; what was not measured is left out."""
    teachers, ensemble = results["teachers"], results["teacher_ensemble"]
    student, aggregator = results["student"], results["aggregator"]
    rows = [
        (f"teacher {index}", _size(teacher), teacher["accuracy"], "")
        for index, teacher in enumerate(teachers)
    ]
    cost = sum(entry["latency_ms"] or 0 for entry in results.get("teacher_costs", []))
    note = f"{cost:.2f} ms per image, all of them as TFLite float32" if cost else ""
    rows.append(("teachers' mean", _size(ensemble), ensemble["accuracy"], note))
    note = f"agrees with the teachers on {_percent(student['agreement'])}"
    rows.append(("student, mean of headers", _size(student), student["accuracy"], note))
    if aggregator["kind"] != "mean" and aggregator["accuracy"] is not None:
        samples = aggregator["real_samples"]
        source = f"{samples} real images" if samples else "invented images alone"
        note = f"learned from {source}"
        if not aggregator.get("learned"):
            note = "no gain on held-out samples: the mean is kept"
        name = f"student, {aggregator['kind']}"
        rows.append((name, " ", aggregator["accuracy"], note))
    for entry in results["exports"]:
        note = (
            f"agrees with Keras on {_percent(entry['agreement'])}, "
            f"{entry['latency_ms']:.2f} ms per image"
        )
        rows.append((entry["format"], f"{entry['bytes']:,} B", entry["accuracy"], note))
    lines = [
        f"{name:25}{size:>16}{_percent(accuracy):>10}  {note}".rstrip()
        for name, size, accuracy, note in rows
        if size
    ]
    if not lines:
        return f"The results so far are in {workdir}"
    title = f"{results['dataset']}, {results['method']}, seed {results['seed']}"
    head = f"{title:25}{'size':>16}{'accuracy':>10}"
    return "\n".join(["", head, *lines, f"All of it is in {workdir}"])


def _size(entry: dict[str, Any]) -> str:
    return f"{entry['parameters']:,} weights" if entry["parameters"] else ""


def _percent(value: float | None) -> str:
    return "-" if value is None else f"{value:.2%}"
