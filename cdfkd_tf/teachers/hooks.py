"""Hooks around the calls of a frozen network's layers, to see its inner values.

They work at any nesting depth and for subclassed models, where a functional probe
finds no connected tensor.
"""

import functools
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple

import keras
import tensorflow as tf
from keras import KerasTensor, ops

from cdfkd_tf.errors import RequestError
from cdfkd_tf.networks.bn_folding import folded_calls, fused_calls
from cdfkd_tf.runtime import fused_batchnorm
from cdfkd_tf.runtime.keras_internals import (
    freeze,
    leaf_layers,
    override_call,
    restore_calls,
    unfreeze,
)

_KEY = "teacher"
# Thread-local: replicas compute apart. `records`: what the running forward pass has
# recorded; `recorded`: ids of the layers it records; `replaced`: see `_hooked`;
# `softmax`: id of the layer whose own input to a softmax is kept in `before_softmax`.
_local = threading.local()
INNER = frozenset({"bn_statistics", "feature_maps"})
BY_BATCH = "batch_statistics"  # wanted of a forward pass


class TeacherOutputs(NamedTuple):
    """What one teacher, or an ensemble of T, makes of B normalised images.

    Attributes:
        logits: of one teacher `(B, C_i)`, over its own classes; of an ensemble
            `(B, T, C)`, over the classes of the whole.
        features: `(B, W_i)`, or None where a teacher shows none; of an ensemble a
            list of T.
        bn: `(input (B, ..., channels), moving_mean, moving_variance)` of each
            BatchNormalization in forward order; of an ensemble a list of T lists.
            Empty unless "bn_statistics" was needed.
        maps: for each resolution the last map `(B, height, width, channels)` in
            forward order, finest first; of an ensemble a list of T lists. Empty
            unless "feature_maps" was needed.
    """

    logits: KerasTensor
    features: Any
    bn: list
    maps: list


class HookedModel:
    """A frozen network in inference mode, whose inner values are seen.

    Args:
        model: any built Keras model, or one without layers.
        feature_layer: name of the layer whose output, pooled if it is a map, is the
            features; empty: they are what enters the last Dense layer.
        name: what messages call it.

    Raises:
        RequestError: if there is no layer `feature_layer`.
    """

    def __init__(self, model: keras.Model, feature_layer: str, name: str):
        self.model = model
        self.layers = list(leaf_layers(model))
        self._feature_layer = self._named_layer(feature_layer, name)
        softmaxes = [layer for layer in self.layers if _ends_with_softmax(layer)]
        self._softmax = softmaxes[-1] if softmaxes else None
        self._fused = fused_calls(self.layers)
        self._folded: dict[int, Callable] | None = None
        freeze(model)
        for layer in self.layers:
            override_call(layer, _KEY, _hooked)
        self._is_released = False

    def __call__(
        self, images: KerasTensor, needs: frozenset[str] = frozenset()
    ) -> tuple[TeacherOutputs, KerasTensor | None]:
        """Its output, in the place of logits, and what is inside as far as needed.

        Args:
            images: `(B, ...)`, sides and values as the model expects them.
            needs: out of `INNER`, and `BY_BATCH`: BatchNormalizations take mean and
                variance of these images instead of those they stored. Without any, they
                are folded, with the weights as they stood at the last `fold`, or else
                the first time.

        Returns:
            The outputs; and what goes into its last softmax, if it has one.
        """
        replaced = {}
        if BY_BATCH in needs:
            norms = filter(_is_norm, self.layers)
            replaced = {id(norm): functools.partial(_by_batch, norm) for norm in norms}
        elif fused_batchnorm.is_used():
            if self._folded is None and not needs & INNER:
                self.fold()
            replaced = self._fused if needs & INNER else self._fused | self._folded
        with _recording(self._recorded(needs), replaced, self._softmax) as records:
            output = self.model(images, training=False)
            before_softmax = _local.before_softmax
        bn = [
            _channels_last(layer, inputs)
            for layer, inputs, _ in records
            if "bn_statistics" in needs and _is_norm(layer)
        ]
        maps = _last_of_each_resolution(records) if "feature_maps" in needs else []
        outputs = TeacherOutputs(output, self._features(records), bn, maps)
        return outputs, before_softmax

    def fold(self) -> None:
        """Folds the weights as they now stand."""
        kept = (self._feature_layer,) if self._feature_layer else ()
        self._folded = folded_calls(self.model, kept)

    def release(self) -> None:
        """Gives the model back as it was before. A second time does nothing."""
        if not self._is_released:
            self._is_released = True
            restore_calls(unfreeze(self.model), _KEY)

    def _recorded(self, needs: frozenset[str]) -> set[int]:
        """Ids of the layers whose inputs and outputs are wanted."""
        return {
            id(layer)
            for layer in self.layers
            if layer is self._feature_layer
            or isinstance(layer, keras.layers.Dense)
            or (_is_norm(layer) and "bn_statistics" in needs)
            or "feature_maps" in needs
        }

    def _features(self, records: list[tuple]) -> KerasTensor | None:
        if self._feature_layer:
            found = [out for layer, _, out in records if layer is self._feature_layer]
        else:
            dense = keras.layers.Dense
            found = [inputs for layer, inputs, _ in records if isinstance(layer, dense)]
        features = found[-1] if found else None
        if features is None or len(features.shape) == 2:
            return features
        return ops.mean(features, axis=list(range(1, len(features.shape) - 1)))

    def _named_layer(self, wanted: str, name: str) -> keras.layers.Layer | None:
        if not wanted:
            return None
        for layer in self.layers:
            if layer.name == wanted:
                return layer
        raise RequestError(
            f"Teacher {name} has no layer {wanted!r} to read features from; its "
            f"last layers are {', '.join(layer.name for layer in self.layers[-5:])}. "
            "Check --teacher_features."
        )


