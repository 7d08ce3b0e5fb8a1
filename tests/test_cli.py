"""The command line: exit codes, one line on standard error, help."""

import os
import pathlib
import subprocess
import sys

import keras
import pytest

from cdfkd_tf import cli
from cdfkd_tf.config import FIELDS
from tests import toys
from tests.toys import run_main

ROOT = pathlib.Path(__file__).parent.parent


def assert_one_error_line(error):
    assert error.startswith("error: "), error
    assert error.count("\n") == 1 and "Traceback" not in error


def run_process(*arguments):
    command = [sys.executable, str(ROOT / "main.py"), *arguments]
    return subprocess.run(command, capture_output=True, text=True, cwd=ROOT)


def test_main_refuses_flags_before_tensorflow_loads():
    done = run_process("--student_rounds=3")
    assert done.returncode == 2 and done.stdout == ""
    assert_one_error_line(done.stderr)
    assert "--student_steps" in done.stderr
    code = "import sys, cdfkd_tf.cli; print('tensorflow' in sys.modules)"
    loaded = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT
    )
    assert loaded.stdout.strip() == "False"


@pytest.mark.slow
def test_main_of_a_wrong_run_is_one_line_and_exit_code_2(tmp_path):
    done = run_process(
        f"--workdir={tmp_path}",
        "--dataset=digits",
        "--student=vgg",
        "--action=distill",
        "--teachers=missing.keras",
    )
    assert done.returncode == 2
    assert_one_error_line(done.stderr)


def test_main_shows_its_help():
    command = [sys.executable, "main.py", "--help"]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 0 and done.stderr == ""
    assert "--flagfile=FILE" in done.stdout and "  --workdir: " in done.stdout
    reader, writer = os.pipe()
    os.close(reader)  # as `| head` does once it has its lines
    done = subprocess.run(command, stdout=writer, stderr=subprocess.PIPE, cwd=ROOT)
    os.close(writer)
    assert (done.returncode, done.stderr) == (0, b"")


def test_help_has_one_line_for_every_flag_in_its_group():
    lines = cli.help_page().splitlines()
    for name, field in FIELDS.items():
        assert sum(line.startswith(f"  --{name}: ") for line in lines) == 1
        assert field.metadata["group"] in lines


@keras.saving.register_keras_serializable("tests")
class Failing(keras.layers.Layer):
    def compute_output_spec(self, images):
        return keras.KerasTensor(images.shape, images.dtype)

    def call(self, images):
        if images.shape[0] == 8:  # a batch of the run; fewer are tried before it
            raise ArithmeticError("two\nlines")
        return images


def test_an_unexpected_failure_is_one_line_and_exit_code_1(toy_files, tmp_path, capsys):
    """Of a teacher's own layer, which raises whatever it likes."""
    image = keras.Input(toys.SHAPE)
    tensor = keras.layers.Flatten()(Failing()(image))
    model = keras.Model(image, keras.layers.Dense(toys.CLASSES)(tensor))
    model.save(tmp_path / "a.keras")
    flags = (*toy_files.without_data, f"--teachers={tmp_path / 'a.keras'}")
    flags += ("--action=distill", f"--workdir={tmp_path / 'run'}")
    assert run_main(*flags) == 1
    *_, error = capsys.readouterr().err.splitlines(keepends=True)
    assert_one_error_line(error)
    assert "ArithmeticError: " in error and "two lines" in error
    assert "--debug" in error
    assert run_main(*flags, "--debug") == 1
    assert "Traceback" in capsys.readouterr().err


INTERRUPTED = """
import signal, sys
from absl import flags
from cdfkd_tf import cli
from cdfkd_tf.pipeline import run

class Finalised:
    def __del__(self):
        signal.raise_signal(signal.SIGTERM)

def lost(config):
    import time
    del [Finalised()][0]  # what is raised there is lost
    time.sleep(10)

run.run = lost
sys.exit(cli.main(["main.py", "--seed=1"], flags.FlagValues()))
"""


@pytest.mark.slow
def test_an_interruption_that_python_drops_comes_again():
    command = [sys.executable, "-c", INTERRUPTED]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 130
    assert "the same command continues" in done.stderr


@pytest.mark.slow
def test_a_dropped_interruption_does_not_reach_what_follows_the_run():
    """A second run in the same process, which would end with exit 130."""
    program = INTERRUPTED.replace("time.sleep(10)", "pass").replace("sys.exit", "")
    program += "signal.signal(signal.SIGTERM, lambda *_: sys.exit(7))\n"
    program += "import time; time.sleep(0.5)\n"
    command = [sys.executable, "-c", program]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 0, done.stderr


def test_package_runs_as_a_module():
    command = [sys.executable, "-m", "cdfkd_tf", "--help"]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert "--teachers" in done.stdout
