"""Networks for inference alone, in fewer operations than they learned with.

A BatchNormalization that reads a convolution is part of that convolution: its scale
goes into the kernel, its shift into the bias. Equal up to rounding.
"""

from typing import Any

import keras
import numpy as np
from keras import layers

CONVOLUTIONS = (layers.Conv2D, layers.DepthwiseConv2D)


def affine(layer: layers.BatchNormalization) -> tuple[np.ndarray, np.ndarray]:
    """What a BatchNormalization computes in inference, as scale and shift."""
    scale = 1 / np.sqrt(np.array(layer.moving_variance, "float64") + layer.epsilon)
    if layer.scale:
        scale = scale * np.array(layer.gamma)
    shift = -np.array(layer.moving_mean) * scale
    if layer.center:
        shift = shift + np.array(layer.beta)
    return scale.astype("float32"), shift.astype("float32")


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


def inference_copy(
    model: keras.Model, dtype_policy: str | None = None, *, fold: bool = True
) -> keras.Model | None:
    """A frozen copy, its BatchNormalizations folded where that is possible.

    Args:
        model: functional or Sequential, with models in it at any depth.
        dtype_policy: of the copy's layers; None: as they are.
        fold: False only copies.

    Returns:
        A model of the same input and output, layers of the same names; None for a
        subclassed model, whose graph nobody can see.
    """
    if not _is_graph(model):
        return None
    pairs = foldable(model) if fold else []
    norm_of = {id(convolution): norm for convolution, norm in pairs}
    dropped = {id(norm) for _, norm in pairs}
    copies: list[tuple[Any, Any]] = []

    def copied(layer):
        if id(layer) in dropped:
            return layers.Identity(name=layer.name, dtype=layer.dtype_policy)
        config = layer.get_config()
        if id(layer) in norm_of:
            config["use_bias"] = True
        if dtype_policy and isinstance(layer, layers.Layer):
            config["dtype"] = dtype_policy
        copies.append((layer, type(layer).from_config(config)))
        return copies[-1][1]

    def called(layer, *args, **kwargs):
        # What stands for a BatchNormalization knows none of its arguments.
        return args[0] if isinstance(layer, layers.Identity) else layer(*args, **kwargs)

    call = {} if isinstance(model, keras.Sequential) else {"call_function": called}
    copy = keras.models.clone_model(
        model, clone_function=copied, recursive=True, **call
    )
    for layer, again in copies:
        if id(layer) in norm_of:
            again.set_weights(folded_weights(layer, norm_of[id(layer)]))
        elif isinstance(layer, layers.Layer) and layer.weights:
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
        if isinstance(layer, layers.BatchNormalization):
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
        isinstance(before, CONVOLUTIONS)
        and before.activation is keras.activations.linear
        and before.data_format == "channels_last"
        and norm.axis in (-1, len(tensor.shape) - 1)
        and len(before._inbound_nodes) == 1
        and len(before._outbound_nodes) == 1
    )
    shown = {id(output) for output in keras.tree.flatten(model.output)}
    return before if fits and id(tensor) not in shown else None


def _is_graph(model: keras.Model) -> bool:
    return isinstance(model, keras.Sequential) or hasattr(model, "_run_through_graph")
