"""Training one plain classifier on real images: how our own teachers are made."""

import keras
import tensorflow as tf

from cdfkd_tf.training.optimizers import CoupledSGD, LearningRates


def train_classifier(
    model: keras.Model,
    images: tf.data.Dataset,
    *,
    steps_per_epoch: int,
    epochs: int,
    learning_rate: float,
    milestones: tuple[int, ...],
    schedule: str = "steps",
    verbose: int | str = "auto",
) -> None:
    """Fits `model` in place with the published teachers' recipe.

    SGD with momentum 0.9 and coupled weight decay 5e-4, cross-entropy on logits.

    Args:
        model: images to logits `(B, C)`.
        images: endless batches of `(images, labels)`.
        steps_per_epoch: batches per epoch.
        epochs: passes.
        learning_rate: before any drop.
        milestones: epochs at which it drops to a tenth.
        schedule: `steps`, or `cosine` to 0.
        verbose: as in `keras.Model.fit`.
    """
    optimizer = CoupledSGD(learning_rate)
    model.compile(
        optimizer,
        keras.losses.SparseCategoricalCrossentropy(from_logits=True),
        metrics=["accuracy"],
    )
    rates = LearningRates(
        [(optimizer, learning_rate, schedule)],
        epochs=epochs,
        milestones=milestones,
    )
    model.fit(
        images,
        steps_per_epoch=steps_per_epoch,
        epochs=epochs,
        callbacks=[rates],
        shuffle=False,
        verbose=verbose,
    )
