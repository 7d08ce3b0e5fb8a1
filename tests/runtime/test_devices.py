"""Devices are chosen in one place, and what cannot be is refused."""

import pytest
import tensorflow as tf

from cdfkd_tf.errors import RequestError
from cdfkd_tf.runtime.devices import choose_strategy, choose_xla


class Replicas:
    num_replicas_in_sync = 2


def test_choose_strategy_refuses_to_mirror_one_device():
    with pytest.raises(RequestError, match="at least two devices; this machine shows"):
        choose_strategy("mirrored", 8)


def test_choose_strategy_takes_one_device_by_default():
    assert choose_strategy("auto", 7).num_replicas_in_sync == 1


def test_choose_xla_is_off_on_a_cpu_and_refused_for_replicas():
    alone = tf.distribute.get_strategy()
    assert not choose_xla("auto", False, alone)
    assert not choose_xla("false", False, alone)
    assert choose_xla("true", False, alone)
    with pytest.raises(RequestError, match=r"--jit_compile=true compiles for one dev"):
        choose_xla("true", False, Replicas())
