"""Who moves in which step, and that `fit` runs the step that can be read."""

import keras
import numpy as np
import pytest
import tensorflow as tf

from cdfkd_tf.data.noise import latent_dataset
from cdfkd_tf.distillation.optimizers import CoupledSGD, PaperAdam
from cdfkd_tf.distillation.run import named_failures
from cdfkd_tf.errors import RunError
from tests import toys
from tests.rows import rows
from tests.toys import CLASSES, LATENT, moved, values_of

NOISE = toys.latents()


def noise(steps=3, dtype="float32"):
    """Endless elements of the toy engine's data set."""
    data = latent_dataset(8, steps, LATENT, seed=0)
    return data.map(lambda z: tf.cast(z, dtype))


def movers(engine, action):
    """role -> paths that moved while `action` ran."""
    networks = {"student": engine.student, "generator": engine.source.generator}
    for index, teacher in enumerate(engine.teachers.teachers):
        networks[f"teacher {index}"] = teacher.model
    before = {role: values_of(network) for role, network in networks.items()}
    action()
    moves = {
        role: moved(before[role], values_of(network))
        for role, network in networks.items()
    }
    return {role: paths for role, paths in moves.items() if paths}


def statistics(paths):
    return {path for path in paths if "moving_" in path}


def test_student_step_moves_the_whole_student_alone():
    engine = toys.distiller()
    batch = engine.prepare(NOISE)
    moves = movers(engine, lambda: engine.student_step(batch, 0))
    assert moves == {"student": set(values_of(engine.student))}


def test_prepare_moves_only_statistics_of_the_generator():
    engine = toys.distiller()
    moves = movers(engine, lambda: engine.prepare(NOISE))
    assert set(moves) == {"generator"}
    assert moves["generator"] == statistics(moves["generator"])


def test_source_step_moves_the_generator_alone():
    engine = toys.distiller()
    moves = movers(engine, lambda: engine.source_step(NOISE))
    assert set(moves) == {"generator"}
    trainable = engine.source.generator.trainable_variables
    assert {variable.path for variable in trainable} <= moves["generator"]


def test_source_step_moves_the_students_statistics_only_if_told_to():
    engine = toys.distiller(updates_statistics=True)
    moves = movers(engine, lambda: engine.source_step(NOISE))
    assert set(moves) == {"student", "generator"}
    assert moves["student"] == statistics(moves["student"])


def test_fit_moves_student_and_generator_and_no_teacher():
    engine = toys.distiller()
    moves = movers(engine, lambda: engine.fit(noise(), steps_per_epoch=2, verbose=0))
    assert set(moves) == {"student", "generator"}
    assert len(engine.student_variables) == len(engine.student.trainable_variables)
    for teacher in engine.teachers.teachers:
        assert not teacher.model.trainable_variables


def test_train_step_read_line_by_line_is_what_fit_runs_traced(float64):
    traced, eager = toys.distiller(), toys.distiller()
    history = traced.fit(noise(dtype="float64"), steps_per_epoch=2, verbose=0).history
    for element in noise(dtype="float64").take(2):
        logged = eager.train_step(element)
    ours, theirs = toys.state_values(traced), toys.state_values(eager)
    differences = toys.largest_difference(ours, theirs)
    assert len(differences) == 4 and max(differences.values()) < 1e-12
    for name, values in history.items():
        assert float(logged[name]) == pytest.approx(values[0], rel=1e-12)


@pytest.mark.slow
def test_prepare_of_all_steps_at_once_is_prepare_of_each():
    engine = toys.distiller()
    batch = engine.prepare(NOISE)
    for step in range(2):
        images = engine.source.generator(NOISE[:, step], training=True)
        ours = batch.images[step], batch.teachers.logits[step]
        np.testing.assert_allclose(ours[0], images, rtol=1e-5, atol=1e-6)
        logits = engine.teachers(images).logits
        np.testing.assert_allclose(ours[1], logits, rtol=1e-4, atol=1e-5)


def test_logged_terms_are_the_true_ones():
    engine = toys.distiller()
    batch = engine.prepare(NOISE)
    logits = engine.student(batch.images[0], training=True)["logits"]
    expected = np.abs(np.asarray(logits) - batch.teachers.logits[0]).mean()
    engine.student_step(batch, 0)
    logged = engine.term_means()
    np.testing.assert_allclose(logged["student_header"], expected, rtol=1e-4)


