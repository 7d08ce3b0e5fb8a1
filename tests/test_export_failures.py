"""A failed export leaves no bad file and no half file."""

import pathlib
import shutil
import signal
import subprocess
import sys
import textwrap

import pytest

from cdfkd_tf.errors import RunError
from cdfkd_tf.export.formats import FILES
from tests.test_export import export, predictor_with

NAME = FILES["tflite_float32"]


@pytest.fixture(scope="module")
def predictor():
    return predictor_with("mean", headers=1)


def test_a_file_that_fails_its_check_is_deleted(predictor, tmp_path, monkeypatch):
    for name in (NAME, FILES["tflite_int8"]):
        (tmp_path / name).write_bytes(b"of an earlier predictor")
    monkeypatch.setattr(
        "cdfkd_tf.export.exporting.tflite", lambda *given: b"no network at all"
    )
    with pytest.raises(RunError, match="tflite_float32 file cannot be run"):
        export(predictor, tmp_path, ("tflite_float32",))
    assert list(tmp_path.iterdir()) == []


def test_a_disk_that_fills_up_while_copying_is_told_in_one_line(
    predictor, tmp_path, monkeypatch
):
    def full(*given):  # as shutil tells it, for every file of the folder
        raise shutil.Error([("a", "b", "[Errno 28] No space left on device")] * 9)

    monkeypatch.setattr("cdfkd_tf.export.exporting.shutil.copytree", full)
    with pytest.raises(
        RunError, match=r"saved_model: OSError: \[Errno 28\] No space l"
    ):
        export(predictor, tmp_path, ("saved_model",))
    assert list(tmp_path.iterdir()) == []


def test_files_of_another_predictor_do_not_stay(predictor, tmp_path):
    old = tmp_path / FILES["saved_model"]
    old.mkdir()
    (old / "saved_model.pb").write_bytes(b"")
    (tmp_path / "notes.txt").write_text("mine")
    export(predictor, tmp_path, ("tflite_float32",))
    assert {path.name for path in tmp_path.iterdir()} == {NAME, "notes.txt"}


_CHILD = """
    import os, resource, signal, sys, pathlib
    from cdfkd_tf.export import exporting
    from tests.test_export import export, predictor_with

    directory, how = pathlib.Path(sys.argv[1]), sys.argv[2]

    def die(*given):
        os.kill(os.getpid(), signal.SIGKILL)

    write = pathlib.Path.write_bytes

    def write_half(path, content):
        write(path, content[: len(content) // 2])
        die()

    if how == "kill_while_writing":
        pathlib.Path.write_bytes = write_half
    else:  # a disk with room for the SavedModel's parts, not for the TFLite file
        tflite = exporting.tflite

        def limited(*given):
            content = tflite(*given)
            signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
            resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, 20_000))
            return content

        exporting.tflite = limited
    export(predictor_with("mean", headers=1), directory, ("tflite_float32",))
"""


@pytest.mark.parametrize("how", ["kill_while_writing", "full"])
def test_no_half_file_gets_the_final_name(how, tmp_path):
    child = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(_CHILD), str(tmp_path), how],
        cwd=pathlib.Path(__file__).parent.parent,
        capture_output=True,
        text=True,
        timeout=120,
    )
    if how == "full":
        assert "Cannot export tflite_float32: OSError" in child.stderr
        assert list(tmp_path.iterdir()) == []
    else:
        assert child.returncode == -signal.SIGKILL, child.stderr
        assert not (tmp_path / NAME).exists()
        assert any(tmp_path.iterdir())  # under an unfinished name ...


def test_what_a_killed_export_left_is_cleared(predictor, tmp_path):
    left = tmp_path / ".unfinished-abc"
    left.mkdir()
    (left / "half").write_bytes(b"half")
    export(predictor, tmp_path, ("tflite_float32",))
    assert [path.name for path in tmp_path.iterdir()] == [NAME]
