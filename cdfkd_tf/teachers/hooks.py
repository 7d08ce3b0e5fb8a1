"""What a network shows while it is called: its answer, features, BatchNorm inputs."""

import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import keras
import tensorflow as tf
from keras import KerasTensor, ops

from cdfkd_tf.errors import RequestError
from cdfkd_tf.networks.bn_folding import Folding
from cdfkd_tf.runtime.fused_batchnorm import fuse_layers
from cdfkd_tf.runtime.keras_internals import leaf_layers


class CallRecorder:
    """Remembers what enters and leaves chosen layers while their model is called.

    Works at any nesting depth and for subclassed models, where a functional probe
    finds no connected tensor. Thread-local: replicas record apart.

    Args:
        chosen: the layers to watch.
    """

    def __init__(self, chosen: Sequence[keras.layers.Layer]):
        self._local = threading.local()
        for layer in chosen:
            layer.call = self._watched(layer, layer.call)

    @contextmanager
    def recording(self) -> Iterator[list[tuple[keras.layers.Layer, Any, Any]]]:
        """Collects `(layer, input, output)` in forward order until the block ends."""
        self._local.records = records = []
        try:
            yield records
        finally:
            self._local.records = None

    def _watched(self, layer, call):
        def watched_call(inputs, *args, **kwargs):
            outputs = call(inputs, *args, **kwargs)
            records = getattr(self._local, "records", None)
            if records is not None:
                records.append((layer, inputs, outputs))
            return outputs

        return watched_call


class WatchedNetwork:
    """A frozen network in inference mode, whose inner values are seen.

    Args:
        model: any Keras model.
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
        of_kind = (keras.layers.BatchNormalization, keras.layers.Dense)
        watched = [layer for layer in self.layers if isinstance(layer, of_kind)]
        if self._feature_layer and self._feature_layer not in watched:
            watched.append(self._feature_layer)
        # The model itself is frozen too: its flag decides for all that is inside.
        for layer in (model, *self.layers):
            layer.trainable = False
        fuse_layers(watched)
        self._recorder = CallRecorder(watched)
        kept = (self._feature_layer,) if self._feature_layer else ()
        self.folding = Folding(model, kept)

    def __call__(self, images: KerasTensor) -> tuple[Any, KerasTensor | None, list]:
        """Its answer, features `(B, W)` or None, BatchNormalizations' inputs.

        The third is a list of `(input, moving_mean, moving_variance)` in forward
        order. What of this nobody uses is not computed in a traced step.
        """
        with self._recorder.recording() as records:
            answer = self.model(images, training=False)
        bn = [
            (inputs, *_stored_statistics(layer))
            for layer, inputs, _ in records
            if isinstance(layer, keras.layers.BatchNormalization)
        ]
        return answer, self._features(records), bn

    def _features(self, records: list[tuple]) -> KerasTensor | None:
        if self._feature_layer:
            found = [out for layer, _, out in records if layer is self._feature_layer]
        else:
            found = [
                inputs
                for layer, inputs, _ in records
                if isinstance(layer, keras.layers.Dense)
            ]
        if not found:
            return None
        features = found[-1]
        if len(features.shape) > 2:
            features = ops.mean(features, axis=list(range(1, len(features.shape) - 1)))
        return features

    def _named_layer(self, wanted: str, name: str) -> keras.layers.Layer | None:
        if not wanted:
            return None
        for layer in self.layers:
            if layer.name == wanted:
                return layer
        raise RequestError(
            f"Teacher {name} has no layer {wanted!r} to read features from; its "
            f"last layers are {', '.join(layer.name for layer in self.layers[-5:])}."
        )


def _stored_statistics(layer: keras.layers.BatchNormalization) -> list[tf.Tensor]:
    """What it remembers, as constants of whatever is traced: it is frozen."""
    with tf.init_scope():
        return [
            tf.identity(variable.value)
            for variable in (layer.moving_mean, layer.moving_variance)
        ]
