"""Anybody's image classifiers as frozen teachers."""

from collections.abc import Sequence
from typing import Any

import keras
import numpy as np
import tensorflow as tf
from keras import KerasTensor, ops

from cdfkd_tf.errors import RequestError
from cdfkd_tf.networks.bn_folding import copy_in
from cdfkd_tf.networks.pixel_ranges import ImageView
from cdfkd_tf.teachers.hooks import WatchedNetwork

OUTPUTS = ("logits", "probabilities")
# Smallest probability whose logarithm is taken; far below any that float32 softmaxes
# of trained networks give, far above where float32 ends.
FLOOR = 1e-30
_PROBES = 4
# How far a copy in half precision may be from its model, relative to the largest value.
_HALF_BOUND = 0.2


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
        self._feature_layer = feature_layer
        self._given = WatchedNetwork(model, feature_layer, self.name)
        self._network = self._given
        self.output, self.scale = output, 1.0
        self._probe(output)

    def __call__(
        self, images: KerasTensor
    ) -> tuple[KerasTensor, KerasTensor | None, list[tuple]]:
        """Logits `(B, C)`, features `(B, W)` or None, BatchNormalizations' inputs.

        The third is a list of `(input, moving_mean, moving_variance)` in forward
        order. What of this nobody uses is not computed in a traced step.
        """
        answer, features, bn = self._network(self._seen(images))
        return self._as_logits(answer), features, bn

    def answer(self, images: KerasTensor) -> tuple[KerasTensor, KerasTensor | None]:
        """Logits and features alone, by fewer operations: see `Folding`.

        With the weights as they stood at the last `lighten`, or else the first time.
        """
        with self._network.folding.active():
            answer, features, _ = self._network(self._seen(images))
        return self._as_logits(answer), features

    def lighten(self, dtype_policy: str | None = None) -> None:
        """Computes faster from now on, with the weights as they stand.

        Args:
            dtype_policy: of the layers; None: as the model has them. A subclassed
                model, or one that cannot be rebuilt from its layers' settings, keeps
                its own.
        """
        self._network = self._given
        if dtype_policy:
            self._network = self._copied(dtype_policy) or self._given
        self._network.folding.refresh()

    def _copied(self, dtype_policy: str) -> WatchedNetwork | None:
        try:
            copy = copy_in(self.model, dtype_policy)
            if copy is None:
                return None
            network = WatchedNetwork(copy, self._feature_layer, self.name)
            images = self._seen(self._random_images())
            (ours, ours_features, _), (theirs, features, _) = (
                network(images),
                self._given(images),
            )
        except Exception:  # somebody's layers, with whatever their settings raise
            return None
        same = _alike(ours, theirs) and _alike(ours_features, features)
        return network if same else None

    def _seen(self, images: KerasTensor) -> KerasTensor:
        if self.view and not self.view.identity:
            return self.view(images)
        return images

    @property
    def image_shape(self) -> tuple[int, ...]:
        """What one image measures for the model itself, open sides as the data set."""
        if not self.view:
            return tuple(self.model.input_shape[1:])
        shape = zip(self.view.shape, self.view.spec.image_shape)
        return tuple(side or given for side, given in shape)

    def _as_logits(self, answer: KerasTensor) -> KerasTensor:
        answer = ops.cast(answer, keras.config.floatx())
        if self.output == "probabilities":
            # Logits are known up to a constant; trained networks' are centred.
            answer = ops.log(ops.maximum(answer, FLOOR))
            answer = answer - ops.mean(answer, axis=-1, keepdims=True)
        return answer if self.scale == 1 else answer * self.scale

    def _random_images(self) -> tf.Tensor:
        shape = self.view.spec.image_shape if self.view else self.model.input_shape[1:]
        pixels = np.random.default_rng(0).random((_PROBES, *shape)).astype("float32")
        images = tf.constant(self.view.spec.normalise(pixels) if self.view else pixels)
        return tf.cast(images, keras.config.floatx())

    def _probe(self, output: str) -> None:
        """Finds out by one call on random images what no attribute tells."""
        images = self._random_images()
        if not getattr(self.model, "built", True):  # building calls it, too
            self.model(self._seen(images), training=False)
        with tf.GradientTape() as tape:
            tape.watch(images)
            answer, features, bn = self._network(self._seen(images))
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
            last = self._given.layers[-1] if self._given.layers else None
            self.output = _kind_of(np.asarray(answer, "float64"), last, self.name)
        self.feature_width = None if features is None else features.shape[-1]
        self.num_batch_norms = len(bn)

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

    def answer(self, images: KerasTensor) -> dict[str, Any]:
        """`logits` and `features` as a call gives them, by fewer operations.

        See `Teacher.answer`. What nobody shows is left out of `features`.
        """
        answers = [teacher.answer(images) for teacher in self.teachers]
        logits, features = map(list, zip(*answers))
        shown = [values for values in features if values is not None]
        return {"logits": ops.stack(logits, axis=1), "features": shown}

    def lighten(self, dtype_policy: str | None = None) -> None:
        """Lets all teachers compute faster as they stand, see `Teacher.lighten`."""
        for teacher in self.teachers:
            teacher.lighten(dtype_policy)

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


def _alike(ours, theirs) -> bool:
    """Whether two answers, or both Nones, differ by half precision's rounding alone."""
    if ours is None or theirs is None:
        return ours is theirs
    ours, theirs = (np.asarray(tf.cast(x, "float64")) for x in (ours, theirs))
    return bool(
        np.abs(ours - theirs).max() <= _HALF_BOUND * np.abs(theirs).max() + 1e-6
    )
