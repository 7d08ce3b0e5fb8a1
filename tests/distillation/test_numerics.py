"""What is no number ends its step; clipping and loss scaling."""

import keras
import numpy as np
import pytest
import tensorflow as tf

from cdfkd_tf.distillation.checkpoints import TrainingState
from cdfkd_tf.distillation.numerics import SkippedUpdates, apply_gradients, check_finite
from cdfkd_tf.distillation.optimizers import CoupledSGD, PaperAdam
from cdfkd_tf.distillation.run import named_failures
from cdfkd_tf.errors import RunError
from cdfkd_tf.runtime.precision import dtype_policy
from tests import toys
from tests.rows import rows
from tests.toys import latents, values_of

Scaled = keras.optimizers.LossScaleOptimizer


def spoil(network, kind, value):
    """One number of the first such weight becomes `value`."""
    weight = next(weight for weight in network.weights if kind in weight.path)
    values = np.array(weight)
    values.flat[-1] = value
    weight.assign(values)
    return weight.path


@rows(
    "role, kind, value, word",
    [
        ("student", "moving_mean", np.nan, "NaN"),  # no loss of training sees it
        ("generator", "moving_variance", np.inf, "Inf"),
    ],
)
def test_a_weight_that_is_no_number_ends_its_step_by_name(role, kind, value, word):
    engine = toys.distiller()
    path = spoil(engine.state[role], kind, value)
    message = rf"{role}_weights became {word} \(first in {path}\) after 2 updates"
    with pytest.raises(RunError, match=message), named_failures(engine):
        engine.train_step(latents())


@pytest.mark.slow
def test_a_weight_that_is_no_number_is_seen_in_kd_too():
    engine = toys.distiller("kd", num_teachers=1)
    spoil(engine.student, "moving_mean", np.nan)
    with pytest.raises(RunError, match="student_weights"), named_failures(engine):
        engine.train_step((toys.images(4), np.zeros(4)))


@pytest.mark.slow
def test_check_finite_is_not_pruned_from_a_traced_step():
    network = keras.Sequential([keras.Input((2,)), keras.layers.Dense(1)])

    @tf.function
    def step():
        check_finite({"student": network})
        return tf.constant(0)

    step()
    spoil(network, "kernel", np.nan)
    with pytest.raises(tf.errors.InvalidArgumentError, match="student_weights"):
        step()


@rows("scale", [None, 8.0])
@rows("clip, moved", [(0, 5), (10, 5), (1, 1)])
def test_clipping_shortens_what_is_longer(clip, moved, scale):
    variables = [keras.Variable([0.0]), keras.Variable([0.0, 0.0])]
    gradients = [tf.constant([3.0]), tf.constant([0.0, 4.0])]
    optimizer = keras.optimizers.SGD(1.0)
    if scale:  # gradients of a scaled loss; the limit is that of the unscaled one
        optimizer = Scaled(optimizer, initial_scale=scale)
        gradients = [gradient * scale for gradient in gradients]
    optimizer.build(variables)
    apply_gradients(optimizer, gradients, variables, clip=clip)
    steps = np.concatenate([np.array(variable) for variable in variables])
    np.testing.assert_allclose(steps, np.array([-3, 0, -4]) * moved / 5, rtol=1e-6)


def half_precision(initial_scale=2.0**10):
    optimizers = (
        Scaled(CoupledSGD(0.01), initial_scale=initial_scale),
        Scaled(PaperAdam(1e-3), initial_scale=initial_scale),
    )
    with dtype_policy("mixed_float16"):
        return toys.distiller(optimizers=optimizers)


def test_float16_trains_with_losses_and_statistics_in_float32():
    engine = half_precision()
    assert engine.student.layers[1].compute_dtype == "float16"
    batch, losses = engine.prepare(latents()), []
    for _ in range(6):
        engine.reset_metrics()
        engine.student_step(batch, 0)
        losses.append(float(engine.term_means()["student_header"]))
    engine.source_step(latents())
    assert losses[-1] < losses[0]
    assert int(engine.optimizer.iterations) == 6
    assert int(engine.state["generator_optimizer"].iterations) == 1
    assert {weight.dtype for weight in engine.student.weights} == {"float32"}
    assert {value.dtype for value in engine.term_means().values()} == {tf.float32}


def test_a_gradient_that_overflows_is_skipped_and_counted():
    engine = half_precision(initial_scale=2.0**60)
    before = {role: values_of(engine.state[role]) for role in ("student", "generator")}
    engine.train_step(latents())  # finite losses, infinite gradients: no error
    for role, values in before.items():
        after = values_of(engine.state[role])
        for path in values:
            same = np.array_equal(values[path], after[path])
            assert same == ("moving_" not in path), path
    assert float(engine.optimizer.dynamic_scale) == 2.0**58
    updates = {"student_optimizer": 2, "generator_optimizer": 1}
    SkippedUpdates(engine.state, updates).on_epoch_end(0, logs := {})
    assert logs == {"student_skipped": 2, "generator_skipped": 1}


@pytest.mark.slow
def test_a_loss_that_overflows_in_float16_is_no_skipped_step():
    engine = half_precision()
    noise = latents()
    noise[:, 0] = 1e4
    spoil(engine.student, "kernel", 6e4)
    message = r"student_\w+ became (NaN|Inf).*mixed_bfloat16"
    with pytest.raises(RunError, match=message), named_failures(engine):
        engine.train_step(noise)


def test_a_gradient_that_no_scale_helps_ends_the_run():
    engine = half_precision()
    engine.optimizer.dynamic_scale.assign(2.0**-21)
    message = "student_gradient overflows however small"
    with pytest.raises(RunError, match=message), named_failures(engine):
        engine.train_step(latents())


@pytest.mark.slow
def test_a_checkpoint_holds_the_loss_scale(tmp_path):
    first, second = half_precision(), half_precision()
    state = TrainingState(first.state, tmp_path, steps_per_epoch=1)
    first.optimizer.dynamic_scale.assign(2.0**5)
    first.state["generator_optimizer"].step_counter.assign(7)
    state.on_train_begin()
    state.on_epoch_end(0)
    resumed = TrainingState(second.state, tmp_path, steps_per_epoch=1)
    resumed.restore()
    assert resumed.epoch == 1
    assert float(second.optimizer.dynamic_scale) == 2.0**5
    assert int(second.state["generator_optimizer"].step_counter) == 7
