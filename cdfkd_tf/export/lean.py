"""The predictor as the smallest equal graph: what devices compute.

Learned networks carry layers that a device need not run. Here every BatchNormalization
becomes part of the convolution before it (or, behind a sum, one depthwise 1x1
convolution), the division by the data set's deviation part of the first convolution,
and an aggregator that weighs all images alike part of one Dense layer for all headers.
Outputs nobody reads are not rebuilt.
"""

from collections.abc import Callable
from typing import Any

import keras
import numpy as np
from keras import KerasTensor, layers, ops

from cdfkd_tf.networks.bn_folding import CONVOLUTIONS, bn_scale_and_shift


def lean_predictor(predictor: keras.Model) -> keras.Model:
    """The same function as `predictor`, in fewer operations.

    Args:
        predictor: from `build_predictor`: images `(B, height, width, channels)` in
            [0, 1] to probabilities `(B, C)`.

    Returns:
        A functional model of the same input and output. Not meant for training or
        saving; weights are copies.
    """
    normalisation, student, aggregator = _parts(predictor)
    mean = np.reshape(np.array(normalisation.mean), -1)
    std = np.sqrt(np.reshape(np.array(normalisation.variance), -1))
    image = keras.Input(predictor.input_shape[1:], name="image")
    folding = _Folding(student, std)
    if folding.scales_image:
        pixels = layers.Rescaling(1.0, offset=list(-mean), name="centre")(image)
    else:
        pixels = layers.Rescaling(list(1 / std), list(-mean / std), name="scale")(image)
    tensors = walk(student, pixels, folding)
    headers = range(student.output["logits"].shape[1])
    features = [
        tensors[id(student.get_layer(f"header{header}_features").output)]
        for header in headers
    ]
    dense = [student.get_layer(f"header{header}_logits") for header in headers]
    logits = _aggregated(aggregator, features, dense)
    return keras.Model(image, layers.Softmax(name="probabilities")(logits))


def walk(model: keras.Model, start: Any, apply: Callable[[Any, Any], Any]) -> dict:
    """Goes through a flat functional model's layers in order.

    Args:
        model: one input; each layer used once; models in it count as layers.
        start: stands for the model's input.
        apply: `(layer, its inputs) -> its output`; inputs as the layer takes them.

    Returns:
        `id` of each of the model's symbolic tensors -> what stands for it.
    """
    values = {id(model.input): start}
    for layer in model.layers:
        if isinstance(layer, layers.InputLayer):
            continue
        taken, made = _ends(layer)
        inputs = keras.tree.map_structure(lambda t: values[id(t)], taken)
        outputs = keras.tree.flatten(apply(layer, inputs))
        values.update(zip(map(id, made), outputs))
    return values


def _ends(layer: keras.layers.Layer) -> tuple[Any, list[KerasTensor]]:
    """What a layer takes and makes in its model, a nested model's call included."""
    if isinstance(layer, keras.Model):  # its own input and output are another graph's
        node = layer._inbound_nodes[-1]
        taken = node.input_tensors
        return taken[0] if len(taken) == 1 else taken, list(node.output_tensors)
    return layer.input, keras.tree.flatten(layer.output)


def _parts(predictor: keras.Model):
    normalisation, student, aggregator = predictor.layers[1:4]
    return normalisation, student, aggregator


