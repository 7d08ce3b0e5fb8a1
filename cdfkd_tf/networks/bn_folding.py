"""Networks for inference alone, in fewer operations than they learned with.

A BatchNormalization that reads a convolution is part of that convolution: its scale
goes into the kernel, its shift into the bias. Equal up to rounding.
"""

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import keras
import numpy as np
import tensorflow as tf
from keras import layers, ops

CONVOLUTIONS = (layers.Conv2D, layers.DepthwiseConv2D)


def affine(layer: layers.BatchNormalization) -> tuple[np.ndarray, np.ndarray]:
    """What a BatchNormalization computes in inference, as scale and shift."""
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
    """
    scale, shift = affine(norm)
    kernel = np.array(convolution.kernel)
    # Depthwise kernels end with input channel and multiplier, others with the output.
    depthwise = isinstance(convolution, layers.DepthwiseConv2D)
    kernel = kernel * scale.reshape(kernel.shape[2:] if depthwise else (-1,))
    bias = np.array(convolution.bias) if convolution.use_bias else 0.0
    return kernel, bias * scale + shift


class Folding:
    """Lets a network's layers compute folded, while asked to, without a copy of it.

    Thread-local: replicas fold apart.

    Args:
        model: frozen; its layers of plain Keras kinds fold, see `foldable`. A
            subclassed model, whose graph nobody can see, has none.
        kept: layers whose own output somebody reads.
    """

    def __init__(self, model: keras.Model, kept: tuple[Any, ...] = ()):
        self._model, self._kept = model, kept
        self._local = threading.local()
        self._pairs: list | None = None  # a Sequential may still have to be built
        self._weights: dict[int, tuple[tf.Tensor, ...]] = {}

    def refresh(self) -> None:
        """Folds the weights as they now stand."""
        if self._pairs is None:
            self._pairs = self._prepare()
        with tf.init_scope():  # weights are read, and stay, outside of any graph
            for convolution, norm in self._pairs:
                dtype = convolution.compute_dtype
                self._weights[id(convolution)] = tuple(
                    tf.constant(values, dtype)
                    for values in folded_weights(convolution, norm)
                )

    def _prepare(self) -> list[tuple[layers.Layer, layers.Layer]]:
        found = foldable(self._model) if _is_graph(self._model) else []
        kept = {id(layer) for layer in self._kept}
        pairs = [pair for pair in found if not kept & set(map(id, pair))]
        for convolution, norm in pairs:
            convolution.call = self._folded(convolution, convolution.call)
            norm.call = self._left_out(norm.call)
        return pairs

    @contextmanager
    def active(self) -> Iterator[None]:
        """Within, the network computes folded."""
        if self._pairs is None:
            self.refresh()
        self._local.active = True
        try:
            yield
        finally:
            self._local.active = False

    @property
    def _is_active(self) -> bool:
        return getattr(self._local, "active", False)

    def _folded(self, layer: layers.Layer, call: Callable) -> Callable:
        def folded_call(inputs, *args, **kwargs):
            if not self._is_active:
                return call(inputs, *args, **kwargs)
            kernel, bias = self._weights[id(layer)]
            return tf.nn.bias_add(_convolve(layer, inputs, kernel), bias)

        return folded_call

    def _left_out(self, call: Callable) -> Callable:
        def folded_call(inputs, *args, **kwargs):
            return inputs if self._is_active else call(inputs, *args, **kwargs)

        return folded_call


def _convolve(layer: layers.Layer, inputs: tf.Tensor, kernel: tf.Tensor) -> tf.Tensor:
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


def copy_in(model: keras.Model, dtype_policy: str) -> keras.Model | None:
    """A frozen copy whose layers compute in another precision.

    Args:
        model: functional or Sequential, with models in it at any depth.
        dtype_policy: of the copy's layers.

    Returns:
        A model of the same input and output, layers of the same names; None for a
        subclassed model.
    """
    if not _is_graph(model):
        return None
    copies: list[tuple[Any, Any]] = []

    def copied(layer):
        config = layer.get_config()
        if isinstance(layer, layers.Layer):
            config["dtype"] = dtype_policy
        copies.append((layer, type(layer).from_config(config)))
        return copies[-1][1]

    copy = keras.models.clone_model(model, clone_function=copied, recursive=True)
    for layer, again in copies:
        if isinstance(layer, layers.Layer) and layer.weights:
            again.set_weights(layer.get_weights())
    copy.trainable = False
    return copy


def foldable(model: keras.Model) -> list[tuple[layers.Layer, layers.Layer]]:
    """Convolutions and the BatchNormalizations that alone read them.

    Args:
        model: functional or Sequential; models in it are looked into, too.
    """
    found = []
    for layer in model.layers:
        if isinstance(layer, keras.Model) and _is_graph(layer):
            found += foldable(layer)
        if type(layer) is layers.BatchNormalization:
            before = _only_read_by(layer, model)
            if before is not None:
                found.append((before, layer))
    return found


def _only_read_by(norm, model) -> layers.Layer | None:
    """The convolution that `norm` reads, if nobody else does."""
    if len(norm._inbound_nodes) != 1:
        return None
    tensor = norm._inbound_nodes[0].input_tensors[0]
    before = tensor._keras_history.operation
    fits = (
        type(before) in CONVOLUTIONS
        and before.quantization_mode is None
        and before.activation is keras.activations.linear
        and before.data_format == "channels_last"
        and norm.axis in (-1, len(tensor.shape) - 1)
        and len(before._inbound_nodes) == 1
        and len(before._outbound_nodes) == 1
    )
    shown = {id(output) for output in model.outputs}
    return before if fits and id(tensor) not in shown else None


def _is_graph(model: keras.Model) -> bool:
    if isinstance(model, keras.Sequential):
        return model._functional is not None
    return hasattr(model, "_run_through_graph")
