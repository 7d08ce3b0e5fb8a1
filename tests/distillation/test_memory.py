"""Less memory, same numbers; too little of it: advice."""

import keras
import pytest
import tensorflow as tf

from cdfkd_tf.distillation.methods import METHODS
from cdfkd_tf.errors import RunError
from cdfkd_tf.runtime.precision import memory_advice
from tests.small import (
    largest_difference,
    small_distiller,
    small_latents,
    state_values,
)

TRACED = ("cdfkd_mfs", "dfq")  # together every term; tracing takes the time


@pytest.mark.parametrize("method", [m for m, row in METHODS.items() if row.generator])
def test_low_memory_moves_the_generator_as_ever(method, float64):
    """Every term of every method: the same gradients, teacher by teacher."""
    values = []
    for low_memory in (False, True):
        distiller = small_distiller(method, num_teachers=3, low_memory=low_memory)
        distiller.compile(distiller.optimizer, keras.optimizers.SGD(0.1))
        before = state_values(distiller)
        step = distiller.update_generator
        (tf.function(step) if method in TRACED else step)(small_latents()[:, 0])
        values.append({**state_values(distiller), "terms": distiller.term_means()})
    assert largest_difference(before, values[0])["generator"] > 1e-6
    terms = [value.pop("terms") for value in values]
    assert max(largest_difference(*values).values()) < 1e-12
    assert {k: float(v) for k, v in terms[0].items()} == pytest.approx(
        {k: float(v) for k, v in terms[1].items()}, rel=1e-12
    )


OOM = tf.errors.ResourceExhaustedError(
    None, None, "OOM when allocating tensor with shape[256,64,32,32] on /device:GPU:0"
)


@pytest.mark.parametrize("error", [OOM, MemoryError()])
def test_too_little_memory_is_answered_with_advice(error):
    message = r"does not suffice.* needs less of it: --batch_size=8, --low_memory\."
    with (
        pytest.raises(RunError, match=message),
        memory_advice("--batch_size=8", "--low_memory"),
    ):
        raise error


def test_the_advice_names_what_was_too_large():
    message = r"for a tensor of \[256,64,32,32\] on GPU:0"
    with pytest.raises(RunError, match=message), memory_advice("x"):
        raise OOM


def test_a_full_disk_is_not_taken_for_memory():
    full = tf.errors.ResourceExhaustedError(None, None, "a.index; No space left")
    with pytest.raises(tf.errors.ResourceExhaustedError), memory_advice("x"):
        raise full
