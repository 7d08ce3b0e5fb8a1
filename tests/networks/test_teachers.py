"""Teachers are frozen, and what enters their BatchNormalizations is seen."""

import keras
import numpy as np
import pytest
from keras import layers

from cdfkd_tf.errors import RequestError
from cdfkd_tf.networks.classifiers import build_classifier
from cdfkd_tf.networks.loading import load_classifier
from cdfkd_tf.teachers.teacher import Teacher, TeacherEnsemble

IMAGES = np.random.default_rng(0).normal(size=(4, 8, 8, 1)).astype("float32")


def nested_classifier():
    backbone = keras.Sequential(
        [layers.Conv2D(4, 3), layers.BatchNormalization(), layers.ReLU()]
    )
    image = keras.Input((8, 8, 1))
    tensor = layers.BatchNormalization()(backbone(image))
    features = layers.GlobalAveragePooling2D()(tensor)
    return keras.Model(image, layers.Dense(4)(features))


def test_bn_inputs_come_in_forward_order_at_any_depth():
    model = nested_classifier()
    _, features, bn = Teacher(model)(IMAGES)
    convolved = model.layers[1].layers[0](IMAGES)
    assert [inputs.shape for inputs, _, _ in bn] == [(4, 6, 6, 4), (4, 6, 6, 4)]
    np.testing.assert_allclose(bn[0][0], convolved, rtol=1e-5)
    assert features.shape == (4, 4)


def test_every_bn_of_our_own_teachers_is_seen():
    model = build_classifier("wrn16_1", (8, 8, 1), 4)
    bns = [x for x in model.layers if isinstance(x, layers.BatchNormalization)]
    assert len(Teacher(model)(IMAGES)[2]) == len(bns) == 13


def test_recording_leaves_the_answer_as_it_was():
    model = build_classifier("wrn10_1", (8, 8, 1), 4)
    before = model(IMAGES, training=False)
    np.testing.assert_array_equal(Teacher(model)(IMAGES)[0], before)
    np.testing.assert_array_equal(model(IMAGES, training=False), before)


@pytest.mark.parametrize(
    "build", [nested_classifier, lambda: build_classifier("wrn10_1", (8, 8, 1), 4)]
)
def test_teachers_have_nothing_to_train_and_their_statistics_stay(build):
    model = build()
    before = model.get_weights()
    Teacher(model)(IMAGES)
    assert model.trainable_variables == []
    for old, new in zip(before, model.get_weights()):
        np.testing.assert_array_equal(old, new)


def test_ensemble_stacks_teachers_of_different_architectures():
    names = ("wrn10_1", "wrn16_2")
    ensemble = TeacherEnsemble([build_classifier(n, (8, 8, 1), 4) for n in names])
    answers = ensemble(IMAGES)
    assert answers["logits"].shape == (4, 2, 4)
    assert [f.shape[-1] for f in answers["features"]] == [64, 128]
    assert [len(bn) for bn in answers["bn"]] == [7, 13]


def test_teachers_of_different_class_counts_are_refused():
    models = [build_classifier("wrn10_1", (8, 8, 1), count) for count in (4, 5)]
    with pytest.raises(RequestError, match=r"the same classes; they answer wrn10_1 4"):
        TeacherEnsemble(models)


def test_no_teacher_is_refused():
    with pytest.raises(RequestError, match="At least one teacher"):
        TeacherEnsemble([])


@pytest.mark.parametrize("content", [b"not a zip", b"PK\x03\x04 broken"])
def test_unreadable_files_are_refused(tmp_path, content):
    file = tmp_path / "teacher.keras"
    file.write_bytes(content)
    with pytest.raises(RequestError, match=r"Cannot read teacher .*teacher\.keras"):
        load_classifier(str(file))


def test_a_file_that_would_run_code_is_refused(tmp_path):
    image = keras.Input((8, 8, 1))
    pooled = layers.GlobalAveragePooling2D()(layers.Lambda(lambda x: x * 2)(image))
    keras.Model(image, layers.Dense(4)(pooled)).save(tmp_path / "lambda.keras")
    with pytest.raises(RequestError, match="Lambda"):
        load_classifier(str(tmp_path / "lambda.keras"))
