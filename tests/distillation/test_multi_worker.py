"""Two processes train as one, and their end is no riddle."""

import contextlib
import json
import os
import pathlib
import re
import signal
import socket
import subprocess
import sys
import threading
import time

import keras
import numpy as np
import pytest

from cdfkd_tf.errors import RequestError, RunError
from cdfkd_tf.runtime.multi_worker import Cluster
from tests.toys import Files, run_main

ROOT = pathlib.Path(__file__).parents[2]


@pytest.fixture
def flags(tmp_path, float64):
    """Of a toy run in double precision."""
    files = Files(tmp_path)
    files.make()
    return files.without_data


def free_ports(count):
    with contextlib.ExitStack() as held:
        sockets = [
            held.enter_context(socket.create_server(("", 0))) for _ in "x" * count
        ]
        return [each.getsockname()[1] for each in sockets]


def tf_config(index, addresses):
    task = {"type": "worker", "index": index}
    return json.dumps({"cluster": {"worker": addresses}, "task": task})


def start_both(flags, workdir, *signals):
    """Two processes of one run; `signals`: what each sends itself, and when."""
    addresses = [f"localhost:{port}" for port in free_ports(2)]
    processes = []
    for index in range(2):
        environment = {
            **os.environ,
            "TF_CONFIG": tf_config(index, addresses),
            "SIGNAL_AT": dict(enumerate(signals)).get(index, "0:0"),
        }
        command = [sys.executable, "-m", "tests.distillation.host_process", *flags]
        command += [f"--workdir={workdir}", "--strategy=multi_worker"]
        processes.append(
            subprocess.Popen(
                [*command, "--worker_timeout=60"],
                cwd=ROOT,
                env=environment,
                text=True,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
            )
        )
    done = []
    for process in processes:
        try:
            done.append((*process.communicate(timeout=150), process.returncode))
        finally:
            process.kill()
    return done


def weights_of(workdir, name):
    return keras.saving.load_model(workdir / f"{name}.keras").get_weights()


@pytest.mark.slow
def test_two_worker_replicas_equal_one_process_killed_and_resumed(flags, tmp_path):
    killed = f"{signal.SIGKILL:d}:5"  # within the second epoch
    chief, worker = start_both(flags, tmp_path / "two", "0:0", killed)
    assert worker[2] == -signal.SIGKILL, (chief, worker)
    assert chief[2] == 1, chief
    error = chief[1].splitlines()[-1]
    assert re.match(r"error: Process 1 \(localhost:\d+\) is gone; the last", error)
    assert "Start all processes again with the same command" in error
    chief, worker = start_both(flags, tmp_path / "two")
    assert (chief[2], worker[2]) == (0, 0), (chief, worker)
    assert "Going on after epoch 1 of 2." in chief[0]
    assert "The part of process 1 of 2 is done." in worker[0]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(
            "cdfkd_tf.distillation.build.dtype_policy",
            lambda _: contextlib.nullcontext(),
        )
        flags = [*flags, f"--workdir={tmp_path / 'one'}", "--action=distill"]
        assert run_main(*flags) == 0
    for name in ("student", "generator"):
        pairs = zip(
            weights_of(tmp_path / "one", name), weights_of(tmp_path / "two", name)
        )
        assert max(np.abs(a - b).max() for a, b in pairs) < 1e-6  # files are float32
    assert (tmp_path / "one/history.csv").read_text() == (
        tmp_path / "two/history.csv"
    ).read_text()


@pytest.mark.slow
def test_two_workers_fill_a_bank_by_shares_and_learn_as_one(flags, tmp_path):
    flags = [f for f in flags if not f.startswith("--method")]
    flags += ["--method=cdfkd_plus", "--images=noise", "--bank_size=20"]
    chief, worker = start_both(flags, tmp_path / "two")
    assert (chief[2], worker[2]) == (0, 0), (chief, worker)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(
            "cdfkd_tf.distillation.build.dtype_policy",
            lambda _: contextlib.nullcontext(),
        )
        own = [f"--workdir={tmp_path / 'one'}", "--action=distill"]
        assert run_main(*flags, *own) == 0
    one, *two = (
        np.load(tmp_path / place / "answers_0.npy")
        for place in ("one/bank", "two/bank", "two/bank/process_1")
    )
    assert [len(each) for each in two] == [10, 10]  # each keeps its own alone
    np.testing.assert_allclose(np.concatenate(two), one, rtol=1e-5, atol=1e-5)
    found = [
        json.loads((tmp_path / n / "results.json").read_text()) for n in ("one", "two")
    ]
    assert found[0]["quality"]["class_counts"] == found[1]["quality"]["class_counts"]
    ours, theirs = (weights_of(tmp_path / name, "student") for name in ("one", "two"))
    for a, b in zip(ours, theirs, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-4)  # answers are float32


def cluster_of(index, addresses):
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TF_CONFIG", tf_config(index, addresses))
        return Cluster.from_environment()


def test_a_worker_that_never_comes_is_named_after_a_set_time():
    mine, other = free_ports(2)
    cluster = cluster_of(0, [f"localhost:{mine}", f"localhost:{other}"])
    start = time.monotonic()
    message = (
        rf"number 1 at localhost:{other} did not come within 0.5 s.*worker_timeout"
    )
    with pytest.raises(RunError, match=message):
        cluster.await_peers(0.5)
    assert time.monotonic() - start < 5


def test_workers_that_come_find_each_other():
    addresses = [f"localhost:{port}" for port in free_ports(3)]
    found = []

    def come(index):
        time.sleep(0.3 * index)
        cluster_of(index, addresses).await_peers(20)
        found.append(index)
        with socket.create_server(("", int(addresses[index].split(":")[1]))):
            time.sleep(1.5)  # as TensorFlow does afterwards

    threads = [threading.Thread(target=come, args=(index,)) for index in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(found) == [0, 1, 2]


def test_a_workers_port_that_is_taken_is_said():
    (mine,) = free_ports(1)
    cluster = cluster_of(0, [f"localhost:{mine}"])
    message = rf"cannot listen at port {mine}"
    with (
        socket.create_server(("", mine)),
        pytest.raises(RequestError, match=message),
    ):
        cluster.await_peers(1)


def test_worker_clusters_that_cannot_be(monkeypatch, capsys):
    for text in [
        "",
        "no json",
        "{}",
        '{"cluster": {"ps": ["a:1"]}, "task": {"type": "ps", "index": 0}}',
        '{"cluster": {"worker": ["a"]}, "task": {"type": "worker", "index": 0}}',
        '{"cluster": {"worker": ["a:1"]}, "task": {"type": "worker", "index": 1}}',
    ]:
        monkeypatch.setenv("TF_CONFIG", text)
        assert run_main("--strategy=multi_worker") == 2
        error = capsys.readouterr().err
        assert error.startswith("error: ") and "TF_CONFIG" in error
        assert error.count("\n") == 1


@pytest.mark.slow
def test_a_chief_in_tf_config_is_the_first_worker(monkeypatch):
    cluster = {"worker": ["b:2", "c:3"], "chief": ["a:1"]}
    task = {"type": "worker", "index": 1}
    text = json.dumps({"cluster": cluster, "task": task})
    monkeypatch.setenv("TF_CONFIG", text)
    found = Cluster.from_environment()
    assert (found.addresses, found.index) == (("a:1", "b:2", "c:3"), 2)
    assert json.loads(found.as_json())["cluster"]["worker"] == ["a:1", "b:2", "c:3"]
