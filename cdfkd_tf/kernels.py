"""BatchNormalization in one pass over the images, where Keras takes several.

Keras composes it of elementary operations, each of which reads and writes all
activations; on a CPU that takes as long as the convolutions of a small network.
TensorFlow has it in one kernel. What comes out is equal up to rounding.
"""

from collections.abc import Callable, Iterable

import keras
import tensorflow as tf
from keras import layers

FUSED = ("float32", "bfloat16", "float16")  # dtypes that the kernel takes


def fuse_batch_norms(network_layers: Iterable[keras.layers.Layer]) -> None:
    """Lets BatchNormalizations compute in one kernel, in training and inference.

    Files saved later hold the plain layers all the same.

    Args:
        network_layers: changed in place; others than BatchNormalization are left.
    """
    for layer in network_layers:
        if isinstance(layer, layers.BatchNormalization) and not _is_fused(layer):
            layer.call = _fused(layer, layer.call)


def batch_moments(tensor: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
    """Mean and biased variance of each channel, `(C,)` each, float32.

    Args:
        tensor: `(B, height, width, C)`, of a dtype in `FUSED`.
    """
    return _moments(tensor)


@tf.custom_gradient
def _moments(tensor):
    channels = tensor.shape[-1]
    ones, zeros = tf.ones([channels]), tf.zeros([channels])
    _, mean, variance, *_ = tf.raw_ops.FusedBatchNormV3(
        x=tensor, scale=ones, offset=zeros, mean=[], variance=[], is_training=True
    )
    count = tf.cast(tf.size(tensor) // channels, tf.float32)
    variance = variance * _biased(count)

    def gradient(of_mean, of_variance):
        # d mean = dx / n, d variance = 2 (x - mean) dx / n: one affine pass over x.
        scale = 2 * of_variance / count
        offset = of_mean / count - scale * mean
        return _affine(tensor, scale, offset)

    return (mean, variance), gradient


@tf.custom_gradient
def frozen_batch_norm(tensor, scale, offset):
    """`tensor * scale + offset` per channel; a gradient reaches `tensor` alone.

    Args:
        tensor: `(B, height, width, C)`, of a dtype in `FUSED`.
        scale: `(C,)`, float32, as `offset`.
        offset: `(C,)`.
    """

    def gradient(upstream):
        return upstream * tf.cast(scale, upstream.dtype), None, None

    return _affine(tensor, scale, offset), gradient


def _affine(tensor, scale, offset):
    zeros, ones = tf.zeros_like(scale), tf.ones_like(scale)
    return tf.raw_ops.FusedBatchNormV3(
        x=tensor,
        scale=scale,
        offset=offset,
        mean=zeros,
        variance=ones,
        epsilon=0.0,
        is_training=False,
    ).y


def _biased(count):
    """What the kernel's variance, with n - 1 below, is multiplied by to have n."""
    return (count - 1) / count


def _is_fused(layer) -> bool:
    return getattr(layer.call, "is_fused", False)


def _fused(layer: layers.BatchNormalization, original: Callable) -> Callable:
    def call(inputs, training=None, mask=None):
        fits = (
            mask is None
            and len(inputs.shape) == 4
            and layer.axis in (-1, 3)
            and not (layer.synchronized or layer.renorm)
            and keras.backend.standardize_dtype(inputs.dtype) in FUSED
            and keras.backend.standardize_dtype(inputs.dtype) == layer.compute_dtype
        )
        if not fits:
            return original(inputs, training=training, mask=mask)
        if training and layer.trainable:
            return _in_training(layer, inputs)
        return _in_inference(layer, inputs)

    call.is_fused = True
    return call


def _in_training(layer, inputs):
    channels = inputs.shape[-1]
    scale = layer.gamma.value if layer.scale else tf.ones([channels])
    offset = layer.beta.value if layer.center else tf.zeros([channels])
    outputs, mean, variance, *_ = tf.raw_ops.FusedBatchNormV3(
        x=inputs,
        scale=scale,
        offset=offset,
        mean=[],
        variance=[],
        epsilon=layer.epsilon,
        is_training=True,
    )
    variance = variance * _biased(tf.cast(tf.size(inputs) // channels, tf.float32))
    rate = 1.0 - layer.momentum
    for moving, seen in (
        (layer.moving_mean, mean),
        (layer.moving_variance, variance),
    ):
        moving.assign(moving * layer.momentum + tf.stop_gradient(seen) * rate)
    return outputs


def _in_inference(layer, inputs):
    scale = tf.math.rsqrt(layer.moving_variance.value + layer.epsilon)
    if layer.scale:
        scale = scale * layer.gamma.value
    offset = -layer.moving_mean.value * scale
    if layer.center:
        offset = offset + layer.beta.value
    if layer.trainable:
        return _affine(inputs, scale, offset)
    return frozen_batch_norm(inputs, scale, offset)
