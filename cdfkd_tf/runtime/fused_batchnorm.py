"""BatchNormalization in one kernel, where Keras composes it of many operations.

Each of the elementary operations that Keras's is made of reads and writes all
activations; on a CPU that takes as long as the convolutions of a small network. Results
are equal up to rounding. What each use gains is in experiments/benchmarks/README.md.
"""

from collections.abc import Callable, Iterable

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

        channels = tensor.shape[-1]
        outputs = tf.raw_ops.FusedBatchNormV3(
            x=tensor,
            scale=scale,
            offset=shift,
            mean=tf.zeros(channels),
            variance=tf.ones(channels),
            epsilon=0.0,
            is_training=False,
        )
        return outputs.y, gradient

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
        channels = inputs.shape[-1]
        outputs, mean, variance, *_ = tf.raw_ops.FusedBatchNormV3(
            x=inputs,
            scale=layer.gamma.value if layer.scale else tf.ones(channels),
            offset=layer.beta.value if layer.center else tf.zeros(channels),
            mean=tf.zeros(0),
            variance=tf.zeros(0),
            epsilon=layer.epsilon,
            is_training=True,
        )
        # The kernel's variance is unbiased, with n - 1 below; Keras's is not.
        count = tf.cast(tf.size(inputs) // channels, tf.float32)
        variance = variance * ((count - 1) / count)
        old, new = layer.momentum, 1.0 - layer.momentum
        layer.moving_mean.assign(layer.moving_mean * old + mean * new)
        layer.moving_variance.assign(layer.moving_variance * old + variance * new)
        return outputs

    return fused_call
