"""One kernel gives what Keras's composed BatchNormalization gives."""

import keras
import numpy as np
import pytest
import tensorflow as tf

from cdfkd_tf.runtime import fused_batchnorm as kernels
from tests.toys import values_of

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
    kernels.fuse_layers([fused])
    plain.trainable = fused.trainable = not frozen
    for training in (True, False):
        for theirs, ours in zip(answers(plain, training), answers(fused, training)):
            np.testing.assert_allclose(ours, theirs, rtol=2e-5, atol=1e-5)


def composed_moments(tensors):
    found = [
        tf.nn.moments(tf.cast(x, "float32"), list(range(len(x.shape) - 1)))
        for x in tensors
    ]
    return [tf.concat(values, 0) for values in zip(*found)]


@pytest.mark.parametrize("dtype, bound", [("float32", 1e-5), ("bfloat16", 2e-2)])
@pytest.mark.parametrize("batch", [SHAPE[0], None])
def test_moments_and_their_gradient(dtype, bound, batch):
    maps = images(dtype)
    rows = maps[:, 0, 0, :3] + 1

    def loss_and_gradients(moments, maps, rows):
        with tf.GradientTape() as tape:
            tape.watch([maps, rows])
            mean, variance = moments([maps, rows])
            loss = tf.reduce_sum(mean * tf.range(11.0)) + tf.reduce_sum(variance**2)
        return [mean, variance, *tape.gradient(loss, [maps, rows])]

    def signature(tensor):
        return tf.TensorSpec([batch, *tensor.shape[1:]], tensor.dtype)

    results = [
        tf.function(
            lambda *tensors, moments=moments: loss_and_gradients(moments, *tensors),
            input_signature=[signature(maps), signature(rows)],
        )(maps, rows)
        for moments in (kernels.batch_moments, composed_moments)
    ]
    for ours, theirs in zip(*results):
        ours, theirs = tf.cast(ours, "float32"), tf.cast(theirs, "float32")
        np.testing.assert_allclose(ours, theirs, rtol=bound, atol=bound)


def test_float64_and_synchronised_layers_stay_as_keras_has_them():
    layer = norm(dtype="float64")
    kernels.fuse_layers([layer])
    assert layer(images("float64"), training=True).dtype == "float64"


@pytest.mark.parametrize(
    "kwargs", [{}, {"interpolation": "bilinear"}, {"size": (2, 3)}]
)
def test_upsampling_is_the_layer(kwargs):
    results = []
    for fused in (False, True):
        layer = keras.layers.UpSampling2D(**kwargs)
        if fused:
            kernels.fuse_layers([layer])
        inputs = images()
        with tf.GradientTape() as tape:
            tape.watch(inputs)
            outputs = layer(inputs)
            loss = tf.reduce_sum(outputs**2)
        results.append([outputs, tape.gradient(loss, inputs)])
    for theirs, ours in zip(*results):
        np.testing.assert_allclose(ours, theirs, rtol=1e-5)


def test_a_layer_with_a_call_of_its_own_keeps_it():
    class Doubled(keras.layers.BatchNormalization):
        def call(self, inputs, training=None, mask=None):
            return 2 * super().call(inputs, training=training, mask=mask)

    layer = Doubled()
    expected = layer(images(), training=False)
    kernels.fuse_layers([layer])
    np.testing.assert_array_equal(layer(images(), training=False), expected)
