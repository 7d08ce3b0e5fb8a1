"""One kernel gives what Keras's composed BatchNormalization gives."""

import keras
import numpy as np
import pytest
import tensorflow as tf

from cdfkd_tf import kernels
from tests.conftest import values_of

SHAPE = (4, 5, 6, 8)


def images(dtype="float32"):
    return tf.constant(np.random.default_rng(0).normal(2, 3, SHAPE), dtype)


def norm(**kwargs):
    layer = keras.layers.BatchNormalization(momentum=0.9, epsilon=0.8, **kwargs)
    layer.build(SHAPE)
    for variable in layer.weights:
        variable.assign(np.linspace(0.5, 2, SHAPE[-1]))
    return layer


def answers(layer, training):
    """Output, gradients of input and weights, and the weights afterwards."""
    inputs = images()
    with tf.GradientTape() as tape:
        tape.watch(inputs)
        outputs = layer(inputs, training=training)
        total = tf.reduce_sum(outputs**3)
    watched = [inputs, *(variable.value for variable in layer.trainable_variables)]
    return [outputs, *tape.gradient(total, watched), *values_of(layer).values()]


@pytest.mark.parametrize("kwargs", [{}, {"scale": False, "center": False}])
@pytest.mark.parametrize("frozen", [False, True])
def test_a_fused_layer_is_the_layer(kwargs, frozen):
    plain, fused = norm(**kwargs), norm(**kwargs)
    kernels.fuse_batch_norms([fused])
    plain.trainable = fused.trainable = not frozen
    for training in (True, False):
        for theirs, ours in zip(answers(plain, training), answers(fused, training)):
            np.testing.assert_allclose(ours, theirs, rtol=2e-5, atol=1e-5)


@pytest.mark.parametrize("dtype, bound", [("float32", 1e-5), ("bfloat16", 2e-2)])
def test_moments_and_their_gradient(dtype, bound):
    inputs = images(dtype)
    results = []
    for moments in (
        kernels.batch_moments,
        lambda x: tf.nn.moments(tf.cast(x, "float32"), [0, 1, 2]),
    ):
        with tf.GradientTape() as tape:
            tape.watch(inputs)
            mean, variance = moments(inputs)
            loss = tf.reduce_sum(mean * tf.range(8.0)) + tf.reduce_sum(variance**2)
        results.append([mean, variance, tape.gradient(loss, inputs)])
    for ours, theirs in zip(*results):
        ours, theirs = tf.cast(ours, "float32"), tf.cast(theirs, "float32")
        np.testing.assert_allclose(ours, theirs, rtol=bound, atol=bound)


def test_float64_and_synchronised_layers_stay_as_keras_has_them():
    layer = norm(dtype="float64")
    kernels.fuse_batch_norms([layer])
    assert layer(images("float64"), training=True).dtype == "float64"