def _hooked(layer, call):
    """`call`, recorded or replaced if the running forward pass wants it."""

    def hooked_call(*args, **kwargs):
        inputs = args[0] if args else next(iter(kwargs.values()), None)
        replacement = getattr(_local, "replaced", {}).get(id(layer))
        outputs = replacement(inputs) if replacement else call(*args, **kwargs)
        if id(layer) in getattr(_local, "recorded", ()):
            _local.records.append((layer, inputs, outputs))
        if id(layer) == getattr(_local, "softmax", None):
            _local.before_softmax = _without_softmax(layer, inputs, call)
        return outputs

    return hooked_call


def _ends_with_softmax(layer) -> bool:
    activation = getattr(layer, "activation", None)
    is_softmax = isinstance(layer, keras.layers.Softmax)
    return is_softmax or activation is keras.activations.softmax


def _without_softmax(layer, inputs, call) -> KerasTensor:
    """What the softmax at the end of a layer reads."""
    if isinstance(layer, (keras.layers.Softmax, keras.layers.Activation)):
        return inputs
    layer.activation = keras.activations.linear
    try:
        return call(inputs)
    finally:
        layer.activation = keras.activations.softmax


@contextmanager
def _recording(
    recorded: set[int], replaced: dict[int, Callable], softmax: Any
) -> Iterator[list]:
    """Collects `(layer, input, output)` in forward order until the block ends."""
    _local.records, _local.recorded, _local.replaced = [], recorded, replaced
    _local.softmax, _local.before_softmax = id(softmax), None
    try:
        yield _local.records
    finally:
        _local.records, _local.recorded, _local.replaced = [], (), {}
        _local.softmax = _local.before_softmax = None


def _is_norm(layer) -> bool:
    return isinstance(layer, keras.layers.BatchNormalization)


def _by_batch(norm, inputs) -> KerasTensor:
    """A BatchNormalization's output, by mean and variance of the inputs themselves."""
    axis = norm.axis % len(inputs.shape)
    others = [place for place in range(len(inputs.shape)) if place != axis]
    moments = ops.mean(inputs, axis=others), ops.var(inputs, axis=others)
    learned = {"offset": norm.beta, "scale": norm.gamma, "epsilon": norm.epsilon}
    return ops.batch_normalization(inputs, *moments, axis, **learned)


def _channels_last(norm, inputs) -> tuple[KerasTensor, KerasTensor, KerasTensor]:
    """A BatchNormalization's input, its own axis last; moving mean and variance."""
    if norm.axis not in (-1, len(inputs.shape) - 1):
        inputs = ops.moveaxis(inputs, norm.axis, -1)
    with tf.init_scope():  # it is frozen: constants of whatever is traced
        mean, variance = (
            tf.identity(variable.value)
            for variable in (norm.moving_mean, norm.moving_variance)
        )
    return inputs, mean, variance


def _last_of_each_resolution(records: Sequence[tuple]) -> list[KerasTensor]:
    """Of all outputs `(B, height, width, channels)`, finest first."""
    last = {}
    for _, _, output in records:
        if len(getattr(output, "shape", ())) == 4:
            last[tuple(output.shape[1:3])] = output
    sides = sorted(last, key=lambda side: [-(length or 0) for length in side])
    return [last[side] for side in sides]