def test_test_step_measures_each_header_and_their_mean():
    engine = toys.distiller()
    images, labels = toys.images(40), np.arange(40) % CLASSES
    logits = np.asarray(engine.student(images, training=False)["logits"])
    result = engine.test_step((images, labels))
    for name, predicted in (
        ("accuracy", logits.mean(1)),
        ("header_0_accuracy", logits[:, 0]),
        ("header_1_accuracy", logits[:, 1]),
    ):
        share = np.mean(predicted.argmax(-1) == labels)
        np.testing.assert_allclose(result[name], share)


@pytest.mark.slow
def test_evaluate_gives_the_same_accuracy_with_other_batches():
    engine = toys.distiller()
    images, labels = toys.images(24), np.arange(24) % CLASSES
    data = tf.data.Dataset.from_tensor_slices((images, labels))
    one, other = (
        engine.evaluate(data.batch(size), return_dict=True, verbose=0)
        for size in (24, 8)
    )
    logits = np.asarray(engine.student(images, training=False)["logits"]).mean(1)
    assert one == other
    assert one["accuracy"] == pytest.approx(np.mean(logits.argmax(-1) == labels))


def real_images():
    images = toys.images(8)
    return tf.data.Dataset.from_tensors((images, np.zeros(8, "int64"))).repeat()


def test_kd_learns_from_real_images():
    engine = toys.distiller("kd", num_teachers=1)
    fit = engine.fit(real_images(), steps_per_epoch=4, epochs=4, verbose=0)
    losses = fit.history["student_ensemble"]
    assert losses[-1] < losses[0]
    assert set(engine.state) == {"student", "student_optimizer"}


@pytest.mark.slow
def test_attention_term_trains_the_student_towards_the_teachers_maps():
    row = toys.method(student={"attention": 1.0})
    engine = toys.distiller(row)
    batch, losses = engine.prepare(NOISE), []
    for _ in range(12):
        engine.reset_metrics()
        engine.student_step(batch, 0)
        losses.append(float(engine.term_means()["student_attention"]))
    assert losses[-1] < 0.9 * losses[0]
    # What reads no map does not move: there is nothing to learn from.
    moves = movers(engine, lambda: engine.student_step(batch, 1))["student"]
    assert any("conv" in path for path in moves)


@pytest.mark.slow
def test_attention_term_of_the_generator_moves_it():
    row = toys.method(generator={"attention": -1.0})
    engine = toys.distiller(row)
    moves = movers(engine, lambda: engine.source_step(NOISE))
    assert "generator" in moves and "student" not in moves
    assert float(engine.term_means()["generator_attention"]) > 0


@pytest.mark.slow  # compiling takes its time
def test_xla_compiles_the_same_updates():
    optimizers = [(CoupledSGD(0.01), PaperAdam(1e-3)) for _ in range(2)]
    plain = toys.distiller("dfed", optimizers=optimizers[0])
    compiled = toys.distiller("dfed", optimizers=optimizers[1], xla=True)
    for element in noise().take(1):
        plain.train_step(element)
        compiled.fit(tf.data.Dataset.from_tensors(element), verbose=0)
    for ours, theirs in zip(
        plain.student.get_weights(), compiled.student.get_weights()
    ):
        np.testing.assert_allclose(ours, theirs, rtol=1e-4, atol=1e-5)
    # A weight that is no number is seen outside what XLA compiles.
    weight = compiled.student.trainable_variables[0]
    weight.assign(np.full(weight.shape, np.nan))
    with pytest.raises(tf.errors.InvalidArgumentError, match="not finite: student"):
        compiled.fit(tf.data.Dataset.from_tensors(NOISE), verbose=0)


@rows(
    "step, message",
    [
        (1, r"student_\w+ became NaN after 1 updates.* --student_learning_rate"),
        (0, r"after 0 updates.*Nothing .* had learned by then.*--teacher_input"),
        (2, r"generator_bn became NaN after 2 updates.*Nothing .*--teacher_input"),
    ],
)
def test_a_loss_that_is_no_number_is_named_before_it_moves_weights(step, message):
    engine = toys.distiller(toys.method(generator={"bn": 0.1}))
    latents = toys.latents()
    latents[0, step] = np.nan
    with pytest.raises(RunError, match=message), named_failures(engine):
        engine.train_step(latents)
    for variable in engine.student.trainable_variables:
        assert np.isfinite(keras.ops.convert_to_numpy(variable)).all()
