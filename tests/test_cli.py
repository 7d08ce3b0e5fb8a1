"""Wrong requests end with one line and exit code 2, in a process of their own too."""

import pathlib
import signal
import subprocess
import sys
import time

import pytest

from cdfkd_tf.networks.classifiers import build_classifier
from tests.conftest import TOY, run_main

ROOT = pathlib.Path(__file__).parent.parent


def assert_one_error_line(error):
    assert error.startswith("error: "), error
    assert error.count("\n") == 1 and "Traceback" not in error


@pytest.mark.parametrize(
    "arguments, words",
    [
        (["--colour=red"], "Unknown command line flag 'colour'"),
        (["--epochs=-1"], "--epochs must be at least 1; got -1"),
        (["--flagfile=missing.flags"], "missing.flags"),
        (["--student=vgg"], "Unknown network 'vgg'"),
        (["--generator=gan"], "Unknown generator 'gan'"),
        (["--teachers=missing.keras"], "no teacher file missing.keras"),
        (["--teachers={broken}"], "Cannot read teacher"),
        (["--teachers={folder}"], "is a folder: expected a .keras file"),
        (["--teachers={other}"], "answers 7 classes; --dataset=digits has"),
        (["--teachers={good}", "--method=dfad", "--student_headers=multi_level"], None),
        (["--teachers={good},{good}", "--student_headers=single"], "1 headers and"),
        (["--method=kd", "--generator_bn_weight=1"], "has no generator"),
        (["--method=kd", "--evaluation_split=none"], "learns from real images"),
        (["--temperature=4"], "--method=cdfkd_mfs compares logits"),
        (["--dataset=mini_imagenet", "--teachers="], "downloads/manual/mini_imagenet"),
        (["--teachers={good}", "--action=evaluate"], "Run --action=distill first"),
    ],
)
def test_wrong_requests_get_one_line(arguments, words, tmp_path, data_dir, capsys):
    (tmp_path / "broken.keras").write_bytes(b"no model")
    build_classifier("wrn10_1", (16, 16, 1), 7).save(tmp_path / "other.keras")
    build_classifier("wrn10_1", (16, 16, 1), 10).save(tmp_path / "good.keras")
    files = {name: tmp_path / f"{name}.keras" for name in ("broken", "other", "good")}
    arguments = [argument.format(folder=tmp_path, **files) for argument in arguments]
    if "--teachers=" in arguments:
        arguments.append("--action=train_teachers")
    base = ["--dataset=digits", "--action=distill", f"--data_dir={data_dir}"]
    base += [f"--workdir={tmp_path / 'run'}", "--evaluate_every=0", *TOY]
    code = run_main(*base, *arguments)
    error = capsys.readouterr().err
    if words is None:  # the odd one in: a right request that looks wrong
        assert code == 0, error
        return
    assert code == 2
    assert_one_error_line(error)
    assert words in error


def run_process(*arguments):
    command = [sys.executable, str(ROOT / "main.py"), *arguments]
    return subprocess.run(command, capture_output=True, text=True, cwd=ROOT)


def test_a_process_says_one_line_and_exits_with_2(tmp_path):
    done = run_process(
        f"--workdir={tmp_path}",
        "--dataset=digits",
        "--student=vgg",
        "--action=distill",
        "--teachers=missing.keras",
    )
    assert done.returncode == 2
    assert_one_error_line(done.stderr)


def test_flags_are_refused_before_tensorflow_loads():
    done = run_process("--epochs=none")
    assert done.returncode == 2
    assert_one_error_line(done.stderr)
    code = "import sys, cdfkd_tf.cli; print('tensorflow' in sys.modules)"
    loaded = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT
    )
    assert loaded.stdout.strip() == "False"


def test_help_is_readable():
    done = run_process("--help")
    assert done.returncode == 0 and done.stderr == ""
    assert "--flagfile=FILE" in done.stdout and "  --workdir: " in done.stdout


def test_an_unexpected_failure_is_one_line_and_exit_code_1(monkeypatch, capsys):
    def fail(config):
        raise OSError("No space left\non device")

    monkeypatch.setattr("cdfkd_tf.runs.run", fail)
    assert run_main() == 1
    error = capsys.readouterr().err
    assert_one_error_line(error)
    assert "OSError: No space left on device" in error and "--debug" in error


def test_an_interruption_that_python_drops_comes_again(monkeypatch, capsys):
    class Finalised:
        def __del__(self):
            signal.raise_signal(signal.SIGTERM)

    def run(config):
        del [Finalised()][0]  # what is raised there is lost
        for _ in range(100):
            time.sleep(0.1)

    monkeypatch.setattr("cdfkd_tf.runs.run", run)
    assert run_main() == 130
    assert "the same command continues" in capsys.readouterr().err
