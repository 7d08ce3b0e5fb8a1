"""Anybody's image classifiers as frozen teachers."""

import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import keras
import numpy as np
import tensorflow as tf
from keras import KerasTensor, ops

from cdfkd_tf.errors import RequestError
from cdfkd_tf.models.inputs import ImageView
from cdfkd_tf.models.walking import leaf_layers

OUTPUTS = ("logits", "probabilities")
# Smallest probability whose logarithm is taken; far below any that float32 softmaxes
# of trained networks give, far above where float32 ends.
FLOOR = 1e-30
_PROBES = 4


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


class Teacher:
    """One frozen classifier, always in inference mode.

    Args:
        model: any Keras model, or a `SavedModelClassifier`, that answers `(B, C)`.
        view: how it sees the data set's normalised images; None: as they are.
        output: what it answers: `logits`, `probabilities`, or `auto` to find out.
        feature_layer: name of the layer whose output, pooled if it is a map, is the
            features; empty: they are what enters the last Dense layer.
        name: what messages call it.

    Attributes:
        num_classes: C.
        feature_width: W, or None where there are no features to read.
        num_batch_norms: how many BatchNormalizations a forward pass meets.
        output: `logits` or `probabilities`.
        passes_gradient: whether a gradient from its answer reaches the images.
        scale: factor on its logits, see `TeacherEnsemble.calibrate`.

    Raises:
        RequestError: if the model does not answer `(B, C)`, answers what is neither
            logits nor probabilities, or has no layer `feature_layer`.
    """

    def __init__(
        self,
        model: keras.Model,
        view: ImageView | None = None,
        *,
        output: str = "logits",
        feature_layer: str = "",
        name: str = "",
    ):
        self.model, self.view, self.name = model, view, name or model.name
        flat = list(leaf_layers(model))
        self._feature_layer = self._named_layer(flat, feature_layer)
        of_kind = (keras.layers.BatchNormalization, keras.layers.Dense)
        watched = [layer for layer in flat if isinstance(layer, of_kind)]
        if self._feature_layer and self._feature_layer not in watched:
            watched.append(self._feature_layer)
        # The model itself is frozen too: its flag decides for all that is inside.
        for layer in (model, *flat):
            layer.trainable = False
        self._recorder = CallRecorder(watched)
        self.output, self.scale = output, 1.0
        self._probe(output, flat[-1] if flat else None)

    def __call__(
        self, images: KerasTensor
    ) -> tuple[KerasTensor, KerasTensor | None, list[tuple]]:
        """Logits `(B, C)`, features `(B, W)` or None, BatchNormalizations' inputs.

        The third is a list of `(input, moving_mean, moving_variance)` in forward
        order. What of this nobody uses is not computed in a traced step.
        """
        if self.view and not self.view.identity:
            images = self.view(images)
        answer, records = self._record(images)
        bn = [
            (inputs, layer.moving_mean, layer.moving_variance)
            for layer, inputs, _ in records
            if isinstance(layer, keras.layers.BatchNormalization)
        ]
        return self._as_logits(answer), self._features(records), bn

    @property
    def image_shape(self) -> tuple[int, ...]:
        """What one image measures for the model itself, open sides as the data set."""
        if not self.view:
            return tuple(self.model.input_shape[1:])
        shape = zip(self.view.shape, self.view.spec.image_shape)
        return tuple(side or given for side, given in shape)

    def _record(self, images):
        with self._recorder.recording() as records:
            answer = self.model(images, training=False)
        return answer, records

    def _as_logits(self, answer: KerasTensor) -> KerasTensor:
        answer = ops.cast(answer, keras.config.floatx())
        if self.output == "probabilities":
            # Logits are known up to a constant; trained networks' are centred.
            answer = ops.log(ops.maximum(answer, FLOOR))
            answer = answer - ops.mean(answer, axis=-1, keepdims=True)
        return answer if self.scale == 1 else answer * self.scale

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

    def _named_layer(self, flat, name: str) -> keras.layers.Layer | None:
        if not name:
            return None
        for layer in flat:
            if layer.name == name:
                return layer
        raise RequestError(
            f"Teacher {self.name} has no layer {name!r} to read features from; its "
            f"last layers are {', '.join(layer.name for layer in flat[-5:])}."
        )

    def _probe(self, output: str, last: keras.layers.Layer | None) -> None:
        """Finds out by one call on random images what no attribute tells."""
        shape = self.view.spec.image_shape if self.view else self.model.input_shape[1:]
        pixels = np.random.default_rng(0).random((_PROBES, *shape)).astype("float32")
        images = tf.constant(self.view.spec.normalise(pixels) if self.view else pixels)
        images = tf.cast(images, keras.config.floatx())
        if not getattr(self.model, "built", True):  # building calls it, too
            self.model(self.view(images) if self.view else images, training=False)
        with tf.GradientTape() as tape:
            tape.watch(images)
            seen = self.view(images) if self.view else images
            answer, records = self._record(seen)
            total = tf.reduce_sum(tf.cast(answer, images.dtype))
        if len(getattr(answer, "shape", ())) != 2 or answer.shape[-1] < 2:
            got = tuple(getattr(answer, "shape", ())) or type(answer).__name__
            raise RequestError(
                f"A teacher answers one row of at least two classes per image, (B, C); "
                f"{self.name} answers {got} for {_PROBES} images."
            )
        self.passes_gradient = tape.gradient(total, images) is not None
        self.num_classes = answer.shape[-1]
        if output == "auto":
            self.output = _kind_of(np.asarray(answer, "float64"), last, self.name)
        features = self._features(records)
        self.feature_width = None if features is None else features.shape[-1]
        self.num_batch_norms = sum(
            isinstance(layer, keras.layers.BatchNormalization) for layer, *_ in records
        )

    def __str__(self) -> str:
        parts = [
            str(self.view) if self.view else "images as they are",
            self.output,
            f"{self.num_batch_norms} BatchNormalizations",
            f"{self.feature_width} features" if self.feature_width else "no features",
        ]
        return f"{self.name}: {', '.join(parts)}"


