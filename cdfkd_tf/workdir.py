"""The layout of one run's folder, and what it remembers of finished steps.

Names in this folder are public: other people's scripts read them.
"""

import json
import pathlib
import shutil
from typing import Any

from cdfkd_tf.files import replacing


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

    def clear(self, step: str) -> None:
        """Removes what `step` would otherwise go on with."""
        for folder in self._work_of(step):
            shutil.rmtree(folder, ignore_errors=True)

    def holds(self, step: str) -> bool:
        """Whether `step` left anything that it could go on with."""
        return any(
            folder.is_dir() and any(folder.iterdir()) for folder in self._work_of(step)
        )

    def _work_of(self, step: str) -> list[pathlib.Path]:
        work = {"train_teachers": [self.teachers], "distill": [self.checkpoints]}
        return work.get(step, [])


def read_json(path: pathlib.Path) -> dict[str, Any]:
    """The table in `path`, empty if there is no such file."""
    return json.loads(path.read_text()) if path.exists() else {}


def write_json(path: pathlib.Path, table: dict[str, Any]) -> None:
    """Writes `table` whole or not at all."""
    write_text(path, json.dumps(table, indent=1) + "\n")


def write_text(path: pathlib.Path, text: str) -> None:
    """Writes `text` whole or not at all: under another name, then renamed."""
    with replacing(path) as temporary:
        temporary.write_text(text)
