"""Every shipped flagfile runs two steps at toy size."""

import json
import pathlib

import pytest

from tests.conftest import run_main

ROOT = pathlib.Path(__file__).parent.parent
FLAGFILES = sorted((ROOT / "experiments").rglob("*.flags"))
TWO_STEPS = (
    "--teacher_epochs=1",
    "--teacher_batch_size=700",
    "--epochs=1",
    "--steps_per_epoch=2",
    "--batch_size=8",
    "--student_rounds=2",
    "--aggregator_epochs=2",
)


@pytest.mark.parametrize("file", FLAGFILES, ids=lambda f: str(f.relative_to(ROOT)))
def test_flagfile_runs(file, tmp_path, data_dir, monkeypatch):
    monkeypatch.chdir(ROOT)  # nested flagfiles are relative to the project
    code = run_main(
        f"--flagfile={file}",
        f"--workdir={tmp_path}",
        f"--data_dir={data_dir}",
        *TWO_STEPS,
    )
    assert code == 0
    assert json.loads((tmp_path / "results.json").read_text())["student"]["accuracy"]
