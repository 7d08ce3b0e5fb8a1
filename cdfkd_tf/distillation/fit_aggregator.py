"""Learns how to weigh the headers from a few labelled images, real or generated."""

import dataclasses

import keras
import numpy as np

BATCH_SIZE = 100  # as published
HELD_OUT_SHARE = 0.2


@dataclasses.dataclass(frozen=True)
class AggregatorFit:
    """What came out, measured on the held-out part of the real samples.

    Attributes:
        learned: whether the learned weights are used; False: the mean was kept.
        epoch: the chosen epoch, counted from 1; 0: the mean.
        accuracy: share of held-out samples that the chosen weights get right.
        mean_accuracy: the same for the plain mean.
        held_out: number of held-out samples.
    """

    learned: bool
    epoch: int
    accuracy: float
    mean_accuracy: float
    held_out: int


def fit_aggregator(
    aggregator: keras.Model,
    student: keras.Model,
    images: np.ndarray,
    labels: np.ndarray,
    *,
    epochs: int,
    learning_rate: float,
    seed: int,
) -> AggregatorFit:
    """Fits `aggregator` in place; the student does not move.

    A fifth of the samples is held out; the epoch with the best accuracy there is
    chosen, ties by cross-entropy. Untrained, every aggregator is the mean of the
    headers: epoch 0 takes part in the choice, and without a gain it stays.

    Args:
        aggregator: from `build_aggregator`, freshly built.
        student: a stack of headers.
        images: normalised, `(n, height, width, channels)`, n at least 2.
        labels: `(n,)`.
        epochs: passes over the samples that are not held out.
        learning_rate: Adam's.
        seed: of the order of the samples.
    """
    answers = student.predict(images, batch_size=BATCH_SIZE, verbose=0)
    held_out = max(1, int(len(labels) * HELD_OUT_SHARE))
    judged = {name: values[:held_out] for name, values in answers.items()}
    learned = {name: values[held_out:] for name, values in answers.items()}
    choice = _BestEpoch(judged, labels[:held_out])
    if aggregator.trainable_variables:
        keras.utils.set_random_seed(seed)
        aggregator.compile(
            keras.optimizers.Adam(learning_rate),
            keras.losses.SparseCategoricalCrossentropy(from_logits=True),
        )
        aggregator.fit(
            learned,
            labels[held_out:],
            batch_size=BATCH_SIZE,
            epochs=epochs,
            callbacks=[choice],
            verbose=0,
        )
        aggregator.set_weights(choice.weights)
    else:
        choice.judge(aggregator, 0)
    return AggregatorFit(
        learned=choice.epoch > 0,
        epoch=choice.epoch,
        accuracy=choice.best[0],
        mean_accuracy=choice.start[0],
        held_out=held_out,
    )


class _BestEpoch(keras.callbacks.Callback):
    """Remembers the weights that did best on held-out samples, epoch 0 included."""

    def __init__(self, answers, labels):
        super().__init__()
        self.answers, self.labels = answers, labels
        self.start = self.best = self.weights = None
        self.epoch = 0

    def on_train_begin(self, logs=None):
        self.judge(self.model, 0)

    def on_epoch_end(self, epoch, logs=None):
        self.judge(self.model, epoch + 1)

    def judge(self, aggregator, epoch):
        logits = keras.ops.convert_to_numpy(aggregator(self.answers, training=False))
        accuracy = float(np.mean(logits.argmax(-1) == self.labels))
        losses = keras.losses.sparse_categorical_crossentropy(
            self.labels, logits, from_logits=True
        )
        score = (accuracy, -float(keras.ops.mean(losses)))
        self.start = self.start or score
        if self.best is None or score > self.best:
            self.best, self.epoch = score, epoch
            self.weights = aggregator.get_weights()
