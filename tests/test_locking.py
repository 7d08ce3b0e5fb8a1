"""One process per workdir, and the dead do not count."""

import json
import os
import socket
import subprocess
import sys

import pytest
from cdfkd_tf.locking import NAME, only_one

from cdfkd_tf.errors import RequestError


def test_the_second_is_refused_and_told_who_is_there(tmp_path):
    with only_one(tmp_path):
        message = rf"in use by process {os.getpid()} on {socket.gethostname()}"
        with pytest.raises(RequestError, match=message), only_one(tmp_path):
            pass
        assert (tmp_path / NAME).exists()
    with only_one(tmp_path):
        pass
    assert list(tmp_path.iterdir()) == []


def lock_of(pid, host=None, **more):
    return json.dumps({"pid": pid, "host": host or socket.gethostname(), **more})


def dead_process():
    process = subprocess.Popen([sys.executable, "-c", ""])
    process.wait()
    return process.pid


@pytest.mark.parametrize(
    "content",
    [
        lambda: lock_of(dead_process()),
        lambda: lock_of(os.getpid(), started="0"),  # a number given again
        lambda: "",  # a disk that was full
        lambda: "[]",
    ],
)
def test_stale_locks_are_taken_over(tmp_path, content):
    (tmp_path / NAME).write_text(content())
    with only_one(tmp_path):
        assert json.loads((tmp_path / NAME).read_text())["pid"] == os.getpid()


def test_another_hosts_lock_is_respected(tmp_path):
    (tmp_path / NAME).write_text(lock_of(1, "elsewhere"))
    message = r"on elsewhere.*remove .*\.lock if that"
    with pytest.raises(RequestError, match=message), only_one(tmp_path):
        pass
    assert (tmp_path / NAME).exists()
