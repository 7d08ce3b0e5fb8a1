"""The predictor as an equal graph that converters understand, in fewer operations.

Converters fold a BatchNormalization into the convolution before it by themselves. They
leave one behind a sum as a product and a sum: here it is one depthwise 1x1 convolution.
Keras looks up the size of the batch for each reshape: here all shapes are fixed, also
those of a network that takes images of any size. Group and layer normalisation are
written in operations that have integer kernels. All layers compute in float32.
"""

from collections.abc import Sequence
from typing import Any

import keras
import numpy as np
import tensorflow as tf
from keras import layers, ops, tree

from cdfkd_tf.networks.bn_folding import bn_scale_and_shift, foldable, folded_weights
from cdfkd_tf.runtime.keras_internals import is_graph


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
    copies: dict[Any, tuple[Any, Any]] = {}  # of a layer, or of a model at one size

    def clone(layer: Any) -> Any:
        if id(layer) in absorbed:
            return layers.Identity()
        if isinstance(layer, keras.Sequential):  # is cloned without `call`
            copy = keras.Model(layer.inputs[0], layer.outputs[0], name=layer.name), []
        elif not isinstance(layer, layers.Layer) or is_graph(layer):
            return layer
        else:
            copy = _copied(layer, norm_of.get(id(layer)))
        return copies.setdefault(id(layer), copy)[0]

    def cloned(model: keras.Model, tensors: Sequence[keras.KerasTensor]) -> keras.Model:
        """A copy for images, or maps, of the size of these."""
        inputs = [
            keras.Input(tensor.shape[1:], dtype=tensor.dtype, name=own.name)
            for tensor, own in zip(tensors, tree.flatten(model.input))
        ]
        inputs = tree.pack_sequence_as(model.input, inputs)
        return keras.models.clone_model(model, inputs, clone, call)

    def call(layer: Any, *args: Any, **kwargs: Any) -> Any:
        if isinstance(layer, layers.Identity):
            return args[0]
        if is_graph(layer):
            tensors = tree.flatten(args[0])
            key = f"{id(layer)} {[tensor.shape[1:] for tensor in tensors]}"
            if key not in copies:
                copies[key] = cloned(layer, tensors), []
            return copies[key][0](tree.pack_sequence_as(layer.input, tensors))
        # Not `training` of a layer that it replaces.
        return layer(args[0]) if isinstance(layer, _OWN) else layer(*args, **kwargs)

    model = cloned(predictor, [predictor.input])
    for layer, weights in copies.values():
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


def _copied(layer, norm) -> tuple[layers.Layer, Any]:
    """A layer for the new graph, and its weights; `norm` becomes part of it."""
    kind, config, weights = type(layer), layer.get_config(), layer.get_weights()
    config["dtype"] = "float32"
    if norm is not None:
        config["use_bias"], weights = True, folded_weights(layer, norm)
    elif kind is layers.BatchNormalization and _reads_channels_of_maps(layer):
        scale, shift = bn_scale_and_shift(layer)
        kind, config = _Scaled, {"kernel_size": 1, "name": layer.name}
        weights = [scale.reshape(1, 1, -1, 1), shift]
    elif kind is layers.Normalization:
        # The ONNX converter takes its constants for inputs.
        mean, std = np.ravel(layer.mean), np.sqrt(np.ravel(layer.variance))
        kind, weights = layers.Rescaling, []
        config = {"scale": (1 / std).tolist(), "offset": (-mean / std).tolist()}
        config["name"] = layer.name
    copy = _OWN_OF.get(kind, kind).from_config(config)
    if getattr(copy, "activation", None) is keras.activations.gelu:
        copy.activation = _gelu
    return copy, weights


def _reads_channels_of_maps(norm) -> bool:
    return norm.input_spec.ndim == 4 and norm.axis in (-1, 3)


def _gelu(inputs):
    """As converters know it; TensorFlow computes a complement of `erf`."""
    return 0.5 * inputs * (1.0 + ops.erf(inputs * 0.5**0.5))


class _Conv2D(layers.Conv2D):
    """For groups Keras calls a compiler, which converters cannot."""

    def convolution_op(self, inputs, kernel):
        if self.groups == 1 or self.data_format == "channels_first":
            return super().convolution_op(inputs, kernel)
        how = {"strides": self.strides, "padding": self.padding}
        how["dilation_rate"] = self.dilation_rate
        if self.groups == inputs.shape[-1]:
            kernel = ops.reshape(kernel, (*kernel.shape[:2], self.groups, -1))
            return ops.depthwise_conv(inputs, kernel, **how)
        parts = (ops.split(tensor, self.groups, axis=-1) for tensor in (inputs, kernel))
        return ops.concatenate([ops.conv(x, k, **how) for x, k in zip(*parts)], axis=-1)


class _Scaled(layers.DepthwiseConv2D):
    pass


class _Reshape(layers.Reshape):
    def call(self, inputs):
        return ops.reshape(inputs, (-1, *self.compute_output_shape(inputs.shape)[1:]))


class _Dense(layers.Dense):
    """On `(B, n, W)`: one product of two matrices."""

    def call(self, inputs):
        if len(inputs.shape) != 3:
            return super().call(inputs)
        rows = super().call(ops.reshape(inputs, (-1, inputs.shape[-1])))
        return ops.reshape(rows, (-1, inputs.shape[1], self.units))


class _GroupNormalization(layers.GroupNormalization):
    def call(self, inputs):
        if self.axis not in (-1, len(inputs.shape) - 1):
            return super().call(inputs)
        size = int(np.prod(inputs.shape[1:-1]))
        grouped = (-1, size, self.groups, inputs.shape[-1] // self.groups)
        outputs = _standardised(ops.reshape(inputs, grouped), (1, 3), self.epsilon)
        return _affine(self, ops.reshape(outputs, (-1, *inputs.shape[1:])))


class _LayerNormalization(layers.LayerNormalization):
    def call(self, inputs):
        axes = [axis % len(inputs.shape) for axis in np.atleast_1d(self.axis)]
        if axes != [len(inputs.shape) - 1]:
            return super().call(inputs)
        return _affine(self, _standardised(inputs, axes, self.epsilon))


def _standardised(inputs, axes, epsilon):
    mean = ops.mean(inputs, axes, keepdims=True)
    variance = tf.math.squared_difference(inputs, mean)
    variance = ops.mean(variance, axes, keepdims=True)
    return (inputs - mean) * ops.rsqrt(variance + epsilon)


def _affine(norm, outputs):
    outputs = outputs * norm.gamma if norm.scale else outputs
    return outputs + norm.beta if norm.center else outputs


_OWN_OF = {
    layers.Conv2D: _Conv2D,
    layers.Reshape: _Reshape,
    layers.Dense: _Dense,
    layers.GroupNormalization: _GroupNormalization,
    layers.LayerNormalization: _LayerNormalization,
}
_OWN = (_Scaled, layers.Rescaling, *_OWN_OF.values())