class TeacherEnsemble:
    """Several teachers that know the same classes.

    Args:
        teachers: `Teacher`s, or Keras classifiers that see normalised images as they
            are and answer logits.

    Raises:
        RequestError: no teacher, or teachers of different class counts.
    """

    def __init__(self, teachers: Sequence[Teacher | keras.Model]):
        if not teachers:
            raise RequestError("At least one teacher is needed; got none.")
        self.teachers = [
            teacher if isinstance(teacher, Teacher) else Teacher(teacher)
            for teacher in teachers
        ]
        counts = [teacher.num_classes for teacher in self.teachers]
        if len(set(counts)) > 1:
            said = ", ".join(f"{t.name} {t.num_classes}" for t in self.teachers)
            raise RequestError(
                f"All teachers must know the same classes; they answer {said}."
            )
        self.num_classes = counts[0]

    def __len__(self) -> int:
        return len(self.teachers)

    def __call__(self, images: KerasTensor) -> dict[str, Any]:
        """What all teachers say about normalised images `(B, height, width, ch)`.

        Returns:
            `logits` `(B, T, C)`, `features`: T tensors `(B, W_i)` or None, `bn`: per
            teacher a list of `(input, moving_mean, moving_variance)`.
        """
        answers = [teacher(images) for teacher in self.teachers]
        logits, features, bn = map(list, zip(*answers))
        return {"logits": ops.stack(logits, axis=1), "features": features, "bn": bn}

    def calibrate(self, images: KerasTensor) -> list[float]:
        """Brings all teachers' logits to one scale, by one factor per teacher.

        Afterwards each teacher's logits, centred per image, have on `images` the
        deviation that was the geometric mean of all teachers'. No class changes.

        Args:
            images: normalised, `(B, height, width, channels)`.

        Returns:
            The factors.
        """
        for teacher in self.teachers:
            teacher.scale = 1.0
        logits = self(images)["logits"]
        logits = logits - ops.mean(logits, axis=-1, keepdims=True)
        deviations = np.asarray(ops.std(logits, axis=(0, 2)), "float64") + 1e-12
        factors = np.exp(np.mean(np.log(deviations))) / deviations
        for teacher, factor in zip(self.teachers, factors):
            teacher.scale = float(factor)
        return factors.tolist()


def _kind_of(answer: np.ndarray, last: keras.layers.Layer | None, name: str) -> str:
    """`logits` or `probabilities`, by what rows `(B, C)` look like.

    Args:
        answer: to a few random images.
        last: layer of the model, if it shows any.
        name: what messages call it.
    """
    within = answer.min() >= 0 and answer.max() <= 1
    if within and np.allclose(answer.sum(-1), 1, atol=1e-2):
        return "probabilities"
    if getattr(last, "activation", None) is keras.activations.sigmoid:
        raise RequestError(
            f"Teacher {name} answers separate sigmoids, one per class; expected "
            "logits, or probabilities of classes that exclude each other. If the "
            "sigmoids are to be taken for logits say --teacher_output=logits."
        )
    return "logits"
