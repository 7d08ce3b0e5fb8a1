"""The layout of one run's folder, and what it remembers of finished steps.

Names in this folder are public: other people's scripts read them.
"""

import json
import os
import pathlib
import shutil
from typing import Any


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
        self.results = self.path / "results.json"
        self.config = self.path / "config.json"
        self.flags = self.path / "run.flags"
        self._finished = self.path / "finished.json"

    def teacher(self, index: int) -> pathlib.Path:
        """File of the teacher with this index."""
        return self.teachers / f"teacher_{index}.keras"

    def finished(self) -> dict[str, dict[str, Any]]:
        """Step -> the options it was finished with."""
        return read_json(self._finished)

    def finish(self, step: str, options: dict[str, Any]) -> None:
        """Remembers that `step` is done with these options."""
        write_json(self._finished, {**self.finished(), step: options})

    def forget(self, steps: list[str]) -> None:
        """Drops the memory of these steps; their files stay until overwritten."""
        kept = {k: v for k, v in self.finished().items() if k not in steps}
        if kept != self.finished():
            write_json(self._finished, kept)

    def read_results(self) -> dict[str, Any]:
        """results.json, or an empty table."""
        return read_json(self.results)

    def clear_checkpoints(self) -> None:
        """Removes the training state."""
        shutil.rmtree(self.checkpoints, ignore_errors=True)


def read_json(path: pathlib.Path) -> dict[str, Any]:
    """The table in `path`, empty if there is no such file."""
    return json.loads(path.read_text()) if path.exists() else {}


def write_json(path: pathlib.Path, table: dict[str, Any]) -> None:
    """Writes `table` whole or not at all."""
    write_text(path, json.dumps(table, indent=1) + "\n")


def write_text(path: pathlib.Path, text: str) -> None:
    """Writes `text` whole or not at all: under another name, then renamed."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(path.name + ".tmp")
    temporary.write_text(text)
    os.replace(temporary, path)
