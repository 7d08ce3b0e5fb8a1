"""BatchNormalizations in inference as part of the convolutions that they read.

In inference a BatchNormalization is a scale and a shift per channel; the scale goes
into the kernel of the convolution before it, the shift into its bias. Equal up to
rounding.
"""

import functools
from collections.abc import Callable, Iterable

import keras
import numpy as np
import tensorflow as tf
from keras import KerasTensor, layers, ops

from cdfkd_tf.runtime import fused_batchnorm
from cdfkd_tf.runtime.keras_internals import (
    input_of_only_call,
    is_graph,
    num_readers,
    producer,
)

CONVOLUTIONS = (layers.Conv2D, layers.DepthwiseConv2D)


def bn_scale_and_shift(
    layer: layers.BatchNormalization,
) -> tuple[np.ndarray, np.ndarray]:
    """What a BatchNormalization computes in inference: `x * scale + shift`.

    Returns:
        `(channels,)` each, in the dtype of the layer's weights.
    """
    scale = 1 / np.sqrt(np.array(layer.moving_variance, "float64") + layer.epsilon)
    if layer.scale:
        scale = scale * np.array(layer.gamma)
    shift = -np.array(layer.moving_mean) * scale
    if layer.center:
        shift = shift + np.array(layer.beta)
    dtype = np.array(layer.moving_mean).dtype
    return scale.astype(dtype), shift.astype(dtype)


def folded_weights(
    convolution: layers.Layer, norm: layers.BatchNormalization
) -> tuple[np.ndarray, np.ndarray]:
    """Kernel and bias of the one convolution that does the work of both.

    Args:
        convolution: one of `CONVOLUTIONS`, without activation.
        norm: reads its output and nothing else does.

    Returns:
        Kernel as of the convolution; bias `(channels,)`, of what comes out.
    """
    scale, shift = bn_scale_and_shift(norm)
    kernel = np.array(convolution.kernel)
    # Depthwise kernels end with input channel and multiplier, others with the output.
    depthwise = isinstance(convolution, layers.DepthwiseConv2D)
    kernel = kernel * scale.reshape(kernel.shape[2:] if depthwise else (-1,))
    bias = np.array(convolution.bias) if convolution.use_bias else 0.0
    return kernel, bias * scale + shift


def foldable(model: keras.Model) -> list[tuple[layers.Layer, layers.Layer]]:
    """Convolutions and the BatchNormalizations that alone read them.

    Args:
        model: functional or Sequential; models in it are looked into, too. Of others,
            whose connections are not known: none.
    """
    found = []
    for layer in model.layers if is_graph(model) else ():
        if isinstance(layer, keras.Model):
            found += foldable(layer)
        if type(layer) is layers.BatchNormalization:
            before = _only_read_by(layer, model)
            if before is not None:
                found.append((before, layer))
    return found


def folded_calls(
    model: keras.Model, kept: Iterable[layers.Layer] = ()
) -> dict[int, Callable[[KerasTensor], KerasTensor]]:
    """What `foldable` layers of a frozen model compute when they are folded.

    Args:
        model: its weights are taken as they stand.
        kept: layers whose own output is read, and which therefore do not fold.

    Returns:
        `id` of a layer to a function of its input: the convolution with folded
        weights, or for a BatchNormalization its input itself.
    """
    kept, calls = set(map(id, kept)), {}
    with tf.init_scope():  # weights are read, and stay, outside of any graph
        for convolution, norm in foldable(model):
            if not kept & {id(convolution), id(norm)}:
                calls[id(convolution)] = _folded(convolution, norm)
                calls[id(norm)] = lambda inputs: inputs
    return calls


def fused_calls(
    network_layers: Iterable[layers.Layer],
) -> dict[int, Callable[[KerasTensor], KerasTensor]]:
    """What BatchNormalizations of a frozen network compute in one kernel.

    Args:
        network_layers: those that are no BatchNormalization of maps are left out.

    Returns:
        `id` of a layer to a function of its input `(B, height, width, channels)`.
    """
    return {
        id(layer): functools.partial(_scaled, layer)
        for layer in network_layers
        if type(layer) is layers.BatchNormalization
        and getattr(layer.input_spec, "ndim", 0) == 4
        and layer.axis in (-1, 3)
        and layer.compute_dtype in fused_batchnorm.FUSED
    }


def _scaled(norm, inputs):
    with tf.init_scope():  # frozen: constants of whatever is traced
        scale, shift = (
            tf.constant(values, "float32") for values in bn_scale_and_shift(norm)
        )
    return fused_batchnorm.frozen_batch_norm(inputs, scale, shift)


def _folded(convolution, norm) -> Callable[[KerasTensor], KerasTensor]:
    kernel, bias = (
        tf.constant(values, convolution.compute_dtype)
        for values in folded_weights(convolution, norm)
    )
    return lambda inputs: tf.nn.bias_add(_convolve(convolution, inputs, kernel), bias)


def _convolve(layer, inputs, kernel):
    if isinstance(layer, layers.Conv2D):
        return layer.convolution_op(inputs, kernel)
    return ops.depthwise_conv(
        inputs,
        kernel,
        strides=layer.strides,
        padding=layer.padding,
        dilation_rate=layer.dilation_rate,
        data_format=layer.data_format,
    )


def _only_read_by(norm, model) -> layers.Layer | None:
    """The convolution that `norm` reads, if nothing else does."""
    tensor = input_of_only_call(norm)
    if tensor is None:
        return None
    before = producer(tensor)
    fits = (
        type(before) in CONVOLUTIONS
        and before.quantization_mode is None
        and before.activation is keras.activations.linear
        and before.data_format == "channels_last"
        and norm.axis in (-1, len(tensor.shape) - 1)
        and input_of_only_call(before) is not None
        and num_readers(before) == 1
    )
    shown = {id(output) for output in model.outputs}
    return before if fits and id(tensor) not in shown else None
