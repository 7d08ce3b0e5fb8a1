"""An interrupted training of a teacher goes on, and ends as an undisturbed one."""

import os
import signal

import keras
import numpy as np
import pytest

from cdfkd_tf.distillation.optimizers import LearningRates
from cdfkd_tf.distillation.train_teachers import train_classifier

RNG = np.random.default_rng(0)
IMAGES = RNG.normal(size=(6, 8, 4)).astype("float32")  # of six steps
LABELS = RNG.integers(3, size=(6, 8))


def images(first_step):
    for step in range(first_step, len(IMAGES)):
        yield IMAGES[step], LABELS[step]


def train(folder):
    keras.utils.set_random_seed(0)
    model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(3)])
    train_classifier(
        model,
        images,
        steps_per_epoch=3,
        epochs=2,
        learning_rate=0.1,
        milestones=(1,),
        checkpoints=folder,
        saving={"every": 1, "minutes": 0, "keep": 2},
        verbose=0,
    )
    return model.get_weights()


def test_an_interrupted_teacher_goes_on(tmp_path, capsys):
    expected, steps = train(tmp_path / "whole"), []

    def interrupt(self, batch, logs=None):
        steps.append(batch)
        if len(steps) == 5:
            os.kill(os.getpid(), signal.SIGTERM)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(LearningRates, "on_train_batch_end", interrupt)
        with pytest.raises(KeyboardInterrupt):
            train(tmp_path / "parts")
    ours = train(tmp_path / "parts")
    assert "Going on after epoch 1 of 2." in capsys.readouterr().out
    for a, b in zip(ours, expected):
        np.testing.assert_array_equal(a, b)
