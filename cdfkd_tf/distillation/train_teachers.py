"""Trains one plain classifier on real images: how our own teachers are made."""

import math
import pathlib
from collections.abc import Callable
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from cdfkd_tf.distillation.checkpoints import TrainingState
from cdfkd_tf.distillation.optimizers import CoupledSGD, LearningRates
from cdfkd_tf.errors import RunError


class _StopOnNaN(keras.callbacks.Callback):
    """Ends the training at the step whose loss, or last weights, are not finite."""

    def on_epoch_begin(self, epoch, logs=None):
        self.epoch = epoch + 1

    def on_train_batch_end(self, batch, logs=None):
        loss = float(logs["loss"])
        if not math.isfinite(loss):
            self._stop(f"loss became {loss}", f" in step {batch + 1}")

    def on_epoch_end(self, epoch, logs=None):  # no loss shows what the last step did
        if not all(np.isfinite(values).all() for values in self.model.get_weights()):
            self._stop("weights became NaN or infinite", "")

    def _stop(self, what, step):
        raise RunError(
            f"The teacher's {what}{step} of epoch {self.epoch}; it is not saved. A "
            "smaller --teacher_learning_rate usually helps; teachers that are finished "
            "are kept."
        )


def train_classifier(
    model: keras.Model,
    images: Callable[[int], tf.data.Dataset],
    *,
    steps_per_epoch: int,
    epochs: int,
    learning_rate: float,
    milestones: tuple[int, ...],
    checkpoints: pathlib.Path,
    saving: dict[str, Any],
    verbose: int | str = "auto",
) -> None:
    """Fits `model` in place with the published teachers' recipe.

    An interrupted training goes on.

    SGD with momentum 0.9 and coupled weight decay 5e-4, cross-entropy on logits.

    Args:
        model: images to logits `(B, C)`.
        images: from a step on, endless batches of `(images, labels)`.
        steps_per_epoch: batches per epoch.
        epochs: passes.
        learning_rate: before any drop.
        milestones: epochs at which it drops to a tenth.
        checkpoints: folder of this training's state.
        saving: how often and how many, see `TrainingState`.
        verbose: as in `keras.Model.fit`.

    Raises:
        RunError: at the first step whose loss is not finite.
    """
    optimizer = CoupledSGD(learning_rate)
    model.compile(
        optimizer,
        keras.losses.SparseCategoricalCrossentropy(from_logits=True),
        metrics=["accuracy"],
    )
    rates = LearningRates(
        {"optimizer": (optimizer, learning_rate, "steps")}, epochs, milestones
    )
    optimizer.build(model.trainable_variables)
    parts = {"model": model, "optimizer": optimizer}
    state = TrainingState(parts, checkpoints, steps_per_epoch, **saving)
    state.restore()
    if state.steps_done:
        print(f"Going on after epoch {state.epoch} of {epochs}.")
    state.fit(
        model, images, epochs=epochs, callbacks=[rates, _StopOnNaN()], verbose=verbose
    )
