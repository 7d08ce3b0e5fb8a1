"""Learns how to weigh the headers from a few labelled images, real or generated."""

import dataclasses
import itertools
from collections.abc import Iterable, Mapping

import keras
import numpy as np
import tensorflow as tf

from cdfkd_tf.distillation import numerics

BATCH_SIZE = 100  # as published
FOLDS = 5


@dataclasses.dataclass(frozen=True)
class AggregatorFit:
    """What came out, judged on samples that it had not learned from.

    Attributes:
        learned: whether the learned weights are used; False: the mean was kept.
        epochs: passes over the samples that cross-validation chose; 0: the mean.
        accuracy: share of the samples that weights get right which were learned from
            the others.
        mean_accuracy: the same for the plain mean.
        standard_error: of the difference, paired over the samples.
        samples: n.
    """

    learned: bool
    epochs: int
    accuracy: float
    mean_accuracy: float
    standard_error: float
    samples: int

    def __str__(self) -> str:
        gain = 100 * (self.accuracy - self.mean_accuracy)
        verdict = "above" if self.learned else "not above"
        return (
            f"{self.accuracy:.1%} in cross-validation on {self.samples} samples, the "
            f"mean {self.mean_accuracy:.1%}; the gain of {gain:.1f} points is "
            f"{verdict} its standard error of {100 * self.standard_error:.1f}: "
            + ("learned weights are used." if self.learned else "the mean stays.")
        )


def student_outputs(
    student: keras.Model, batches: Iterable[tuple[np.ndarray, np.ndarray]]
) -> tuple[dict[str, np.ndarray], np.ndarray]:
    """The student's outputs for all batches of normalised images, and their labels."""
    parts, labels = zip(*((student.predict_on_batch(x), y) for x, y in batches))
    outputs = {key: np.concatenate([part[key] for part in parts]) for key in parts[0]}
    return outputs, np.concatenate(labels)


def fit_aggregator(
    aggregator: keras.Model,
    outputs: Mapping[str, np.ndarray],
    labels: np.ndarray,
    *,
    epochs: int,
    learning_rate: float,
    seed: int,
) -> AggregatorFit:
    """Fits `aggregator` in place, or leaves it the mean of the headers.

    Cross-validation over all samples, stratified by class, chooses the number of
    epochs by cross-entropy. Untrained, every aggregator is the mean: it stays unless
    the share of right classes, too, grows by more than the standard error of the
    growth. Then all samples are learned from.

    Args:
        aggregator: from `build_aggregator`, freshly built.
        outputs: the student's for n images, n at least 2: `logits` `(n, H, C)` and
            `features` `(n, H, W)`.
        labels: `(n,)`.
        epochs: the most passes over the samples.
        learning_rate: Adam's.
        seed: of the folds, and of the order of the samples.
    """
    learner = _Learner(aggregator, outputs, labels, learning_rate)
    everything, rng = np.arange(len(labels)), np.random.default_rng(seed)
    right, losses = learner.judge(everything)
    if not aggregator.trainable_variables:
        epochs = 0
    right = np.tile(right, (epochs + 1, 1))  # (epochs + 1, n), 0 epochs being the mean
    losses = np.tile(losses, (epochs + 1, 1))
    folds = _folds(labels, rng)
    for fold in range(folds.max() + 1):
        judged = np.flatnonzero(folds == fold)
        learning = learner.epochs(np.flatnonzero(folds != fold), rng)
        for epoch in itertools.islice(learning, epochs):
            right[epoch, judged], losses[epoch, judged] = learner.judge(judged)
    best = int(losses.mean(axis=1).argmin())
    gains = right[best].astype(int) - right[0]
    wins, changes = int(gains.sum()), int(np.abs(gains).sum())
    # The gain above its standard error, in whole numbers: no tie is lost in rounding.
    learned = wins > 0 and wins**2 > changes
    learner.reset()
    if learned:
        for _ in itertools.islice(learner.epochs(everything, rng), best):
            pass
    return AggregatorFit(
        learned=learned,
        epochs=best if learned else 0,
        accuracy=float(right[best].mean()),
        mean_accuracy=float(right[0].mean()),
        standard_error=float(gains.std(ddof=1) / len(labels) ** 0.5),
        samples=len(labels),
    )


def _folds(labels, rng) -> np.ndarray:
    """The fold of each sample; those of one class are spread over all folds."""
    order = rng.permutation(len(labels))
    order = order[np.argsort(labels[order], kind="stable")]
    folds = np.empty(len(labels), int)
    folds[order] = np.arange(len(labels)) % min(FOLDS, len(labels))
    return folds


class _Learner:
    """Learns again and again from other samples, always from the same start."""

    def __init__(self, aggregator, outputs, labels, learning_rate):
        self._outputs, self._labels = dict(outputs), labels
        optimizer = keras.optimizers.Adam(learning_rate)
        variables = aggregator.trainable_variables
        optimizer.build(variables)
        moving = [*variables, *optimizer.variables]
        self._start = [(variable, np.array(variable)) for variable in moving]

        def losses(outputs, labels):
            logits = aggregator(outputs)
            return logits, keras.losses.sparse_categorical_crossentropy(
                labels, keras.ops.cast(logits, "float32"), from_logits=True
            )

        def learn(*batch):
            mean = lambda: keras.ops.mean(losses(*batch)[1])  # noqa: E731
            numerics.minimise(mean, optimizer, variables)

        self._learn = tf.function(learn, reduce_retracing=True)
        self._losses = tf.function(losses, reduce_retracing=True)

    def _batch(self, samples):
        chosen = {name: part[samples] for name, part in self._outputs.items()}
        return tf.nest.map_structure(tf.constant, (chosen, self._labels[samples]))

    def judge(self, samples) -> tuple[np.ndarray, np.ndarray]:
        """Whether each sample's class is right, and its cross-entropy."""
        logits, losses = self._losses(*self._batch(samples))
        return logits.numpy().argmax(-1) == self._labels[samples], losses.numpy()

    def epochs(self, samples, rng):
        """Starts anew; yields how many passes over these samples are done."""
        self.reset()
        for epoch in itertools.count(1):
            mixed = rng.permutation(samples)
            for start in range(0, len(mixed), BATCH_SIZE):
                self._learn(*self._batch(mixed[start:][:BATCH_SIZE]))
            yield epoch

    def reset(self):
        """Everything is as it was before anything was learned."""
        for variable, value in self._start:
            variable.assign(value)
