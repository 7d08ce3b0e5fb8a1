"""Layers in few operations, where Keras composes them of many.

Keras's BatchNormalization is made of elementary operations, each of which reads and
writes all activations; on a CPU that takes as long as the convolutions of a small
network. TensorFlow has it in one kernel. What comes out is equal up to rounding.
"""

import functools
from collections.abc import Callable, Iterable, Sequence

import keras
import numpy as np
import tensorflow as tf
from keras import layers

from cdfkd_tf.runtime.keras_internals import override_call

_switch = {"is_on": True}
FUSED = ("float32", "bfloat16", "float16")  # dtypes that the kernel takes


def use(enabled: bool) -> None:
    """Whether networks traced from now on take the shorter ways; at first they do."""
    _switch["is_on"] = enabled


def is_used() -> bool:
    """Whether networks traced now take the shorter ways."""
    return _switch["is_on"]


def fuse_layers(network_layers: Iterable[keras.layers.Layer]) -> None:
    """Lets layers compute in fewer operations, in training and inference.

    BatchNormalizations in one kernel, and upsampling without Keras's thirty
    operations on shapes. Files saved later hold the plain layers all the same.

    Args:
        network_layers: changed in place; those of other kinds, and those with a
            `call` of their own, are left.
    """
    for layer in network_layers:
        for kind, fused in _FUSED_CALLS.items():
            plain = isinstance(layer, kind) and type(layer).call is kind.call
            if plain:
                override_call(layer, "fused", fused)


def batch_moments(tensors: Sequence[tf.Tensor]) -> tuple[tf.Tensor, tf.Tensor]:
    """Means and biased variances of all channels of all tensors, joined.

    One gradient for all: a deep teacher has dozens of layers to look at.

    Args:
        tensors: `(B, ..., C_i)` each, of dtypes in `FUSED`.

    Returns:
        Two vectors `(C_1 + C_2 + ...,)`, float32.
    """
    return _moments(*(_as_maps(tensor) for tensor in tensors))


@tf.custom_gradient
def _moments(*tensors):
    widths = [tensor.shape[-1] for tensor in tensors]
    found = [_in_one_kernel(tensor)[1:3] for tensor in tensors]
    means = [mean for mean, _ in found]
    counts = _per_channel([_count(tensor) for tensor in tensors], widths)
    variances = tf.concat([variance for _, variance in found], 0) * _biased(counts)

    def gradient(of_means, of_variances):
        # d mean = dx / n, d variance = 2 (x - mean) dx / n: one affine pass over x.
        scales = tf.split(of_variances * (2 / counts), widths)
        offsets = tf.split(of_means * (1 / counts), widths)
        return [_affine(*each) for each in zip(tensors, scales, offsets, means)]

    return (tf.concat(means, 0), variances), gradient


def _in_one_kernel(tensor, scale=None, offset=None, epsilon=1e-4):
    """Normalised tensor, each channel's mean and unbiased variance."""
    channels = tensor.shape[-1]
    return tf.raw_ops.FusedBatchNormV3(
        x=tensor,
        scale=_constant(1, channels) if scale is None else scale,
        offset=_constant(0, channels) if offset is None else offset,
        mean=_constant(0, 0),
        variance=_constant(0, 0),
        epsilon=epsilon,
        is_training=True,
    )[:3]


@functools.cache
def _constant(value: float, channels: int) -> tf.Tensor:
    """One tensor for all layers of all graphs: they have hundreds of layers."""
    with tf.init_scope():
        return tf.fill([channels], float(value))


def _as_maps(tensor):
    """The kernel knows four axes; what is between batch and channels is one."""
    if len(tensor.shape) == 4:
        return tensor
    return tf.reshape(tensor, (-1, 1, 1, tensor.shape[-1]))


def _per_channel(values: list[float | tf.Tensor], widths: list[int]):
    """One value per tensor, repeated for each of its channels."""
    if all(isinstance(value, float) for value in values):
        return np.repeat(values, widths).astype("float32")
    return tf.repeat(tf.stack(values), widths)


def frozen_batch_norm(
    tensor: tf.Tensor, scale: tf.Tensor, offset: tf.Tensor
) -> tf.Tensor:
    """`tensor * scale + offset` per channel; a gradient reaches `tensor` alone.

    Args:
        tensor: `(B, height, width, C)`, of a dtype in `FUSED`.
        scale: `(C,)`, float32, as `offset`.
        offset: `(C,)`.
    """

    @tf.custom_gradient
    def compute(tensor):
        def gradient(upstream):
            return upstream * tf.cast(scale, upstream.dtype)

        return _affine(tensor, scale, offset), gradient

    return compute(tensor)


def _affine(tensor, scale, offset, centre=None):
    """`(tensor - centre) * scale + offset`, in one pass."""
    channels = tensor.shape[-1]
    return tf.raw_ops.FusedBatchNormV3(
        x=tensor,
        scale=scale,
        offset=offset,
        mean=_constant(0, channels) if centre is None else centre,
        variance=_constant(1, channels),
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


def _fused_norm(layer: layers.BatchNormalization, original: Callable) -> Callable:
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

    return call


def _fused_upsampling(layer: layers.UpSampling2D, original: Callable) -> Callable:
    def call(inputs):
        last = layer.data_format == "channels_last"
        if layer.interpolation != "nearest" or not last or None in inputs.shape[1:]:
            return original(inputs)
        (rows, columns), (height, width, channels) = layer.size, inputs.shape[1:]
        pixels = tf.reshape(inputs, (-1, height, 1, width, 1, channels))
        tiled = tf.tile(pixels, (1, 1, rows, 1, columns, 1))
        return tf.reshape(tiled, (-1, height * rows, width * columns, channels))

    return call


_FUSED_CALLS = {
    layers.BatchNormalization: _fused_norm,
    layers.UpSampling2D: _fused_upsampling,
}


def _in_training(layer, inputs):
    outputs, mean, variance = _in_one_kernel(
        inputs,
        layer.gamma.value if layer.scale else None,
        layer.beta.value if layer.center else None,
        layer.epsilon,
    )
    old, new = layer.momentum, 1.0 - layer.momentum
    to_biased = _biased(_count(inputs))
    moving_mean, moving_variance = layer.moving_mean, layer.moving_variance
    moving_mean.assign(moving_mean * old + mean * new)
    moving_variance.assign(moving_variance * old + variance * (to_biased * new))
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
