"""Who moves in which round, and that the traced loop is the readable one."""

import keras
import numpy as np
import pytest
import tensorflow as tf

from cdfkd_tf.data.noise import latent_dataset
from cdfkd_tf.distillation.distiller import Distiller
from cdfkd_tf.distillation.methods import METHODS
from cdfkd_tf.distillation.run import named_failures
from cdfkd_tf.errors import RequestError, RunError
from cdfkd_tf.networks.classifiers import build_classifier
from cdfkd_tf.networks.students import build_student
from cdfkd_tf.teachers.ensemble import TeacherEnsemble
from tests.conftest import (
    CLASSES,
    LATENT,
    SHAPE,
    latents,
    moved,
    tiny_distiller,
    values_of,
)

NOISE = latents()


def all_values(distiller):
    teachers = [teacher.model for teacher in distiller.teachers.teachers]
    return {
        "student": values_of(distiller.student),
        "generator": values_of(distiller.generator),
        **{f"teacher {i}": values_of(model) for i, model in enumerate(teachers)},
    }


def movers(distiller, action):
    """player -> paths that moved while `action` ran."""
    before = all_values(distiller)
    action()
    after = all_values(distiller)
    moves = {player: moved(before[player], after[player]) for player in before}
    return {player: paths for player, paths in moves.items() if paths}


def statistics(paths):
    return {path for path in paths if "moving_" in path}


def test_student_round_moves_the_whole_student_alone():
    distiller = tiny_distiller()
    rounds = distiller.prepare_rounds(NOISE)
    moves = movers(distiller, lambda: distiller.student_round(rounds, 0))
    assert set(moves) == {"student"}
    assert moves["student"] == set(values_of(distiller.student))


def test_preparing_rounds_moves_only_statistics_of_the_generator():
    distiller = tiny_distiller()
    moves = movers(distiller, lambda: distiller.prepare_rounds(NOISE))
    assert set(moves) == {"generator"}
    assert moves["generator"] == statistics(moves["generator"])


def test_generator_round_moves_the_generator_alone():
    distiller = tiny_distiller()
    moves = movers(distiller, lambda: distiller.generator_round(NOISE))
    assert set(moves) == {"generator"}
    trainable = {variable.path for variable in distiller.generator.trainable_variables}
    assert trainable <= moves["generator"]


def test_generator_round_moves_the_students_statistics_only_if_told_to():
    distiller = tiny_distiller(generator_moves_statistics=True)
    moves = movers(distiller, lambda: distiller.generator_round(NOISE))
    assert set(moves) == {"student", "generator"}
    assert moves["student"] == statistics(moves["student"])


def test_teachers_never_move_in_a_whole_fit(eagerly):
    distiller = tiny_distiller()
    noise = latent_dataset(8, 3, LATENT, seed=0)
    fit = lambda: distiller.fit(noise, steps_per_epoch=3, verbose=0)  # noqa: E731
    assert set(movers(distiller, fit)) == {"student", "generator"}


def test_only_student_and_generator_are_trainable():
    distiller = tiny_distiller()
    count = len(distiller.student.trainable_variables)
    count += len(distiller.generator.trainable_variables)
    assert len(distiller.trainable_variables) == count


@pytest.mark.parametrize("steps_per_execution", [1, 2])
def test_traced_loop_is_the_readable_step(steps_per_execution, float64):
    traced, eager = tiny_distiller(), tiny_distiller()
    traced.compile(
        traced.optimizer,
        traced.generator_optimizer,
        steps_per_execution=steps_per_execution,
    )
    noise = latent_dataset(8, 3, LATENT, seed=0).map(lambda z: tf.cast(z, tf.float64))
    traced.fit(noise, steps_per_epoch=2, shuffle=False, verbose=0)
    for step in noise.take(2):
        eager.train_step(step)
    for name in ("student", "generator"):
        ours, theirs = getattr(traced, name), getattr(eager, name)
        for a, b in zip(ours.get_weights(), theirs.get_weights()):
            np.testing.assert_allclose(a, b, rtol=1e-6, atol=1e-9)


