"""A student really learns from own teachers: README's example, made smaller."""

import json
import pathlib

import pytest

from experiments.own_teachers import make_teachers
from tests.toys import run_main

ROOT = pathlib.Path(__file__).parent.parent


@pytest.mark.slow
def test_one_command_distils_own_teachers(tmp_path):
    make_teachers.main([f"--folder={tmp_path}", "--epochs=4"])
    files = ",".join(str(tmp_path / f"{name}.keras") for name in "abc")
    code = run_main(
        f"--flagfile={ROOT / 'experiments/small_images.flags'}",
        f"--teachers={files}",
        "--dataset=folder",
        f"--image_folder={tmp_path / 'images'}",
        "--image_shape=12,12,1",  # teachers see it enlarged
        "--epochs=8",
        "--student_steps=3",
        "--export_formats=",
        "--noreport",
        f"--workdir={tmp_path / 'run'}",
    )
    assert code == 0
    results = json.loads((tmp_path / "run/results.json").read_text())
    assert results["teacher_ensemble"]["accuracy"] > 0.9
    assert results["student"]["accuracy"] > 0.6  # chance is 0.1
