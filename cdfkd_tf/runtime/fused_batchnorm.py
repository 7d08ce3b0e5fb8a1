"""BatchNormalization in one kernel, where Keras composes it of many operations.

Each of the elementary operations that Keras's is made of reads and writes all
activations; on a CPU that takes as long as the convolutions of a small network. Results
are equal up to rounding. What each use gains is in experiments/benchmarks/README.md.
"""

from collections.abc import Callable, Iterable, Sequence

import keras
import numpy as np
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


def batch_moments(tensors: Sequence[tf.Tensor]) -> tuple[tf.Tensor, tf.Tensor]:
    """Means and biased variances of all channels of all tensors, joined.

    One gradient for all: a deep teacher has dozens of layers to look at.

    Args:
        tensors: `(B, ..., C_i)` each, of dtypes in `FUSED`.

    Returns:
        Two vectors `(C_1 + C_2 + ...,)`, float32.
    """
    return _moments(*(_as_maps(tensor) for tensor in tensors))


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
            and keras.backend.standardize_dtype(inputs.dtype) in FUSED
        )
        if not fits:
            return call(inputs, training=training, mask=mask)
        outputs, mean, variance = _in_one_kernel(
            inputs,
            layer.gamma.value if layer.scale else None,
            layer.beta.value if layer.center else None,
            layer.epsilon,
        )
        old, new = layer.momentum, 1.0 - layer.momentum
        to_biased = _biased(_count(inputs))
        for moving, now in (
            (layer.moving_mean, mean * new),
            (layer.moving_variance, variance * (to_biased * new)),
        ):
            moving.assign(moving * old + now)
        return outputs

    return fused_call


@tf.custom_gradient
def _moments(*tensors):
    widths = [tensor.shape[-1] for tensor in tensors]
    found = [_in_one_kernel(tensor)[1:] for tensor in tensors]
    means = [mean for mean, _ in found]
    counts = _per_channel([_count(tensor) for tensor in tensors], widths)
    variances = tf.concat([variance for _, variance in found], 0) * _biased(counts)

    def gradient(of_means, of_variances):
        # d mean = dx / n, d variance = 2 (x - mean) dx / n: one affine pass over x.
        scales = tf.split(of_variances * (2 / counts), widths)
        shifts = tf.split(of_means * (1 / counts), widths)
        return [_affine(*each) for each in zip(tensors, scales, shifts, means)]

    return (tf.concat(means, 0), variances), gradient


def _in_one_kernel(tensor, scale=None, shift=None, epsilon=1e-4):
    """Normalised tensor, each channel's mean and unbiased variance."""
    channels = tensor.shape[-1]
    return tf.raw_ops.FusedBatchNormV3(
        x=tensor,
        scale=tf.ones(channels) if scale is None else scale,
        offset=tf.zeros(channels) if shift is None else shift,
        mean=tf.zeros(0),
        variance=tf.zeros(0),
        epsilon=epsilon,
        is_training=True,
    )[:3]


def _affine(tensor, scale, shift, centre=None):
    """`(tensor - centre) * scale + shift`, in one pass."""
    channels = tensor.shape[-1]
    return tf.raw_ops.FusedBatchNormV3(
        x=tensor,
        scale=scale,
        offset=shift,
        mean=tf.zeros(channels) if centre is None else centre,
        variance=tf.ones(channels),
        epsilon=0.0,
        is_training=False,
    )[0]


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


def _count(tensor) -> float | tf.Tensor:
    """Values per channel; a number where the batch's size is known."""
    *shape, _ = tensor.shape
    if None not in shape:
        return float(np.prod(shape))
    return tf.cast(tf.size(tensor) // tensor.shape[-1], tf.float32)


def _biased(count: float | tf.Tensor) -> float | tf.Tensor:
    """What the kernel's variance, with n - 1 below, is multiplied by to have n."""
    return (count - 1) / count