class _Folding:
    """Rebuilds a student layer by layer; for `walk`.

    Args:
        student: flat functional.
        std: of the image's channels; divides the first convolutions' kernels.
    """

    def __init__(self, student: keras.Model, std: np.ndarray):
        self._std = std
        self._producer = {
            id(tensor): layer for layer in student.layers for tensor in _ends(layer)[1]
        }
        readers: dict[int, list] = {}
        for layer in student.layers:
            if isinstance(layer, layers.InputLayer):
                continue
            for tensor in keras.tree.flatten(_ends(layer)[0]):
                readers.setdefault(id(tensor), []).append(layer)
        self._readers = readers
        self._first = self._readers_of_image(student)
        self.scales_image = all(isinstance(x, layers.Conv2D) for x in self._first)
        self._padded: dict[tuple, KerasTensor] = {}

    def _readers_of_image(self, student):
        found = []
        for layer in self._readers[id(student.input)]:
            padding = isinstance(layer, layers.ZeroPadding2D)
            found += self._readers[id(layer.output)] if padding else [layer]
        return found

    def __call__(self, layer, inputs):
        if isinstance(layer, keras.Model):  # somebody's trunk, left as it is
            again = keras.models.clone_model(layer)
            again.set_weights(layer.get_weights())
            return again(inputs)
        if isinstance(layer, layers.BatchNormalization):
            if self._folds(self._producer[id(layer.input)]):
                return inputs
            scale, shift = bn_scale_and_shift(layer)
            kernel = scale.reshape(1, 1, -1, 1)
            again = layers.DepthwiseConv2D(1, name=layer.name)
            return _with_weights(again, inputs, kernel, shift)
        if isinstance(layer, CONVOLUTIONS):
            return self._convolution(layer, inputs)
        if isinstance(layer, layers.ZeroPadding2D):  # headers pad the same maps
            key = (id(inputs), str(layer.padding))
            if key not in self._padded:
                self._padded[key] = _again(layer)(inputs)
            return self._padded[key]
        if isinstance(layer, layers.Dense):
            return _with_weights(_again(layer), inputs, *layer.get_weights())
        return _again(layer)(inputs)

    def _folds(self, layer) -> bool:
        """Whether this is a convolution that only a BatchNormalization reads."""
        readers = self._readers.get(id(layer.output), [])
        return (
            isinstance(layer, CONVOLUTIONS)
            and len(readers) == 1
            and isinstance(readers[0], layers.BatchNormalization)
        )

    def _convolution(self, layer, inputs):
        kernel = np.array(layer.kernel)
        is_depthwise = isinstance(layer, layers.DepthwiseConv2D)
        bias = np.zeros(layer.output.shape[-1], "float32")
        if layer.use_bias:
            bias = np.array(layer.bias)
        if self.scales_image and layer in self._first:
            kernel = kernel / self._std.reshape(1, 1, -1, 1)
        has_bias = layer.use_bias
        if self._folds(layer):
            scale, shift = bn_scale_and_shift(self._readers[id(layer.output)][0])
            kernel = kernel * scale.reshape((1, 1, -1, 1) if is_depthwise else (-1,))
            bias, has_bias = bias * scale + shift, True
        weights = [kernel, bias] if has_bias else [kernel]
        return _with_weights(_again(layer, use_bias=has_bias), inputs, *weights)


def _again(layer, **changes):
    """A fresh layer of the same settings."""
    return type(layer).from_config({**layer.get_config(), **changes})


def _with_weights(layer, inputs, *weights):
    output = layer(inputs)
    layer.set_weights(weights)
    return output


def _aggregated(aggregator, features, dense) -> KerasTensor:
    """Logits `(B, C)` from each header's features `(B, W)` and Dense layer."""
    weights = _fixed_weights(aggregator, len(dense))
    if weights is not None:
        kernels = [w * np.array(d.kernel) for w, d in zip(weights, dense)]
        bias = sum(w * np.array(d.bias) for w, d in zip(weights, dense))
        several = layers.Dense(len(bias), name="logits")
        return _with_weights(several, _joined(features), np.concatenate(kernels), bias)
    num_headers = len(dense)
    logits = [
        _with_weights(_again(layer), feature, *layer.get_weights())
        for layer, feature in zip(dense, features)
    ]
    logits = _joined(logits)
    scorer = np.array(aggregator.get_layer("scorer").kernel)
    by_features = aggregator.name.startswith("feature")
    scored = _joined(features) if by_features else logits
    # One Dense layer for all headers: each reads its own part.
    kernel = np.kron(np.eye(num_headers, dtype="float32"), scorer)
    scores = layers.Dense(num_headers, use_bias=False, name="scores")
    scores = _with_weights(scores, scored, kernel)
    shares = layers.Softmax(name="header_weights")(scores)
    return _WeightedSum(name="weighted_sum")([shares, logits])


class _WeightedSum(layers.Layer):
    """Weights `(B, H)` and all headers' logits, `(B, H * C)`, to `(B, C)`."""

    def call(self, inputs):
        shares, logits = inputs
        num_headers = shares.shape[-1]
        # -1, not the batch's size: no operation has to look for it.
        shares = ops.reshape(shares, (-1, 1, num_headers))
        logits = ops.reshape(logits, (-1, num_headers, logits.shape[-1] // num_headers))
        return ops.squeeze(ops.matmul(shares, logits), axis=1)


def _fixed_weights(aggregator, num_headers: int) -> list[float] | None:
    """The headers' weights where they are the same for every image, else None."""
    learned = [np.array(weight) for weight in aggregator.weights]
    attends = aggregator.name.endswith("attention_aggregator")
    if not learned or (attends and (num_headers == 1 or not learned[0].any())):
        # Attention that has learned nothing, or has no choice, is the mean.
        return [1 / num_headers] * num_headers
    if aggregator.name == "weights_aggregator":
        return list(learned[0][:, 0])
    return None


def _joined(tensors: list[KerasTensor]) -> KerasTensor:
    return layers.Concatenate()(tensors) if len(tensors) > 1 else tensors[0]
