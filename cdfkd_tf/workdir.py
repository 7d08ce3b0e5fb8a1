"""The layout of one run's folder, and what it remembers of finished steps.

Names in this folder are public: other people's scripts read them.
"""

import contextlib
import csv
import json
import pathlib
import shutil
from collections.abc import Iterator
from typing import Any

from cdfkd_tf.errors import RequestError, of_the_system
from cdfkd_tf.runtime.files import replacing


class Workdir:
    """One run's folder.

    Args:
        path: created when something is first written.
    """

    def __init__(self, path: str):
        self.path = pathlib.Path(path)
        self.teachers = self.path / "teachers"
        self.checkpoints = self.path / "checkpoints"
        self.student = self.path / "student.keras"
        self.generator = self.path / "generator.keras"
        self.aggregator = self.path / "aggregator.keras"
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

    def record_of(self, step: str) -> dict[str, Any]:
        """`{"options": ..., "done": ...}` of a step that was begun, else empty."""
        return read_json(self._progress).get(step, {})

    def note(self, step: str, options: dict[str, Any], *, done: bool) -> None:
        """Remembers with which options `step` was begun, or finished."""
        entry = {"options": options, "done": done}
        write_json(self._progress, {**read_json(self._progress), step: entry})

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
        aside = self._put_aside(step) if anew else {}
        try:
            yield
        except Exception as error:
            # What the file system refuses in the middle of a costly step keeps what
            # there is of it.
            costly = self._work_of(step) and not isinstance(error, RequestError)
            if getattr(of_the_system(error), "exit_code", 1) == 2 and not costly:
                for file, content in before.items():
                    _put_back(file, content)
                for folder, kept in aside.items():
                    shutil.rmtree(folder, ignore_errors=True)
                    kept.rename(folder)
            raise
        finally:
            for kept in aside.values():
                shutil.rmtree(kept, ignore_errors=True)

    def _put_aside(self, step: str) -> dict[pathlib.Path, pathlib.Path]:
        """Folder -> where its content waits, for those that exist."""
        aside = {}
        for folder in self._work_of(step):
            if folder.is_dir():
                aside[folder] = folder.with_name(f".{folder.name}.before")
                shutil.rmtree(aside[folder], ignore_errors=True)
                folder.rename(aside[folder])
        return aside

    def holds(self, step: str) -> bool:
        """Whether `step` left anything that it could go on with."""
        return any(
            folder.is_dir() and any(folder.iterdir()) for folder in self._work_of(step)
        )

    def _work_of(self, step: str) -> list[pathlib.Path]:
        work = {"train_teachers": [self.teachers], "distill": [self.checkpoints]}
        return work.get(step, [])


def _put_back(file: pathlib.Path, content: bytes | None) -> None:
    if content is None:
        file.unlink(missing_ok=True)
    elif not file.exists() or content != file.read_bytes():
        with replacing(file) as temporary:
            temporary.write_bytes(content)


def read_json(path: pathlib.Path) -> dict[str, Any]:
    """The table in `path`, empty if there is no such file.

    Raises:
        RequestError: if somebody changed the file into something else.
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
        temporary.write_text(text)


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
