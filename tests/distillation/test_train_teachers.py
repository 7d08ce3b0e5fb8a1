"""Our own teachers: an interrupted training ends as an undisturbed one."""

import os
import signal

import keras
import numpy as np
import pytest
import tensorflow as tf

from cdfkd_tf.distillation.train_teachers import train_classifier
from cdfkd_tf.errors import RunError

RNG = np.random.default_rng(0)
IMAGES = RNG.normal(size=(6, 8, 4)).astype("float32")  # of six steps
LABELS = RNG.integers(3, size=(6, 8))


def train(folder, signal_at=None, images=IMAGES, **options):
    """Weights of a small classifier; a signal comes while a batch is made."""

    def data(first_step):
        def batches():
            for step in range(first_step, len(images)):
                if step == signal_at:
                    os.kill(os.getpid(), signal.SIGTERM)
                yield images[step], LABELS[step]

        form = (tf.TensorSpec((8, 4)), tf.TensorSpec((8,), tf.int64))
        return tf.data.Dataset.from_generator(batches, output_signature=form)

    keras.utils.set_random_seed(0)
    model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(3)])
    defaults = {"learning_rate": 0.1, "milestones": (1,), "steps_per_epoch": 3}
    train_classifier(
        model,
        data,
        epochs=2,
        checkpoints=folder,
        saving={"every": 1, "minutes": 0, "keep": 2},
        verbose=0,
        **{**defaults, **options},
    )
    return model.get_weights()


def test_an_interrupted_teacher_goes_on(tmp_path, capsys):
    expected = train(tmp_path / "whole")
    with pytest.raises(KeyboardInterrupt):
        train(tmp_path / "parts", signal_at=4)
    ours = train(tmp_path / "parts")
    assert "Going on after epoch" in capsys.readouterr().out
    for a, b in zip(ours, expected):
        np.testing.assert_array_equal(a, b)


def test_a_teacher_whose_loss_is_no_number_ends_at_that_step(tmp_path):
    with pytest.raises(RunError, match=r"loss became \w+ in step [23] of epoch 1; it"):
        train(tmp_path, learning_rate=1e30)


def test_a_teacher_whose_last_update_spoils_it_is_not_kept(tmp_path):
    """No loss shows what the last step did to the weights."""
    options = {"learning_rate": 3e38, "images": 100 * IMAGES, "steps_per_epoch": 1}
    with pytest.raises(RunError, match=r"weights became NaN or infinite of epoch 1"):
        train(tmp_path, **options)
