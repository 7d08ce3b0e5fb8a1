"""What is no number ends its step; clipping and loss scaling."""

import keras
import numpy as np
import pytest
import tensorflow as tf

from cdfkd_tf.distillation.checkpoints import TrainingState
from cdfkd_tf.distillation.distiller import Distiller
from cdfkd_tf.distillation.numerics import SkippedUpdates, apply_gradients, check_finite
from cdfkd_tf.distillation.optimizers import CoupledSGD, PaperAdam
from cdfkd_tf.distillation.run import named_failures
from cdfkd_tf.distillation.train_teachers import train_classifier
from cdfkd_tf.errors import RunError
from cdfkd_tf.runtime.precision import dtype_policy
from tests.conftest import SHAPE, latents, tiny_distiller, values_of

Scaled = keras.optimizers.LossScaleOptimizer


def spoil(network, kind, value):
    """One number of the first such weight becomes `value`."""
    weight = next(weight for weight in network.weights if kind in weight.path)
    values = np.array(weight)
    values.flat[-1] = value
    weight.assign(values)
    return weight.path


@pytest.mark.parametrize(
    "player, kind, value, word",
    [
        ("student", "moving_mean", np.nan, "NaN"),  # no loss of training sees it
        ("generator", "moving_variance", np.inf, "Inf"),
    ],
)
def test_a_weight_that_is_no_number_ends_its_step_by_name(player, kind, value, word):
    distiller = tiny_distiller()
    path = spoil(getattr(distiller, player), kind, value)
    message = rf"{player}_weights became {word} \(first in {path}\) after 2 updates"
    with pytest.raises(RunError, match=message), named_failures(distiller):
        distiller.train_step(latents())


def test_weights_are_watched_in_kd_too():
    engine = tiny_distiller("dfad", num_teachers=1)
    distiller = Distiller(engine.student, engine.teachers, engine.method)
    distiller.compile(CoupledSGD(0.1))
    spoil(distiller.student, "moving_mean", np.nan)
    with pytest.raises(RunError, match="student_weights"), named_failures(distiller):
        distiller.train_step(np.zeros((4, *SHAPE), "float32"))


def test_the_check_is_not_pruned_from_a_traced_step():
    network = keras.Sequential([keras.Input((2,)), keras.layers.Dense(1)])

    @tf.function
    def step():
        check_finite({"student": network})
        return tf.constant(0)

    step()
    spoil(network, "kernel", np.nan)
    with pytest.raises(tf.errors.InvalidArgumentError, match="student_weights"):
        step()


@pytest.mark.parametrize("scale", [None, 8.0])
@pytest.mark.parametrize("clip, moved", [(0, 5), (10, 5), (1, 1)])
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
    with dtype_policy("mixed_float16"):
        distiller = tiny_distiller()
    distiller.compile(
        Scaled(CoupledSGD(0.01), initial_scale=initial_scale),
        Scaled(PaperAdam(1e-3), initial_scale=initial_scale),
    )
    return distiller


def test_float16_trains_with_losses_and_statistics_in_float32():
    distiller = half_precision()
    assert distiller.student.layers[1].compute_dtype == "float16"
    rounds = distiller.prepare_rounds(latents())
    losses = []
    for _ in range(6):
        distiller.reset_metrics()
        distiller.student_round(rounds, 0)
        losses.append(float(distiller.term_means()["student_header"]))
    distiller.generator_round(latents())
    assert losses[-1] < 0.9 * losses[0]
    assert int(distiller.optimizer.iterations) == 6
    assert int(distiller.generator_optimizer.iterations) == 1
    assert {weight.dtype for weight in distiller.student.weights} == {"float32"}
    assert {value.dtype for value in distiller.term_means().values()} == {tf.float32}


def test_a_gradient_that_overflows_is_skipped_and_counted():
    distiller = half_precision(initial_scale=2.0**60)
    before = values_of(distiller.student)
    generator = [np.array(v) for v in distiller.generator.trainable_variables]
    distiller.train_step(latents())  # finite losses, infinite gradients: no error
    after = values_of(distiller.student)
    for path in before:
        same = np.array_equal(before[path], after[path])
        assert same == ("moving_" not in path), path
    for variable, value in zip(distiller.generator.trainable_variables, generator):
        np.testing.assert_array_equal(variable, value)
    assert float(distiller.optimizer.dynamic_scale) == 2.0**58
    updates = {"student_optimizer": 2, "generator_optimizer": 1}
    SkippedUpdates(distiller.state, updates).on_epoch_end(0, logs := {})
    assert logs == {"student_skipped": 2, "generator_skipped": 1}


def test_a_loss_that_overflows_in_float16_is_no_skipped_step():
    distiller = half_precision()
    noise = latents()
    noise[:, 0] = 1e4
    spoil(distiller.student, "kernel", 6e4)
    message = r"student_\w+ became (NaN|Inf).*mixed_bfloat16"
    with pytest.raises(RunError, match=message), named_failures(distiller):
        distiller.train_step(noise)


def test_a_gradient_that_no_scale_helps_ends_the_run():
    distiller = half_precision()
    distiller.optimizer.dynamic_scale.assign(2.0**-21)
    message = "student_gradient overflows however small"
    with pytest.raises(RunError, match=message), named_failures(distiller):
        distiller.train_step(latents())


def test_a_checkpoint_holds_the_loss_scale(tmp_path):
    first, second = half_precision(), half_precision()
    state = TrainingState(first.state, tmp_path, steps_per_epoch=1)
    first.optimizer.dynamic_scale.assign(2.0**5)
    first.generator_optimizer.step_counter.assign(7)
    state.on_train_begin()
    state.on_epoch_end(0)
    resumed = TrainingState(second.state, tmp_path, steps_per_epoch=1)
    resumed.restore()
    assert resumed.epoch == 1
    assert float(second.optimizer.dynamic_scale) == 2.0**5
    assert int(second.generator_optimizer.step_counter) == 7


def test_a_teacher_whose_loss_is_no_number_ends_at_that_step(tmp_path, eagerly):
    model = keras.Sequential([keras.Input((2,)), keras.layers.Dense(3)])
    images = np.ones((4, 2), "float32"), np.zeros(4, "int64")
    with pytest.raises(RunError, match=r"loss became \w+ in step [23] of epoch 1; it"):
        train_classifier(
            model,
            lambda first_step: tf.data.Dataset.from_tensors(images).repeat(),
            steps_per_epoch=5,
            epochs=1,
            learning_rate=1e30,
            milestones=(),
            checkpoints=tmp_path,
            saving={},
            verbose=0,
        )
