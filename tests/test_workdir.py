"""The run's folder: one process at a time, records that are whole, honest results."""

import json
import os
import signal
import subprocess
import sys
import threading

import pytest

from cdfkd_tf.errors import RequestError
from cdfkd_tf.workdir import Results, Workdir, read_history, read_results, summary

# The lock.

HOLDING = """
import pathlib, sys, time
from cdfkd_tf.workdir import Workdir
with Workdir(sys.argv[1]).locked():
    print("locked", flush=True)
    time.sleep(60)
"""


@pytest.fixture
def holder(tmp_path):
    """Another process that holds the lock."""
    command = [sys.executable, "-c", HOLDING, str(tmp_path)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    assert process.stdout.readline() == "locked\n"
    yield process
    process.kill()
    process.wait()


def test_lock_refuses_a_second_process_and_names_the_first(tmp_path, holder):
    message = f"is in use by process {holder.pid} on "
    with pytest.raises(RequestError, match=message), Workdir(tmp_path).locked():
        pass


@pytest.mark.slow
def test_lock_is_free_once_its_process_is_killed(tmp_path, holder):
    holder.send_signal(signal.SIGKILL)
    holder.wait()
    with Workdir(tmp_path).locked():  # whatever note the dead have left
        note = (tmp_path / ".lock.holder").read_text()
        assert note.startswith(f"process {os.getpid()} on ")


def test_lock_refuses_a_second_use_in_one_process(tmp_path):
    with Workdir(tmp_path).locked():
        message = f"in use by process {os.getpid()}"
        with pytest.raises(RequestError, match=message), Workdir(tmp_path).locked():
            pass
        refused = []

        def enter():
            try:
                with Workdir(tmp_path).locked():
                    pass
            except RequestError as error:
                refused.append(str(error))

        thread = threading.Thread(target=enter)
        thread.start()
        thread.join()
        assert len(refused) == 1
    with Workdir(tmp_path).locked():  # and leaves no one else's way
        pass
    assert {path.name for path in tmp_path.iterdir()} <= {".lock"}


@pytest.mark.slow
def test_lock_is_free_after_an_error(tmp_path):
    with pytest.raises(ValueError, match="inside"), Workdir(tmp_path).locked():
        raise ValueError("inside")
    with Workdir(tmp_path).locked():
        pass


@pytest.mark.slow
def test_lock_does_not_mind_files_of_earlier_versions(tmp_path):
    for content in ["", "[]", '{"pid": 1, "host": "elsewhere"}']:
        (tmp_path / ".lock").write_text(content)
        with Workdir(tmp_path).locked():
            assert str(os.getpid()) in (tmp_path / ".lock.holder").read_text()
        assert not (tmp_path / ".lock.holder").exists()


# The journal of steps.


def test_record_tells_what_was_begun_and_what_is_done(tmp_path):
    workdir = Workdir(tmp_path)
    assert workdir.record_of("distill") == {}
    workdir.note("distill", {"epochs": 3}, done=False)
    workdir.note("export", {"epochs": 3}, done=True)
    assert workdir.record_of("distill") == {"options": {"epochs": 3}, "done": False}
    workdir.forget(("export",))
    assert workdir.record_of("export") == {}
    assert workdir.record_of("distill")["done"] is False


def test_refused_step_leaves_everything_as_it_was(tmp_path):
    workdir = Workdir(tmp_path)
    workdir.note("distill", {"epochs": 3}, done=True)
    (tmp_path / "checkpoints").mkdir()
    (tmp_path / "checkpoints/a").write_text("state")
    files = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    with (
        pytest.raises(RequestError),
        workdir.unchanged_if_refused("distill", anew=True),
    ):
        workdir.note("distill", {"epochs": 4}, done=False)
        (tmp_path / "checkpoints").mkdir()
        (tmp_path / "checkpoints/b").touch()
        raise RequestError("wrong after all")
    after = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    assert after == files


def test_failed_step_keeps_what_it_has_done(tmp_path):
    workdir = Workdir(tmp_path)
    (tmp_path / "checkpoints").mkdir()
    (tmp_path / "checkpoints/a").write_text("state")
    with (
        pytest.raises(RuntimeError),
        workdir.unchanged_if_refused("distill", anew=True),
    ):
        assert not (tmp_path / "checkpoints").exists()  # put away: begun anew
        (tmp_path / "checkpoints").mkdir()
        (tmp_path / "checkpoints/b").touch()
        raise RuntimeError("in the middle of it")
    assert [path.name for path in (tmp_path / "checkpoints").iterdir()] == ["b"]


def test_history_has_one_value_per_epoch_and_none_where_not_measured(tmp_path):
    file = tmp_path / "history.csv"
    assert read_history(file) == {}
    file.write_text("epoch,loss,val_accuracy\n1,0.5,\n2,0.25,0.75\n")
    history = {"loss": [0.5, 0.25], "val_accuracy": [None, 0.75]}
    assert read_history(file) == history


# results.json.


def results_of(tmp_path, seed=0, versions="3"):
    about = {"dataset": "digits", "method": "dfed", "seed": seed}
    about["versions"] = {"keras": versions}
    aggregator = {"kind": "mean", "labelled_samples": 0}
    return Results(tmp_path / "results.json", about, aggregator)


@pytest.fixture
def results(tmp_path):
    return results_of(tmp_path)


def read(results):
    return json.loads(results.file.read_text())


def test_results_merge_and_the_rest_is_null(results):
    results.record("student", {"accuracy": 0.5})
    results.record("student", {"agreement": 0.25})
    found = read(results)
    student = found["student"]
    assert (student["accuracy"], student["agreement"]) == (0.5, 0.25)
    assert student["parameters"] is None and student["header_accuracy"] is None
    assert found["exports"] == [] and found["seconds"]["distill"] is None
    assert found["format"] == 2 and found["aggregator"]["labelled_samples"] == 0


def test_results_of_a_step_that_runs_again_blank_what_depends_on_it(results):
    results.record("student", {"accuracy": 0.5})
    values = dict.fromkeys(("bytes", "accuracy", "agreement", "latency_ms"))
    results.record("exports", [{"format": "saved_model", **values}])
    results.begin("fit_aggregator")
    assert read(results)["exports"] == []
    assert read(results)["student"]["accuracy"] == 0.5
    results.begin("distill")
    assert read(results)["student"]["accuracy"] is None


def test_results_are_of_the_present_request(tmp_path, results):
    results.record("student", {"accuracy": 0.5})
    later = results_of(tmp_path, seed=3, versions="4")
    later.record("seconds", {"distill": 1.0})
    assert (read(later)["seed"], read(later)["versions"]) == (3, {"keras": "4"})
    assert read(later)["student"]["accuracy"] == 0.5


@pytest.mark.slow
def test_results_of_another_format_are_refused(results):
    results.record("seconds", {"distill": 1.0})
    results.file.write_text(json.dumps({**read(results), "format": 1}))
    with pytest.raises(RequestError, match="format is 1, this version writes 2"):
        read_results(results.file)


def test_summary_leaves_out_what_was_not_measured(results):
    together = {"parameters": 1234, "accuracy": 0.5, "task_accuracy": 0.75}
    results.record("teacher_ensemble", together)
    text = summary(read(results), "runs/x")
    assert "1,234 weights" in text and "50.00%" in text and "runs/x" in text
    assert "75.00% among one's classes" in text
    assert "student" not in text


@pytest.mark.slow
def test_summary_without_any_measured_value_is_one_line(results):
    results.record("seconds", {"distill": 1.0})
    assert summary(read(results), "runs/x") == "The results so far are in runs/x"
