"""Folded networks say what they said before, in fewer operations."""

import keras
import numpy as np
import pytest
import tensorflow as tf
from keras import layers

from cdfkd_tf.networks.bn_folding import Folding, copy_in, foldable
from cdfkd_tf.networks.classifiers import build_classifier
from cdfkd_tf.runtime.fused_batchnorm import fuse_layers
from cdfkd_tf.runtime.keras_internals import leaf_layers
from cdfkd_tf.teachers.teacher import Teacher, TeacherEnsemble

SHAPE = (8, 8, 3)


def moved(model, seed=0):
    """The model with statistics of its own, as training leaves them."""
    rng = np.random.default_rng(seed)
    for weight in model.weights:
        value = rng.normal(0, 0.3, weight.shape)
        weight.assign(np.exp(value) if "variance" in weight.path else value)
    return model


def norms_called(model, images):
    """How many BatchNormalizations compute in one traced call."""
    traced = tf.function(lambda x: model(x, training=False))
    graph = traced.get_concrete_function(tf.constant(images)).graph
    kinds = [operation.type for operation in graph.get_operations()]
    return kinds.count("FusedBatchNormV3")


def nested():
    inner = keras.Sequential(
        [
            layers.Input((6, 6, 4)),
            layers.DepthwiseConv2D(3, depth_multiplier=2),
            layers.BatchNormalization(),
        ]
    )
    image = layers.Input(SHAPE)
    tensor = layers.BatchNormalization()(layers.Conv2D(4, 3)(image))
    tensor = layers.GlobalAveragePooling2D()(inner(tensor) * 2.0)
    return keras.Model(image, layers.Dense(5)(tensor))


@pytest.mark.parametrize(
    "build, folded",
    [
        (lambda: build_classifier("wrn10_1", SHAPE, 5), 3),
        (lambda: build_classifier("resnet18", SHAPE, 5, width=0.125), 20),
        (nested, 2),
    ],
    ids=["wrn10_1", "resnet18", "nested"],
)
def test_a_folded_network_answers_as_it_did(build, folded):
    model = moved(build())
    model.trainable = False
    fuse_layers(leaf_layers(model))
    assert len(foldable(model)) == folded
    images = np.random.default_rng(1).normal(size=(4, *SHAPE)).astype("float32")
    expected, before = np.array(model(images)), norms_called(model, images)
    folding = Folding(model)
    with folding.active():
        ours, after = np.array(model(images)), norms_called(model, images)
    assert before - after == folded
    assert np.abs(ours - expected).max() < 1e-5 * np.abs(expected).max()
    np.testing.assert_array_equal(model(images), expected)
    moved(model, seed=3)
    folding.refresh()
    expected = np.array(model(images))
    with folding.active():
        gap = np.abs(np.array(model(images)) - expected).max()
    assert gap < 1e-5 * np.abs(expected).max()


def test_what_somebody_else_reads_is_not_folded():
    image = layers.Input(SHAPE)
    tensor = layers.Conv2D(4, 3, activation="relu")(image)
    tensor = layers.BatchNormalization()(tensor)  # behind an activation
    shared = layers.Conv2D(4, 3)(tensor)
    tensor = layers.Add()([layers.BatchNormalization()(shared), shared])
    assert foldable(keras.Model(image, tensor)) == []


def test_a_subclassed_teacher_is_called_as_it_is():
    class Own(keras.Model):
        def __init__(self):
            super().__init__()
            self.inner = build_classifier("wrn10_1", SHAPE, 5)

        def call(self, images):
            return self.inner(images)

    model = Own()
    model.build((None, *SHAPE))
    images = np.random.default_rng(1).normal(size=(4, *SHAPE)).astype("float32")
    assert copy_in(model, "mixed_bfloat16") is None
    model.input_shape = (None, *SHAPE)
    teacher = Teacher(model)
    teacher.lighten("mixed_bfloat16")
    logits, features = teacher.answer(images)
    np.testing.assert_allclose(logits, model(images), rtol=1e-6)
    assert features.shape == (4, 64)


@pytest.mark.parametrize("policy", [None, "mixed_bfloat16"])
def test_lightened_teachers_give_the_same_logits_and_features(policy):
    models = [
        moved(build_classifier(name, SHAPE, 5), seed)
        for seed, name in enumerate(("wrn10_1", "wrn16_1"))
    ]
    teachers = TeacherEnsemble(models)
    images = np.random.default_rng(1).normal(size=(4, *SHAPE)).astype("float32")
    before = teachers(images)
    teachers.lighten(policy)
    after, rounds = teachers(images), teachers.answer(images)
    bound = 1e-5 if policy is None else 0.1
    for name in ("logits", "features"):
        for theirs, *ours in zip(before[name], after[name], rounds[name]):
            for values in ours:
                gap = np.abs(np.array(values, "float32") - np.array(theirs)).max()
                assert gap <= bound * np.abs(np.array(theirs)).max()
    if policy:  # it did compute in half precision
        assert after["bn"][0][0][0].dtype == "bfloat16"


@pytest.mark.parametrize("place", [0, 1])
def test_features_of_a_pair_are_its_own(place):
    model = moved(build_classifier("resnet18", SHAPE, 5, width=0.125))
    layer = foldable(model)[3][place]
    teacher = Teacher(model, feature_layer=layer.name)
    images = np.random.default_rng(1).normal(size=(4, *SHAPE)).astype("float32")
    _, expected, _ = teacher(images)
    np.testing.assert_allclose(
        teacher.answer(images)[1], expected, rtol=1e-4, atol=1e-5
    )


def test_two_teachers_may_share_a_model():
    model = moved(build_classifier("wrn10_1", SHAPE, 5))
    images = np.random.default_rng(1).normal(size=(4, *SHAPE)).astype("float32")
    first = Teacher(model)
    expected = np.array(first.answer(images)[0])
    second = Teacher(model)
    for teacher in (first, second):
        np.testing.assert_allclose(teacher.answer(images)[0], expected, rtol=1e-5)
        logits, _, bn = teacher(images)
        np.testing.assert_allclose(logits, expected, rtol=1e-4)
        assert len(bn) == teacher.num_batch_norms == 7


def test_the_first_answer_may_be_traced():
    model = moved(build_classifier("wrn10_1", SHAPE, 5))
    images = np.random.default_rng(1).normal(size=(4, *SHAPE)).astype("float32")
    teacher = Teacher(model)
    traced = tf.function(lambda x: teacher.answer(x)[0])(tf.constant(images))
    np.testing.assert_allclose(traced, teacher(images)[0], rtol=1e-4)
