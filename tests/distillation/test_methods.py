"""The table: which terms each method has, and what they are."""

import dataclasses

import numpy as np
import pytest

from cdfkd_tf.config import RunConfig
from cdfkd_tf.distillation.methods import (
    METHODS,
    TERMS,
    Answers,
    terms_of,
    with_overrides,
)
from cdfkd_tf.errors import RequestError
from tests.conftest import latents, tiny_distiller


def lesson(distiller):
    """Images of a generator and what the teachers say of them."""
    images = distiller.generator(latents()[:, 0], training=True)
    return images, distiller.ask_teachers(images)


@pytest.fixture
def answers():
    rng = np.random.default_rng(0)

    def draw(*shape):
        return rng.normal(size=shape).astype("float32")

    statistics = (draw(3), np.abs(draw(3)))
    return Answers(
        student_logits=draw(6, 2, 5),
        student_features=draw(6, 2, 7),
        teacher_logits=draw(6, 2, 5),
        teacher_features=[draw(6, 7), draw(6, 7)],
        teacher_bn=[
            [(draw(6, 4, 4, 3), *statistics), (draw(6, 2, 2, 3), *statistics)],
            [(draw(6, 4, 4, 3), *statistics)],
        ],
    )


def test_every_weight_flag_is_a_known_term():
    flags = [name for name in vars(RunConfig()) if name.endswith("_weight")]
    for name in flags:
        player, _, term = name.removesuffix("_weight").partition("_")
        assert player in ("student", "generator") and term in TERMS
    used = {
        f"{player}_{term}_weight"
        for method in METHODS.values()
        for player in ("student", "generator")
        for term in getattr(method, player)
    }
    assert used <= set(flags)


def test_cdfkd_mfs_is_asymmetric():
    method = METHODS["cdfkd_mfs"]
    assert method.student == {"header": 1.0, "feature": 0.2, "ensemble": 5.0}
    assert method.generator == {"header": -1.0, "bn": 0.1}


def test_ensemble_compares_the_mean_header_with_the_mean_teacher(answers):
    ours = terms_of(answers, {"ensemble": 5.0}, METHODS["cdfkd_mfs"])["ensemble"]
    gap = answers.student_logits.mean(1) - answers.teacher_logits.mean(1)
    np.testing.assert_allclose(ours, np.abs(gap).mean(), rtol=1e-6)


def test_bn_weighs_each_teachers_first_layer_five_times(answers):
    ours = terms_of(answers, {"bn": 0.1}, METHODS["cdfkd_mfs"])["bn"]
    total = 0.0
    for teacher in answers.teacher_bn:
        for index, (inputs, mean, variance) in enumerate(teacher):
            gap = np.linalg.norm(inputs.var((0, 1, 2)) - variance)
            gap += np.linalg.norm(inputs.mean((0, 1, 2)) - mean)
            total += gap * (5 if index == 0 else 1)
    np.testing.assert_allclose(ours, total / 2, rtol=1e-5)


def test_a_term_of_weight_zero_is_not_computed(answers):
    terms = terms_of(answers, {"header": 1.0, "feature": 0.0}, METHODS["cdfkd_mfs"])
    assert set(terms) == {"header"}


def test_overrides_change_only_what_they_name():
    method = with_overrides(
        METHODS["cdfkd_mfs"], student_feature=0.0, generator_bn=None
    )
    assert method.student == {"header": 1.0, "feature": 0.0, "ensemble": 5.0}
    assert method.generator == METHODS["cdfkd_mfs"].generator


def test_unknown_term_is_refused():
    with pytest.raises(RequestError, match="No term 'student_colour'"):
        with_overrides(METHODS["dfad"], student_colour=1.0)


def test_a_student_with_nothing_to_learn_is_refused():
    with pytest.raises(RequestError, match="all its weights are 0"):
        with_overrides(METHODS["dfad"], student_ensemble=0.0)


def test_temperature_softens_the_divergence(answers):
    method = dataclasses.replace(METHODS["kd"], temperature=4.0)
    ours = terms_of(answers, method.student, method)["ensemble"]
    student = log_softmax(answers.student_logits.mean(1) / 4)
    teacher = log_softmax(answers.teacher_logits.mean(1) / 4)
    expected = 16 * (np.exp(teacher) * (teacher - student)).sum(-1).mean()
    np.testing.assert_allclose(ours, expected, rtol=1e-5)


def log_softmax(logits):
    return logits - np.log(np.exp(logits).sum(-1, keepdims=True))


def test_a_method_without_a_generator_has_nothing_to_weigh_for_it():
    with pytest.raises(RequestError, match=r"bn_weight=0\.1.*no generator"):
        with_overrides(METHODS["kd"], generator_bn=0.1)
    assert with_overrides(METHODS["kd"], generator_bn=0.0) == METHODS["kd"]


DATA_FREE = sorted(name for name, method in METHODS.items() if method.generator)


@pytest.mark.parametrize("num_teachers", [1, 3, 5])
@pytest.mark.parametrize("name", DATA_FREE)
def test_each_method_takes_any_number_of_teachers(name, num_teachers):
    """And logs exactly its terms, all finite."""
    distiller = tiny_distiller(name, num_teachers=num_teachers, mixed=True)
    distiller.update_student(*lesson(distiller))
    distiller.update_generator(latents()[:, 0])
    logged = distiller.term_means()
    expected = {f"student_{t}" for t, w in distiller.method.student.items() if w}
    expected |= {f"generator_{t}" for t, w in distiller.method.generator.items() if w}
    assert set(logged) == expected
    assert all(np.isfinite(value) for value in logged.values())
