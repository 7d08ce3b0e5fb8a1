"""Folded BatchNormalizations give what they gave before, in fewer operations."""

import collections

import keras
import numpy as np
import pytest
import tensorflow as tf
from keras import layers

from cdfkd_tf.networks.bn_folding import (
    bn_scale_and_shift,
    foldable,
    folded_calls,
)
from cdfkd_tf.networks.classifiers import build_classifier
from cdfkd_tf.networks.rebuilding import copy_in
from cdfkd_tf.teachers.teacher import Teacher
from tests.rows import rows

SHAPE = (8, 8, 3)
IMAGES = np.random.default_rng(1).normal(size=(4, *SHAPE)).astype("float32")
BN = frozenset({"bn_statistics"})


def with_statistics(model, seed=0):
    """The model with statistics of its own, as training leaves them."""
    rng = np.random.default_rng(seed)
    for weight in model.weights:
        value = rng.normal(0, 0.3, weight.shape)
        weight.assign(np.exp(value) if "variance" in weight.path else value)
    return model


def operations(teacher, needs):
    """How many operations of each kind one traced call of a teacher does."""
    traced = tf.function(lambda x: teacher(x, needs).logits)
    graph = traced.get_concrete_function(tf.constant(IMAGES)).graph
    return collections.Counter(operation.type for operation in graph.get_operations())


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


def test_bn_scale_and_shift_are_what_the_layer_computes():
    for kwargs in [
        {},
        {"scale": False, "center": False},
        {"epsilon": 0.8},
        {"synchronized": True},
        {"renorm": True},
    ]:
        layer = layers.BatchNormalization(**kwargs)
        layer.build((None, 3))
        with_statistics(layer)
        rows = np.random.default_rng(0).normal(size=(5, 3)).astype("float32")
        scale, shift = bn_scale_and_shift(layer)
        assert scale.dtype == shift.dtype == "float32"
        np.testing.assert_allclose(
            rows * scale + shift, layer(rows), rtol=1e-5, atol=1e-6
        )


@rows(
    "build, folded",
    [
        (lambda: build_classifier("wrn10_1", SHAPE, 5), 3),
        (lambda: build_classifier("resnet18", SHAPE, 5, width=0.125), 20),
        (nested, 2),
    ],
    ids=["wrn10_1", "resnet18", "nested"],
)
def test_folded_network_gives_what_it_gave(build, folded):
    model = with_statistics(build())
    assert len(foldable(model)) == folded
    expected = np.array(model(IMAGES))
    teacher = Teacher(model)
    for seed in (None, 3):
        if seed is not None:  # weights that change are folded again when asked to
            with_statistics(model, seed)
            teacher.optimise_for_inference()
            expected = np.array(model(IMAGES))
        gap = np.abs(np.array(teacher(IMAGES).logits) - expected).max()
        assert 0 < gap < 1e-5 * np.abs(expected).max()
    np.testing.assert_array_equal(model(IMAGES), expected)


def test_folded_network_leaves_batch_normalisations_out():
    model = with_statistics(build_classifier("resnet18", SHAPE, 5, width=0.125))
    teacher = Teacher(model)
    exact, folded = operations(teacher, BN), operations(teacher, frozenset())
    assert folded["Conv2D"] == exact["Conv2D"] == 20
    assert folded["BiasAdd"] - exact["BiasAdd"] == 20
    assert sum(exact.values()) - sum(folded.values()) > 20


def test_foldable_is_nothing_that_something_else_reads():
    image = layers.Input(SHAPE)
    tensor = layers.Conv2D(4, 3, activation="relu")(image)
    tensor = layers.BatchNormalization()(tensor)  # behind an activation
    shared = layers.Conv2D(4, 3)(tensor)
    tensor = layers.Add()([layers.BatchNormalization()(shared), shared])
    assert foldable(keras.Model(image, tensor)) == []


def test_foldable_is_no_output_and_no_other_axis():
    image = layers.Input(SHAPE)
    convolved = layers.Conv2D(8, 3, padding="same")(image)
    normed = layers.BatchNormalization()(convolved)
    assert len(foldable(keras.Model(image, normed))) == 1
    assert foldable(keras.Model(image, [normed, convolved])) == []
    rows = layers.BatchNormalization(axis=1)(layers.Conv2D(8, 3, padding="same")(image))
    assert foldable(keras.Model(image, rows)) == []


@pytest.mark.slow
def test_folded_calls_leave_kept_layers_out():
    model = build_classifier("resnet18", SHAPE, 5, width=0.125)
    convolution, norm = foldable(model)[0]
    assert len(folded_calls(model)) == 40
    for kept in (convolution, norm):
        calls = folded_calls(model, (kept,))
        assert len(calls) == 38 and not {id(convolution), id(norm)} & set(calls)


@pytest.mark.slow
def test_subclassed_model_is_not_folded_and_not_copied():
    class Own(keras.Model):
        def __init__(self):
            super().__init__()
            self.inner = build_classifier("wrn10_1", SHAPE, 5)

        def call(self, images):
            return self.inner(images)

    model = Own()
    model(IMAGES)
    assert folded_calls(model) == {}
    with pytest.raises(ValueError, match="connections"):
        copy_in(model, "mixed_bfloat16")


@pytest.mark.slow
def test_copy_in_another_precision_has_the_same_weights_and_names():
    model = with_statistics(nested())
    for _ in range(2):
        copy = copy_in(model, "mixed_bfloat16")
        names = [[layer.name for layer in it.layers[1:]] for it in (copy, model)]
        assert names[0] == names[1]
        for ours, theirs in zip(copy.get_weights(), model.get_weights(), strict=True):
            np.testing.assert_array_equal(ours, theirs)
        assert copy.layers[1].compute_dtype == "bfloat16"
        assert copy.trainable_variables == [] and model.trainable_variables
