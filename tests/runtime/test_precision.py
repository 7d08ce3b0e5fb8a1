"""Too little memory is met with advice; global state comes back as it was."""

import random

import keras
import numpy as np
import pytest
import tensorflow as tf

from cdfkd_tf.errors import RunError
from cdfkd_tf.runtime.precision import (
    dtype_policy,
    global_state_restored,
    make_deterministic,
    memory_advice,
)
from tests.rows import rows

OOM = tf.errors.ResourceExhaustedError(
    None, None, "OOM when allocating tensor with shape[256,64,32,32] on /device:GPU:0"
)


@rows("error", [OOM, MemoryError()])
def test_memory_advice_names_what_needs_less(error):
    message = r"does not suffice.* needs less of it: --batch_size=8, --other\."
    with (
        pytest.raises(RunError, match=message),
        memory_advice("--batch_size=8", "--other"),
    ):
        raise error


@pytest.mark.slow
def test_memory_advice_names_what_was_too_large():
    message = r"for a tensor of \[256,64,32,32\] on GPU:0"
    with pytest.raises(RunError, match=message), memory_advice("x"):
        raise OOM


@pytest.mark.slow
def test_memory_advice_does_not_take_a_full_disk_for_memory():
    full = tf.errors.ResourceExhaustedError(None, None, "a.index; No space left")
    with pytest.raises(tf.errors.ResourceExhaustedError), memory_advice("x"):
        raise full


def test_dtype_policy_is_that_of_networks_built_within():
    with dtype_policy("mixed_bfloat16"):
        assert keras.layers.Dense(1).compute_dtype == "bfloat16"
    assert keras.layers.Dense(1).compute_dtype == "float32"


def draws():
    return (
        random.random(),
        float(np.random.random()),
        float(tf.random.normal(())),
        float(keras.random.normal(())),
    )


def test_global_state_restored_leaves_draws_as_they_would_have_been():
    keras.utils.set_random_seed(0)
    draws()
    expected = draws()
    keras.utils.set_random_seed(0)
    draws()
    with global_state_restored():
        keras.utils.set_random_seed(7)
        make_deterministic("true")
        draws()
    assert draws() == pytest.approx(expected)
    random_op = tf.random.stateless_normal((2,), (0, 1))
    assert random_op.shape == (2,)


def test_global_state_restored_leaves_op_determinism_as_it_was():
    from tensorflow.python.framework import config

    before = config.is_op_determinism_enabled()
    config.disable_op_determinism()
    try:
        with global_state_restored():
            make_deterministic("true")
            assert config.is_op_determinism_enabled()
        assert not config.is_op_determinism_enabled()
    finally:
        if before:
            config.enable_op_determinism()
