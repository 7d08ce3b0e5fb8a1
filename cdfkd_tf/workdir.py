"""One run's folder: its paths, its lock, its journal of steps, results.json.

Names in this folder are public: other people's scripts read them.
"""

import contextlib
import csv
import json
import os
import pathlib
import shutil
import socket
from collections.abc import Iterator, Mapping
from typing import Any

import filelock

from cdfkd_tf.errors import RequestError, file_system_error
from cdfkd_tf.runtime.files import replacing

FORMAT = 2  # of results.json
# Costly step -> the folder that holds what it could go on with.
_WORK = {"train_teachers": "teachers", "distill": "checkpoints"}


class Workdir:
    """One run's folder.

    Args:
        path: created when something is first written.
    """

    def __init__(self, path: str | pathlib.Path):
        self.path = pathlib.Path(path)
        self.teachers = self.path / "teachers"
        self.checkpoints = self.path / "checkpoints"
        self.earlier_images = self.checkpoints / "earlier_images.npz"
        self.bank = self.path / "bank"
        self.student = self.path / "student.keras"
        self.generator = self.path / "generator.keras"
        self.predictor = self.path / "predictor.keras"
        self.export = self.path / "export"
        self.logs = self.path / "logs"
        self.samples = self.path / "samples"
        self.history = self.path / "history.csv"
        self.splits = self.path / "splits"
        self.results = self.path / "results.json"
        self.report = self.path / "report.html"
        self.observations = self.path / "observations.json"
        self.config = self.path / "config.json"
        self.flags = self.path / "run.flags"
        self._progress = self.path / "progress.json"

    def teacher(self, index: int) -> pathlib.Path:
        """File of the teacher with this index."""
        return self.teachers / f"teacher_{index}.keras"

    def teacher_checkpoints(self, index: int) -> pathlib.Path:
        """Folder that is there while this teacher is in training."""
        return self.teachers / f"checkpoints_{index}"

    @contextlib.contextmanager
    def locked(self) -> Iterator[None]:
        """Keeps other processes out of this folder while the block runs.

        The operating system frees the lock when its process ends, however it ends.

        Raises:
            RequestError: if another process works there.
        """
        self.path.mkdir(parents=True, exist_ok=True)
        lock, note = filelock.FileLock(self.path / ".lock"), self.path / ".lock.holder"
        try:
            lock.acquire(timeout=0)
        except filelock.Timeout:
            holder = note.read_text().strip() if note.exists() else "another process"
            raise RequestError(
                f"{self.path} is in use by {holder}. Wait for it, or give another "
                "--workdir."
            ) from None
        try:
            note.write_text(f"process {os.getpid()} on {socket.gethostname()}\n")
            yield
        finally:
            note.unlink(missing_ok=True)
            lock.release()

    def record_of(self, step: str) -> dict[str, Any]:
        """`{"options": ..., "done": ...}` of a step that was begun, else empty."""
        return read_json(self._progress).get(step, {})

    def note(self, step: str, options: dict[str, Any], *, done: bool) -> None:
        """Remembers with which options `step` was begun, or finished.

        Args:
            step: its name.
            options: name -> value, of what it depends on; JSON holds them.
            done: whether it is finished.
        """
        entry = {"options": options, "done": done}
        write_json(self._progress, {**read_json(self._progress), step: entry})

    def networks(self) -> dict[str, str]:
        """Name -> fingerprint of what the distillation began with; empty: none did."""
        return read_json(self._progress).get("networks", {})

    def note_networks(self, fingerprints: dict[str, str]) -> None:
        """Remembers them, also when steps are forgotten: checkpoints stay as well."""
        progress = {**read_json(self._progress), "networks": fingerprints}
        write_json(self._progress, progress)

    def forget(self, steps: tuple[str, ...]) -> None:
        """Drops the memory of these steps; their files stay until overwritten."""
        known = read_json(self._progress)
        kept = {step: entry for step, entry in known.items() if step not in steps}
        if kept != known:
            write_json(self._progress, kept)

    @contextlib.contextmanager
    def unchanged_if_refused(self, step: str, *, anew: bool) -> Iterator[None]:
        """A step that turns out to be a wrong request leaves everything as it was.

        Args:
            step: about to be done in the block.
            anew: put away what it would otherwise go on with.
        """
        files = (self.config, self.flags, self.results, self._progress)
        before = {file: file.read_bytes() if file.exists() else None for file in files}
        work = self.path / _WORK[step] if step in _WORK else None
        aside = work.with_name(f".{work.name}.before") if work else None
        if anew and work and work.is_dir():
            shutil.rmtree(aside, ignore_errors=True)
            work.rename(aside)
        try:
            yield
        except Exception as error:
            # What the file system refuses in the middle of a costly step keeps what
            # there is of it.
            costly = work is not None and not isinstance(error, RequestError)
            if getattr(file_system_error(error), "exit_code", 1) == 2 and not costly:
                for file, content in before.items():
                    if content is None:
                        file.unlink(missing_ok=True)
                    elif not file.exists() or content != file.read_bytes():
                        with replacing(file) as temporary:
                            temporary.write_bytes(content)
                if anew and work and aside.is_dir():
                    shutil.rmtree(work, ignore_errors=True)
                    aside.rename(work)
            raise
        finally:
            if aside:
                shutil.rmtree(aside, ignore_errors=True)

    def holds(self, step: str) -> bool:
        """Whether `step` left anything that it could go on with."""
        folder = self.path / _WORK[step] if step in _WORK else None
        return bool(folder and folder.is_dir() and any(folder.iterdir()))


