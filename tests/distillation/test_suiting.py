"""A method keeps the terms that can be fed here, and says what it drops."""

import dataclasses

import keras
import numpy as np
import pytest
from cdfkd_tf.distillation.suiting import build_projection, suit_method
from keras import layers

from cdfkd_tf.distillation.distiller import Distiller
from cdfkd_tf.distillation.methods import METHODS
from cdfkd_tf.errors import DistillationWarning, RequestError
from cdfkd_tf.networks.classifiers import build_classifier
from cdfkd_tf.networks.students import build_student
from cdfkd_tf.teachers.ensemble import TeacherEnsemble
from tests import strangers
from tests.conftest import CLASSES, SHAPE, moved, values_of

ROW = METHODS["cdfkd_mfs"]
IMAGES = np.random.default_rng(0).normal(size=(8, *SHAPE)).astype("float32")


def ensemble(*models):
    return TeacherEnsemble(list(models))


def without_bn():
    return strangers.logits(norm=layers.LayerNormalization)


@pytest.fixture(scope="module")
def student():
    return build_student("wrn10_1", SHAPE, CLASSES, 2)


def test_what_fits_stays(student, recwarn):
    teachers = ensemble(*(build_classifier("wrn10_1", SHAPE, 4) for _ in range(2)))
    assert suit_method(ROW, teachers, student) == ROW
    assert not recwarn


def test_features_of_other_widths_are_left_out_with_a_note(student):
    teachers = ensemble(strangers.logits(), strangers.nested())
    with pytest.warns(DistillationWarning, match=r"64 wide, the teachers' \[5, 6\]"):
        method = suit_method(ROW, teachers, student)
    assert method.student == {**ROW.student, "feature": 0}
    with pytest.raises(RequestError, match="--student_feature_weight=0"):
        suit_method(ROW, teachers, student, asked={"student_feature"})
    assert suit_method(ROW, teachers, student, project=True) == ROW


def test_without_any_bn_the_term_is_left_out_with_a_note(student):
    teachers = ensemble(without_bn(), without_bn())
    row = dataclasses.replace(ROW, student={"header": 1.0})
    with pytest.warns(DistillationWarning, match="No teacher has BatchNormalization"):
        method = suit_method(row, teachers, student)
    assert method.generator == {**ROW.generator, "bn": 0}
    with pytest.raises(RequestError, match="no teacher has any"):
        suit_method(row, teachers, student, asked={"generator_bn"})
    alone = dataclasses.replace(row, generator={"header": 0.0, "bn": 0.1})
    with pytest.raises(RequestError, match="leave the generator another term"):
        suit_method(alone, teachers, student)


def test_one_teacher_without_bn_leaves_the_term_to_the_other(student):
    teachers = ensemble(without_bn(), strangers.logits())
    row = dataclasses.replace(ROW, student={"header": 1.0})
    with pytest.warns(DistillationWarning, match="from the other teachers"):
        assert suit_method(row, teachers, student) == row


def test_a_projection_learns_with_the_student_and_closes_the_gap(student):
    keras.utils.set_random_seed(0)
    teachers = ensemble(strangers.logits(), strangers.nested())
    projection = build_projection(student, teachers, seed=0)
    row = dataclasses.replace(ROW, student={"feature": 1.0})
    distiller = Distiller(student, teachers, row, projection=projection)
    distiller.compile(keras.optimizers.SGD(1e-3))
    assert "projection" in distiller.state
    before = values_of(projection)
    losses = [
        float(distiller.fit(IMAGES, epochs=1, verbose=0).history["student_feature"][0])
        for _ in range(6)
    ]
    assert losses[-1] < losses[0]
    assert len(moved(before, values_of(projection))) == 2
    features = student(IMAGES)["features"]
    for header, width in enumerate((6, 5)):
        mapped = projection(features)[header]
        kernel = projection.get_layer(f"header{header}_projection").kernel
        assert mapped.shape == (8, width)
        np.testing.assert_allclose(
            mapped, np.asarray(features)[:, header] @ np.asarray(kernel), atol=1e-4
        )
