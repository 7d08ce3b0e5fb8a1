"""Which devices share a batch, and what replicas share."""

import keras
import numpy as np
import pytest
import tensorflow as tf

from cdfkd_tf.errors import RequestError
from cdfkd_tf.runtime.devices import (
    choose_strategy,
    choose_xla,
    number_that_shares,
    synchronise,
)


def test_mirrored_needs_two_devices():
    with pytest.raises(RequestError, match="at least two devices; this machine shows"):
        choose_strategy("mirrored", 8)


def test_one_device_is_the_default():
    assert choose_strategy("auto", 7).num_replicas_in_sync == 1


def test_auto_takes_the_most_gpus_that_share_the_batch():
    of_256 = {0: 1, 1: 1, 3: 2, 5: 4, 7: 4, 8: 8}
    others = [(7, 4, 1), (96, 5, 4), (9, 5, 3)]
    for batch, gpus, expected in [*((256, *pair) for pair in of_256.items()), *others]:
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


class Replicas:
    num_replicas_in_sync = 2


def test_choose_xla_is_off_on_a_cpu_and_refused_for_replicas():
    alone = tf.distribute.get_strategy()
    assert not choose_xla("auto", False, alone)
    assert not choose_xla("false", False, alone)
    assert choose_xla("true", False, alone)
    with pytest.raises(RequestError, match=r"--jit_compile=true compiles for one dev"):
        choose_xla("true", False, Replicas())
