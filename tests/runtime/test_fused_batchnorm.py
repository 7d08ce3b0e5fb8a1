"""One kernel gives what Keras's composed BatchNormalization gives."""

import keras
import numpy as np
import pytest
import tensorflow as tf

from cdfkd_tf.runtime import fused_batchnorm
from tests.rows import rows

SHAPE = (4, 5, 6, 8)


@pytest.fixture(params=[True, False], ids=["used", "unused"])
def used(request):
    fused_batchnorm.use(request.param)
    yield request.param
    fused_batchnorm.use(True)


def images(dtype="float32"):
    return tf.constant(np.random.default_rng(0).normal(2, 3, SHAPE), dtype)


def norm(**kwargs):
    layer = keras.layers.BatchNormalization(momentum=0.9, epsilon=0.8, **kwargs)
    layer.build(SHAPE)
    for variable in layer.weights:
        variable.assign(np.linspace(0.5, 2, SHAPE[-1]))
    return layer


def results(layer, training):
    """Output, gradients of input and weights, and the weights afterwards."""
    inputs = images()
    with tf.GradientTape() as tape:
        tape.watch(inputs)
        outputs = layer(inputs, training=training)
        total = tf.reduce_sum(outputs**3)
    watched = [inputs, *(variable.value for variable in layer.trainable_variables)]
    return [outputs, *tape.gradient(total, watched), *map(np.array, layer.weights)]


def kernels_in(layer, training):
    """How many fused kernels one traced call takes."""
    traced = tf.function(lambda x: layer(x, training=training))
    graph = traced.get_concrete_function(images()).graph
    kinds = [operation.type for operation in graph.get_operations()]
    return kinds.count("FusedBatchNormV3")


@rows("kwargs", [{}, {"scale": False, "center": False}])
@rows("frozen", [False, True])
def test_fused_layer_is_the_layer(kwargs, frozen, used):
    plain, fused = norm(**kwargs), norm(**kwargs)
    for _ in range(2):  # a second time changes nothing
        fused_batchnorm.fuse_layers([fused])
    plain.trainable = fused.trainable = not frozen
    for training in (True, False, True):
        for theirs, ours in zip(results(plain, training), results(fused, training)):
            np.testing.assert_allclose(ours, theirs, rtol=2e-5, atol=1e-5)
    expected = int(used and not frozen)
    assert kernels_in(fused, True) == expected and kernels_in(plain, True) == 0


@pytest.mark.slow
def test_fused_layer_of_other_kinds_computes_as_keras_does():
    for kwargs in [{"dtype": "float64"}, {"synchronized": True}, {"axis": 1}]:
        layer = keras.layers.BatchNormalization(**kwargs)
        fused_batchnorm.fuse_layers([layer])
        assert kernels_in(layer, True) == 0


@pytest.mark.slow
def test_fused_layer_with_a_call_of_its_own_keeps_it():
    class Doubled(keras.layers.BatchNormalization):
        def call(self, inputs, training=None, mask=None):
            return 2 * super().call(inputs, training=training, mask=mask)

    layer = Doubled()
    expected = layer(images(), training=False)
    fused_batchnorm.fuse_layers([layer])
    np.testing.assert_array_equal(layer(images(), training=False), expected)
    assert "call" not in vars(layer)


def test_frozen_batch_norm_is_a_scale_and_a_shift():
    scale, shift = tf.linspace(-1.0, 2.0, 8), tf.linspace(3.0, 4.0, 8)
    for inputs in (images(), images()[:2]):
        with tf.GradientTape() as tape:
            tape.watch([inputs, scale])
            outputs = fused_batchnorm.frozen_batch_norm(inputs, scale, shift)
            loss = tf.reduce_sum(outputs**2)
        np.testing.assert_allclose(outputs, inputs * scale + shift, atol=1e-4)
        of_inputs, of_scale = tape.gradient(loss, [inputs, scale])
        np.testing.assert_allclose(of_inputs, 2 * outputs * scale, atol=1e-4)
        assert of_scale is None


@rows("dtype", ["float32", "float64"])
@rows("batch", [4, None])  # known in the graph, or not
def test_batch_moments_are_numpys_and_have_their_gradient(dtype, batch):
    tensors = images(dtype), tf.reshape(images(dtype)[..., :3], (-1, 3))
    forms = [tf.TensorSpec((batch and len(x), *x.shape[1:]), dtype) for x in tensors]
    weights = tf.linspace(tf.constant(-1, dtype), 2, 11)

    def gradients(moments):
        @tf.function(input_signature=forms)
        def compute(*given):
            with tf.GradientTape() as tape:
                tape.watch(given)
                mean, variance = moments(given)
                loss = tf.reduce_sum(weights * (mean**2 + variance**2))
            return mean, variance, *tape.gradient(loss, given)

        return compute(*tensors)

    def composed(given):
        found = [tf.nn.moments(x, list(range(len(x.shape) - 1))) for x in given]
        return [tf.concat(parts, 0) for parts in zip(*found)]

    ours, theirs = gradients(fused_batchnorm.batch_moments), gradients(composed)
    for one, other in zip(ours, theirs):
        assert one.dtype == dtype
        np.testing.assert_allclose(one, other, rtol=1e-4, atol=1e-4)
    expected = np.concatenate(
        [np.array(x).reshape(-1, x.shape[-1]).var(0) for x in tensors]
    )
    np.testing.assert_allclose(ours[1], expected, rtol=1e-5)
