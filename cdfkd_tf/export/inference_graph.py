"""The predictor as an equal graph in fewer operations, for all export formats.

Converters fold a BatchNormalization into the convolution before it by themselves. They
leave one behind a sum as a product and a sum: here it is one depthwise 1x1 convolution.
And Keras looks up the size of the batch for each reshape: here the shapes are fixed.
"""

from collections.abc import Sequence
from typing import Any

import keras
import numpy as np
import tensorflow as tf
from keras import layers, ops

from cdfkd_tf.networks.bn_folding import bn_scale_and_shift, foldable, folded_weights


def inference_graph(predictor: keras.Model) -> keras.Model:
    """The same function as `predictor`, without BatchNormalization.

    Args:
        predictor: from `build_predictor`: images `(B, height, width, channels)` in
            [0, 1] to probabilities `(B, C)`.

    Returns:
        A functional model of the same input and output whose weights are copies.
    """
    pairs = foldable(predictor)
    norm_of = {id(convolution): norm for convolution, norm in pairs}
    absorbed = {id(norm) for _, norm in pairs}
    copied: list[tuple[layers.Layer, Sequence[np.ndarray]]] = []

    def clone(layer: Any) -> Any:
        if not isinstance(layer, layers.Layer):
            return layer  # an operation
        if id(layer) in absorbed:
            return layers.Identity()
        copied.append(_copied(layer, norm_of.get(id(layer))))
        return copied[-1][0]

    def call(layer: Any, *args: Any, **kwargs: Any) -> Any:
        if isinstance(layer, layers.Identity):
            return args[0]
        if isinstance(layer, _OF_ONE_TENSOR):  # not `training` of what it replaces
            return layer(args[0])
        return layer(*args, **kwargs)

    model = keras.models.clone_model(
        predictor, clone_function=clone, call_function=call, recursive=True
    )
    for layer, weights in copied:
        if len(weights):
            layer.set_weights(weights)
    return model


def serving_function(model: keras.Model) -> Any:
    """`model` as a traced function, as SavedModels and converters take it.

    Args:
        model: images in [0, 1] to probabilities.

    Returns:
        A `tf.function` of `image`, float32 `(B, height, width, channels)`, to
        `{"probabilities": (B, C)}`.
    """
    image = tf.TensorSpec((None, *model.input_shape[1:]), tf.float32, name="image")

    @tf.function(input_signature=[image])
    def serve(image):
        return {"probabilities": model(image, training=False)}

    return serve


def _copied(layer, norm) -> tuple[layers.Layer, Sequence[np.ndarray]]:
    """A layer for the new graph, and its weights; `norm` becomes part of it."""
    kind, config, weights = type(layer), layer.get_config(), layer.get_weights()
    if norm is not None:
        config["use_bias"], weights = True, folded_weights(layer, norm)
    elif kind is layers.BatchNormalization and len(layer.input.shape) == 4:
        scale, shift = bn_scale_and_shift(layer)
        depthwise = layers.DepthwiseConv2D(1, name=layer.name)
        return depthwise, [scale.reshape(1, 1, -1, 1), shift]
    elif kind is layers.Normalization:
        # The ONNX converter takes its constants for inputs.
        mean, std = np.ravel(layer.mean), np.sqrt(np.ravel(layer.variance))
        scale, shift = (1 / std).tolist(), (-mean / std).tolist()
        return layers.Rescaling(scale, shift, name=layer.name), []
    elif kind is layers.Reshape:
        kind, config["target_shape"] = _Reshape, layer.output.shape[1:]
    elif kind is layers.Dense and len(layer.input.shape) == 3:
        kind = _DenseOfRows
    return kind.from_config(config), weights


class _Reshape(layers.Reshape):
    def call(self, inputs):
        return ops.reshape(inputs, (-1, *self.target_shape))


class _DenseOfRows(layers.Dense):
    """Dense on `(B, n, W)`: one product of two matrices."""

    def call(self, inputs):
        rows = super().call(ops.reshape(inputs, (-1, inputs.shape[-1])))
        return ops.reshape(rows, (-1, inputs.shape[1], self.units))


_OF_ONE_TENSOR = (
    layers.DepthwiseConv2D,
    layers.Rescaling,
    _Reshape,
    _DenseOfRows,
)