def test_preparing_all_rounds_at_once_is_preparing_each():
    distiller = tiny_distiller()
    rounds = distiller.prepare_rounds(NOISE)
    for k in range(2):
        images = distiller.generator(NOISE[:, k], training=True)
        np.testing.assert_allclose(rounds["images"][k], images, rtol=1e-5, atol=1e-6)
        asked = distiller.ask_teachers(images)
        np.testing.assert_allclose(
            rounds["teachers"]["logits"][k], asked["logits"], rtol=1e-4, atol=1e-5
        )


def test_logged_values_are_the_true_terms():
    distiller = tiny_distiller()
    rounds = distiller.prepare_rounds(NOISE)
    images, teachers = rounds["images"][0], rounds["teachers"]["logits"][0]
    said = np.asarray(distiller.student(images, training=True)["logits"])
    expected = np.abs(said - np.asarray(teachers)).mean()
    distiller.student_round(rounds, 0)
    logged = distiller.term_means()
    np.testing.assert_allclose(logged["student_header"], expected, rtol=1e-4)


def test_accuracies_are_per_header_and_of_their_mean():
    distiller = tiny_distiller()
    images = np.random.default_rng(0).normal(size=(40, *SHAPE)).astype("float32")
    labels = np.arange(40) % CLASSES
    logits = np.asarray(distiller.student(images, training=False)["logits"])
    result = distiller.test_step((images, labels))
    np.testing.assert_allclose(
        result["accuracy"], np.mean(logits.mean(1).argmax(-1) == labels)
    )
    np.testing.assert_allclose(
        result["header_1_accuracy"], np.mean(logits[:, 1].argmax(-1) == labels)
    )


def test_the_inner_engine_learns_from_real_images():
    keras.utils.set_random_seed(0)
    teachers = TeacherEnsemble([build_classifier("wrn10_1", SHAPE, CLASSES)])
    student = build_student("wrn10_1", SHAPE, CLASSES, 1, sharing="single", width=0.5)
    distiller = Distiller(student, teachers, METHODS["dfad"])
    distiller.compile(keras.optimizers.SGD(0.01))
    images = np.random.default_rng(0).normal(size=(32, *SHAPE)).astype("float32")
    history = distiller.fit(images, batch_size=8, epochs=4, verbose=0).history
    assert history["student_ensemble"][-1] < history["student_ensemble"][0]


def mismatch(num_headers, teacher_names, num_classes=CLASSES, method="cdfkd_mfs"):
    teachers = [build_classifier(name, SHAPE, CLASSES) for name in teacher_names]
    sharing = "single" if num_headers == 1 else "multi_level"
    student = build_student("wrn10_1", SHAPE, num_classes, num_headers, sharing=sharing)
    return Distiller(student, TeacherEnsemble(teachers), METHODS[method])


@pytest.mark.parametrize(
    "arguments, message",
    [
        ((2, ["wrn10_1"] * 3), "2 headers and there are 3 teachers"),
        ((2, ["wrn10_1"] * 2, 7), "The student answers 7 classes, the teachers 4"),
        ((2, ["wrn10_1", "wrn16_2"]), r"64 wide, the 2 teachers' features \[64, 128\]"),
        ((1, ["wrn10_1"] * 2), "1 headers and there are 2 teachers"),
    ],
)
def test_what_does_not_fit_together_is_refused(arguments, message):
    with pytest.raises(RequestError, match=message):
        mismatch(*arguments)


def test_a_bn_term_without_any_batch_norm_is_refused():
    model = keras.Sequential(
        [
            keras.Input(SHAPE),
            keras.layers.GlobalAveragePooling2D(),
            keras.layers.Dense(4),
        ]
    )
    student = build_student("wrn10_1", SHAPE, CLASSES, 1, sharing="single")
    with pytest.raises(RequestError, match="no teacher has any"):
        Distiller(student, TeacherEnsemble([model]), METHODS["dfed"])


def test_a_loss_that_is_no_number_is_named_before_it_moves_weights():
    distiller = tiny_distiller()
    distiller.run_eagerly = True
    noise = latents()
    noise[0, 1] = np.nan  # the second round's
    message = r"student_\w+ became NaN after 1 updates"
    with pytest.raises(RunError, match=message), named_failures(distiller):
        distiller.train_step(noise)
    for variable in distiller.student.trainable_variables:
        assert np.isfinite(variable).all()
