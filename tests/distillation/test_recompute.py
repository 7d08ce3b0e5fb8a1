"""Teachers recomputed one by one: less memory, the same numbers."""

import keras
import pytest
import tensorflow as tf

from cdfkd_tf.distillation.methods import METHODS
from cdfkd_tf.distillation.optimizers import CoupledSGD
from tests import toys
from tests.toys import largest_difference, state_values

TRACED = ("cdfkd_mfs", "dfq")  # together every term; tracing takes the time


@pytest.mark.parametrize(
    "name",
    [
        pytest.param(name, marks=() if name == "cdfkd_mfs" else pytest.mark.slow)
        for name, row in METHODS.items()
        if row.generator and "contrast" not in row.generator  # of fitted images alone
    ],
)
def test_recomputed_teachers_move_the_generator_as_ever(name, float64):
    """Every term of every method: the same gradients, teacher by teacher."""
    values = []
    for recompute in (False, True):
        engine = toys.distiller(
            name,
            num_teachers=3,
            recompute=recompute,
            optimizers=(CoupledSGD(0.02), keras.optimizers.SGD(0.1)),
        )
        before = state_values(engine)
        step = engine.source_step
        (tf.function(step) if name in TRACED else step)(toys.latents())
        values.append({**state_values(engine), "terms": engine.term_means()})
    assert largest_difference(before, values[0])["generator"] > 1e-6
    terms = [value.pop("terms") for value in values]
    assert max(largest_difference(*values).values()) < 1e-11
    assert {k: float(v) for k, v in terms[0].items()} == pytest.approx(
        {k: float(v) for k, v in terms[1].items()}, rel=1e-12
    )
