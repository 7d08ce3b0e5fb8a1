"""Anybody's Keras classifiers as frozen teachers."""

import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import keras
from keras import KerasTensor, ops

from cdfkd_tf.errors import RequestError


class InputRecorder:
    """Remembers what enters chosen layers while their model is called.

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
    def recording(self) -> Iterator[list[tuple[keras.layers.Layer, KerasTensor]]]:
        """Collects `(layer, input)` in forward order until the block ends."""
        self._local.records = records = []
        try:
            yield records
        finally:
            self._local.records = None

    def _watched(self, layer, call):
        def watched_call(inputs, *args, **kwargs):
            records = getattr(self._local, "records", None)
            if records is not None:
                records.append((layer, inputs))
            return call(inputs, *args, **kwargs)

        return watched_call


class Teacher:
    """One frozen classifier, always in inference mode.

    Args:
        model: any Keras model from normalised images to logits `(B, C)` whose last
            Dense layer reads the pooled features.

    Raises:
        RequestError: if the model does not answer `(B, C)` or has no Dense layer.
    """

    def __init__(self, model: keras.Model):
        if len(getattr(model, "output_shape", ())) != 2:
            raise RequestError(
                f"A teacher answers one row of logits per image, (B, C); "
                f"{model.name} answers {getattr(model, 'output_shape', 'nothing')}."
            )
        flat = list(leaf_layers(model))
        dense = [layer for layer in flat if isinstance(layer, keras.layers.Dense)]
        if not dense:
            raise RequestError(
                f"Teacher {model.name} has no Dense layer to read features from."
            )
        self.model = model
        self.num_classes = model.output_shape[-1]
        self.feature_width = dense[-1].kernel.shape[0]
        self.classifier = dense[-1]
        self.batch_norms = [
            layer
            for layer in flat
            if isinstance(layer, keras.layers.BatchNormalization)
        ]
        # The model itself is frozen too: its flag decides for all that is inside.
        for layer in (model, *flat):
            layer.trainable = False
        self._recorder = InputRecorder([*self.batch_norms, self.classifier])

    def __call__(
        self, images: KerasTensor
    ) -> tuple[KerasTensor, KerasTensor, list[tuple]]:
        """Logits `(B, C)`, features `(B, W)` and the BatchNormalizations' inputs.

        The third is a list of `(input, moving_mean, moving_variance)` in forward
        order. What of this nobody uses is not computed in a traced step.
        """
        with self._recorder.recording() as records:
            logits = self.model(images, training=False)
        features = [inputs for layer, inputs in records if layer is self.classifier]
        bn = [
            (inputs, layer.moving_mean, layer.moving_variance)
            for layer, inputs in records
            if layer is not self.classifier
        ]
        return ops.cast(logits, keras.config.floatx()), features[-1], bn


class TeacherEnsemble:
    """Several teachers that know the same classes.

    Args:
        models: Keras classifiers; see `Teacher`.

    Raises:
        RequestError: no model, or models of different class counts.
    """

    def __init__(self, models: Sequence[keras.Model]):
        if not models:
            raise RequestError("At least one teacher is needed; got none.")
        self.teachers = [Teacher(model) for model in models]
        counts = [teacher.num_classes for teacher in self.teachers]
        if len(set(counts)) > 1:
            raise RequestError(
                f"All teachers must know the same classes; they answer {counts}."
            )
        self.num_classes = counts[0]

    def __len__(self) -> int:
        return len(self.teachers)

    def __call__(self, images: KerasTensor) -> dict[str, Any]:
        """What all teachers say about normalised images `(B, height, width, ch)`.

        Returns:
            `logits` `(B, T, C)`, `features`: T tensors `(B, W_i)`, `bn`: per teacher
            a list of `(input, moving_mean, moving_variance)`.
        """
        answers = [teacher(images) for teacher in self.teachers]
        logits, features, bn = map(list, zip(*answers))
        return {"logits": ops.stack(logits, axis=1), "features": features, "bn": bn}


def load_teacher(file: str) -> keras.Model:
    """A Keras model from a `.keras` or `.h5` file, without running code from it.

    Raises:
        RequestError: missing, unreadable or unsafe file.
    """
    try:
        return keras.saving.load_model(file, compile=False, safe_mode=True)
    except Exception as error:  # Keras raises many kinds for a bad file
        reason = " ".join(str(error).split())[:200]
        raise RequestError(
            f"Cannot read teacher {file}: expected a Keras model file (.keras) of "
            f"plain layers. {reason}"
        ) from error


def leaf_layers(model: keras.Model) -> Iterator[keras.layers.Layer]:
    """Every layer that is no model itself, at any depth, in order."""
    for layer in model.layers:
        if isinstance(layer, keras.Model):
            yield from leaf_layers(layer)
        else:
            yield layer