def read_json(path: pathlib.Path) -> dict[str, Any]:
    """The table in `path`, empty if there is no such file.

    Raises:
        RequestError: if the file was changed into something else.
    """
    if not path.exists():
        return {}
    try:
        table = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:  # no JSON, or no text at all
        raise broken_record(path, str(error)) from error
    if not isinstance(table, dict):
        raise broken_record(path, f"it holds a {type(table).__name__}, not a table")
    return table


def broken_record(path: pathlib.Path, reason: str) -> RequestError:
    """What to do about a record that was changed by hand."""
    return RequestError(
        f"{path} is not as this package wrote it: {reason.rstrip('.')}. Put it right, "
        "or remove it and run the same command again: networks are kept."
    )


def write_json(path: pathlib.Path, table: dict[str, Any]) -> None:
    """Writes `table` whole or not at all."""
    write_text(path, json.dumps(table, indent=1) + "\n")


def write_text(path: pathlib.Path, text: str) -> None:
    """Writes `text` whole or not at all: under another name, then renamed."""
    with replacing(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def read_history(file: pathlib.Path) -> dict[str, list[float | None]]:
    """The columns of history.csv but the epoch; empty if there is no file.

    Returns:
        Name -> one value per epoch, None where it was not measured.

    Raises:
        RequestError: if it was changed into something else.
    """
    if not file.exists():
        return {}
    try:
        with file.open(newline="", encoding="utf-8") as lines:
            columns = zip(*csv.reader(lines), strict=True)
        table = {
            name: [float(cell) if cell else None for cell in cells]
            for name, *cells in columns
        }
    except ValueError as error:  # no numbers, rows of unlike lengths, or no text
        raise broken_record(file, str(error)) from error
    return {name: values for name, values in table.items() if name != "epoch"}


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
    "train_teachers": (*_MEASURED, "quality"),
    "distill": (*_MEASURED, "quality"),
    "fit_aggregator": ("aggregator", "exports", "teacher_costs"),
    "evaluate": ("teachers", "teacher_ensemble", "student"),
    "export": ("exports", "teacher_costs"),
}


class Results:
    """The measured values of one run, written at once.

    A value that was not measured is null, never absent.

    Args:
        file: results.json; created with the first value.
        about: `dataset`, `method`, `images`, `seed` and `versions` of the run.
        aggregator: `kind` and `labelled_samples` as asked for.
    """

    def __init__(
        self,
        file: pathlib.Path,
        about: Mapping[str, Any],
        aggregator: Mapping[str, Any],
    ):
        self.file, self._about, self._aggregator = file, about, aggregator

    def record(self, key: str, value: dict | list) -> None:
        """Puts a value under `key`; a table is merged with what is there."""
        results = self.read()
        if isinstance(value, dict):
            value = {**results[key], **value}
        results[key] = value
        write_json(self.file, results)

    def begin(self, step: str) -> None:
        """Sets to null what `step` will make anew, or makes stale."""
        blank = self._blank()
        stale = {key: blank[key] for key in _STALE[step]}
        write_json(self.file, {**self.read(), **stale})

    def read(self) -> dict[str, Any]:
        """All values as they stand."""
        known = read_results(self.file)
        kept = {key: known[key] for key in _blank() if key in known}
        return {"format": FORMAT, **self._about, **self._blank(), **kept}

    def _blank(self) -> dict[str, Any]:
        blank = _blank()
        return {**blank, "aggregator": {**blank["aggregator"], **self._aggregator}}


