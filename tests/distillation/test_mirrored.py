"""Several replicas compute what one device computes."""

import json
import pathlib
import subprocess
import sys

import keras
import numpy as np
import pytest

from cdfkd_tf.errors import RequestError
from cdfkd_tf.runtime.devices import choose_strategy, number_that_shares, synchronise

ROOT = pathlib.Path(__file__).parents[2]


@pytest.fixture(scope="module")
def found():
    done = subprocess.run(
        [sys.executable, "-m", "tests.distillation.mirrored_equivalence"],
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads(done.stdout.splitlines()[-1])


CASES = ("cdfkd_mfs", "dfq", "kd", "dfq, low memory", "dfq, resumed")


@pytest.mark.parametrize("method", CASES)  # the first two together have every term
def test_two_mirrored_replicas_equal_one_device(found, method):
    alone, replicas, differences, terms, size = found["compared"][method]
    assert (alone, replicas) == (1, 2)
    players = ("student",) if method == "kd" else ("student", "generator")
    assert set(differences) == {*players, *(f"{name}_optimizer" for name in players)}
    assert max(differences.values()) < 1e-9 < size
    assert max(terms.values()) < 1e-9 and terms


def test_replicas_draw_other_masks_and_repeat_none(found):
    assert len({tuple(mask) for mask in found["masks"]}) == 4


def test_no_replica_moves_where_one_gradient_overflows_then_both_do(found):
    assert found["skipped"] == [[1, 1], [0.75, 0.75]]


def test_mirrored_needs_two_devices():
    with pytest.raises(RequestError, match="at least two devices; this machine shows"):
        choose_strategy("mirrored", 8)


def test_one_device_is_the_default():
    assert choose_strategy("auto", 7).num_replicas_in_sync == 1


@pytest.mark.parametrize(
    "batch, gpus, expected",
    [(256, 0, 1), (256, 1, 1), (256, 3, 2), (256, 5, 4), (256, 7, 4), (256, 8, 8)]
    + [(7, 4, 1), (96, 5, 4), (9, 5, 3)],
)
def test_auto_takes_the_most_gpus_that_share_the_batch(batch, gpus, expected):
    assert number_that_shares(batch, gpus) == expected


def test_synchronise_twice_is_synchronise_once():
    def masks(times):
        layers = [keras.Input((64,)), keras.layers.Dropout(0.5, seed=3)]
        dropout = keras.Sequential(layers)
        for _ in range(times):
            synchronise(dropout)
        return np.asarray(dropout(np.ones((2, 64)), training=True))

    np.testing.assert_array_equal(masks(2), masks(1))
    np.testing.assert_array_equal(masks(1), masks(0))  # one replica: plain Keras
