"""BatchNormalization in one kernel, where Keras composes it of many operations.

Each of the elementary operations that Keras's is made of reads and writes all
activations; on a CPU that takes as long as the convolutions of a small network. Results
are equal up to rounding. What each use gains is in experiments/benchmarks/README.md.
"""

import functools
import math
from collections.abc import Callable, Iterable, Sequence

import keras
import tensorflow as tf
from keras import layers

from cdfkd_tf.runtime.keras_internals import override_call

FUSED = ("float32", "bfloat16", "float16")  # dtypes that the kernel takes
_switch = {"is_on": True}


def use(enabled: bool) -> None:
    """Whether networks traced from now on use the kernel, and fold; at first they do.

    It decides for `fuse_layers` and the teachers' forward passes.
    """
    _switch["is_on"] = enabled


def is_used() -> bool:
    """Whether networks traced now use the kernel."""
    return _switch["is_on"]


def fuse_layers(network_layers: Iterable[keras.layers.Layer]) -> None:
    """Lets BatchNormalizations learn in one kernel. Files saved later are plain.

    Args:
        network_layers: changed in place, at most once; other layers, and those with a
            `call` of their own, are left.
    """
    plain = layers.BatchNormalization
    for layer in network_layers:
        if isinstance(layer, plain) and type(layer).call is plain.call:
            override_call(layer, "fused", _fused)


def frozen_batch_norm(
    tensor: tf.Tensor, scale: tf.Tensor, shift: tf.Tensor
) -> tf.Tensor:
    """`tensor * scale + shift` per channel; a gradient reaches `tensor` alone.

    Args:
        tensor: `(B, height, width, C)`, in float32, bfloat16 or float16.
        scale: `(C,)`, float32, as `shift`.
        shift: `(C,)`.
    """

    @tf.custom_gradient
    def compute(tensor):
        def gradient(upstream):
            return upstream * tf.cast(scale, upstream.dtype)

        return _affine(tensor, scale, shift), gradient

    return compute(tensor)


def batch_moments(tensors: Sequence[tf.Tensor]) -> tuple[tf.Tensor, tf.Tensor]:
    """Means and biased variances of all channels of all tensors, joined.

    One gradient for all: a deep teacher has dozens of layers, and what automatic
    differentiation makes of each takes several maps of memory.

    Args:
        tensors: `(B, ..., C_i)` each.

    Returns:
        Two vectors `(C_1 + C_2 + ...,)`: float32, or as the tensors where no kernel
        takes them.
    """

    @tf.custom_gradient
    def compute(*maps):
        widths = [each.shape[-1] for each in maps]
        means, variances = zip(*map(_statistics, maps))
        counts = tf.stack([tf.cast(_count(m), means[0].dtype) for m in maps])

        def gradient(of_means, of_variances):
            # d mean = dx / n, d variance = 2 (x - mean) dx / n: affine in x.
            per_channel = tf.repeat(counts, widths)
            slopes = 2 * of_variances / per_channel
            shifts = of_means / per_channel - slopes * joined
            split = tf.split(slopes, widths), tf.split(shifts, widths)
            return [_affine(*each) for each in zip(maps, *split)]

        joined = tf.concat(means, 0)
        return (joined, tf.concat(variances, 0)), gradient

    # The kernel has four axes: what is between batch and channels becomes one.
    maps = (
        each if len(each.shape) == 4 else tf.reshape(each, (-1, 1, 1, each.shape[-1]))
        for each in tensors
    )
    return compute(*maps)


def _fused(layer: layers.BatchNormalization, call: Callable) -> Callable:
    def fused_call(inputs, training=None, mask=None):
        fits = (
            is_used()
            and training
            and layer.trainable
            and mask is None
            and len(inputs.shape) == 4
            and layer.axis in (-1, 3)
            and not (layer.synchronized or layer.renorm)
            and _has_kernel(inputs)
        )
        if not fits:
            return call(inputs, training=training, mask=mask)
        outputs, mean, variance = _normalised(
            inputs,
            layer.gamma.value if layer.scale else None,
            layer.beta.value if layer.center else None,
            layer.epsilon,
        )
        old, new = layer.momentum, 1.0 - layer.momentum
        layer.moving_mean.assign(layer.moving_mean * old + mean * new)
        layer.moving_variance.assign(layer.moving_variance * old + variance * new)
        return outputs

    return fused_call


def _statistics(tensor):
    if _has_kernel(tensor):
        return _normalised(tensor)[1:]
    return tf.nn.moments(tensor, (0, 1, 2))


def _normalised(tensor, scale=None, shift=None, epsilon=1e-3):
    """Normalised tensor, mean and biased variance of each channel."""
    width = tensor.shape[-1]
    outputs, mean, variance, *_ = tf.raw_ops.FusedBatchNormV3(
        x=tensor,
        scale=_constant(1.0, width) if scale is None else scale,
        offset=_constant(0.0, width) if shift is None else shift,
        mean=_constant(0.0, 0),
        variance=_constant(0.0, 0),
        epsilon=epsilon,
        is_training=True,
    )
    # The kernel's variance is unbiased, with n - 1 below; Keras's is not.
    count = _count(tensor)
    return outputs, mean, variance * ((count - 1) / count)


def _affine(tensor, scale, shift):
    """`tensor * scale + shift` per channel, in one pass where there is a kernel."""
    if not _has_kernel(tensor):
        return tensor * scale + shift
    width = tensor.shape[-1]
    return tf.raw_ops.FusedBatchNormV3(
        x=tensor,
        scale=scale,
        offset=shift,
        mean=_constant(0.0, width),
        variance=_constant(1.0, width),
        epsilon=0.0,
        is_training=False,
    ).y


@functools.cache
def _constant(value: float, width: int) -> tf.Tensor:
    """One tensor for all layers of all graphs: there are hundreds of layers."""
    with tf.init_scope():
        return tf.fill([width], value)


def _count(tensor) -> float | tf.Tensor:
    """Values per channel: a number, which takes no operation, where it is known."""
    *shape, channels = tensor.shape
    if None not in shape:
        return float(math.prod(shape))
    return tf.cast(tf.size(tensor) // channels, tf.float32)


def _has_kernel(tensor) -> bool:
    return keras.backend.standardize_dtype(tensor.dtype) in FUSED
