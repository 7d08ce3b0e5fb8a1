"""BatchNormalization in one pass over the images, where Keras takes several.

Keras composes it of elementary operations, each of which reads and writes all
activations; on a CPU that takes as long as the convolutions of a small network.
TensorFlow has it in one kernel. What comes out is equal up to rounding.
"""

from collections.abc import Callable, Iterable

import keras
import numpy as np
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
    unit = np.ones(tensor.shape[-1], "float32")
    _, mean, variance, *_ = tf.raw_ops.FusedBatchNormV3(
        x=tensor, scale=unit, offset=unit, mean=[], variance=[], is_training=True
    )
    count = _count(tensor)

    def gradient(of_mean, of_variance):
        # d mean = dx / n, d variance = 2 (x - mean) dx / n: one affine pass over x.
        scale = of_variance * (2 / count)
        return _affine(tensor, scale, of_mean * (1 / count), mean)

    return (mean, variance * _biased(count)), gradient


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


def _affine(tensor, scale, offset, centre=None):
    """`(tensor - centre) * scale + offset`, in one pass."""
    channels = tensor.shape[-1]
    return tf.raw_ops.FusedBatchNormV3(
        x=tensor,
        scale=scale,
        offset=offset,
        mean=np.zeros(channels, "float32") if centre is None else centre,
        variance=np.ones(channels, "float32"),
        epsilon=0.0,
        is_training=False,
    ).y


def _count(tensor) -> float | tf.Tensor:
    """Values per channel; a number where the batch's size is known."""
    *shape, _ = tensor.shape
    if None not in shape:
        return float(np.prod(shape))
    return tf.cast(tf.size(tensor) // tensor.shape[-1], tf.float32)


def _biased(count: float | tf.Tensor) -> float | tf.Tensor:
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
    scale = layer.gamma.value if layer.scale else np.ones(channels, "float32")
    offset = layer.beta.value if layer.center else np.zeros(channels, "float32")
    outputs, mean, variance, *_ = tf.raw_ops.FusedBatchNormV3(
        x=inputs,
        scale=scale,
        offset=offset,
        mean=[],
        variance=[],
        epsilon=layer.epsilon,
        is_training=True,
    )
    variance = variance * _biased(_count(inputs))
    rate = 1.0 - layer.momentum
    for moving, seen in (
        (layer.moving_mean, mean),
        (layer.moving_variance, variance),
    ):
        moving.assign(moving * layer.momentum + tf.stop_gradient(seen) * rate)
    return outputs


def _in_inference(layer, inputs):
    if layer.trainable:
        return _affine(inputs, *_scale_and_offset(layer))
    with tf.init_scope():  # frozen: constants of whatever is traced
        scale, offset = _scale_and_offset(layer)
    return frozen_batch_norm(inputs, scale, offset)


def _scale_and_offset(layer):
    scale = tf.math.rsqrt(layer.moving_variance.value + layer.epsilon)
    if layer.scale:
        scale = scale * layer.gamma.value
    offset = -layer.moving_mean.value * scale
    if layer.center:
        offset = offset + layer.beta.value
    return scale, offset