def _blank() -> dict[str, Any]:
    """The measured part before anything is measured."""
    unmeasured = {"parameters": None, "accuracy": None}
    asked = {"kind": None, "labelled_samples": None}
    steps = ("train_teachers", "distill", "fit_aggregator", "export")
    return {
        "teachers": [],
        "teacher_ensemble": dict(unmeasured),
        "student": {**unmeasured, "header_accuracy": None, "agreement": None},
        "aggregator": {**asked, "accuracy": None, "mean_accuracy": None},
        "exports": [],
        "teacher_costs": [],
        "quality": {},
        "seconds": dict.fromkeys(steps),
    }


_LATER = ("teacher_costs", "quality")  # not in all results of this format
# What readers count on in each entry of a list.
_ENTRIES = {
    "teachers": {"parameters", "accuracy"},
    "exports": {"format", "bytes", "accuracy", "agreement", "latency_ms"},
}


def read_results(file: pathlib.Path) -> dict[str, Any]:
    """What results.json holds, empty if there is none.

    Raises:
        RequestError: if it was changed into something else, or an older version
            wrote it.
    """
    known = read_json(file)
    if not known:
        return known
    if known.get("format", FORMAT) != FORMAT:
        raise broken_record(
            file, f"its format is {known['format']}, this version writes {FORMAT}"
        )
    for name in ("dataset", "method", "seed"):
        if name not in known:
            raise broken_record(file, f"{name!r} is missing")
    for name, blank in _blank().items():
        value = known.get(name, blank if name in _LATER else None)
        if type(value) is not type(blank):
            raise broken_record(file, f"{name!r} is missing or of another form")
        entries = value if isinstance(value, list) else [value]
        keys = _ENTRIES.get(name, set()) if isinstance(value, list) else set(blank)
        for entry in entries:
            if not isinstance(entry, dict) or keys - entry.keys():
                raise broken_record(file, f"{name!r} lacks some of {sorted(keys)}")
    return known


def _within_task(entry: dict[str, Any], before: str) -> str:
    """What of teachers of different classes is right if it is known whom to ask."""
    share = entry.get("task_accuracy")
    return "" if share is None else f"{before}{_percent(share)} among one's classes"


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
    note += _within_task(ensemble, ", " * bool(note))
    rule = ensemble.get("rule") or "mean"
    name = "teachers' mean" if rule == "mean" else f"teachers by {rule}"
    rows.append((name, _size(ensemble), ensemble["accuracy"], note))
    note = f"agrees with the teachers on {_percent(student['agreement'])}"
    note += _within_task(student, ", ")
    name = "student, mean of headers" if rule == "mean" else f"student by {rule}"
    rows.append((name, _size(student), student["accuracy"], note))
    fitted = aggregator["kind"] not in ("mean", "competence")
    if fitted and aggregator["accuracy"] is not None:
        samples = aggregator["labelled_samples"]
        source = f"{samples} labelled images" if samples else "generated images alone"
        note = f"learned from {source}"
        if not aggregator.get("learned"):
            note = "no sure gain in cross-validation: the mean is kept"
            if rule != "mean":
                note = "no sure gain in cross-validation: the rule is kept"
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
    if (results.get("quality") or {}).get("poor"):
        lines.append("The student is poor; see the warning above, or report.html.")
    return "\n".join(["", head, *lines, f"All of it is in {workdir}"])


def _size(entry: dict[str, Any]) -> str:
    return f"{entry['parameters']:,} weights" if entry["parameters"] else ""


def _percent(value: float | None) -> str:
    return "-" if value is None else f"{value:.2%}"
