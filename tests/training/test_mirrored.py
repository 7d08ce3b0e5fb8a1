"""Several replicas compute what one device computes."""

import json
import pathlib
import subprocess
import sys

import pytest

from cdfkd_tf.errors import RequestError
from cdfkd_tf.training.strategy import choose_strategy

ROOT = pathlib.Path(__file__).parents[2]


@pytest.mark.parametrize("method", ["cdfkd_mfs", "dfq"])  # together: every term
def test_two_mirrored_replicas_equal_one_device(method):
    done = subprocess.run(
        [sys.executable, "-m", "tests.training.mirrored_equivalence", method],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    )
    said = json.loads(done.stdout.splitlines()[-1])
    alone, replicas, differences, terms, size, skipped = said
    assert (alone, replicas) == (1, 2)
    if method == "dfq":  # no replica moves where one gradient overflows, then both do
        assert skipped == [[1, 1], [0.75, 0.75]]
    assert set(differences) == {
        "student",
        "student_optimizer",
        "generator",
        "generator_optimizer",
    }
    assert max(differences.values()) < 1e-9 < size
    assert max(terms.values()) < 1e-9


def test_mirrored_needs_two_devices():
    with pytest.raises(RequestError, match="at least two devices; this machine shows"):
        choose_strategy("mirrored", 8)


def test_one_device_is_the_default():
    assert choose_strategy("auto", 7).num_replicas_in_sync == 1
