"""A resumed run ends where an undisturbed one does."""

import numpy as np
import pytest

from cdfkd_tf.data.latents import latent_dataset
from cdfkd_tf.errors import RunError
from cdfkd_tf.training.checkpoints import TrainingState
from tests.conftest import LATENT, tiny_distiller

STEPS = 2


def train(distiller, state, first_epoch, epochs):
    noise = latent_dataset(8, 3, LATENT, seed=0, first_step=first_epoch * STEPS)
    distiller.fit(
        noise,
        initial_epoch=first_epoch,
        epochs=epochs,
        steps_per_epoch=STEPS,
        callbacks=[state],
        verbose=0,
    )


def test_resuming_equals_going_on(tmp_path):
    whole = tiny_distiller()
    train(whole, TrainingState(whole, tmp_path / "whole", every=0), 0, 3)
    first = tiny_distiller()
    train(first, TrainingState(first, tmp_path / "parts", every=1), 0, 2)
    second = tiny_distiller(seed=5)  # other weights: all must come from the file
    for ours, theirs in zip(
        second.teachers.teachers, first.teachers.teachers, strict=True
    ):
        ours.model.set_weights(theirs.model.get_weights())
    state = TrainingState(second, tmp_path / "parts", every=1)
    assert state.restore() == 2 and state.seconds > 0
    train(second, state, 2, 3)
    for a, b in zip(whole.student.get_weights(), second.student.get_weights()):
        np.testing.assert_allclose(a, b, atol=1e-6)
    for a, b in zip(whole.generator.get_weights(), second.generator.get_weights()):
        np.testing.assert_allclose(a, b, atol=1e-6)


def test_only_the_last_two_checkpoints_stay(tmp_path):
    distiller = tiny_distiller()
    train(distiller, TrainingState(distiller, tmp_path, every=1), 0, 4)
    assert sorted(file.name for file in tmp_path.glob("*.index")) == [
        "ckpt-3.index",
        "ckpt-4.index",
    ]
    assert sorted(file.name for file in tmp_path.glob("*.json")) == [
        "ckpt-3.json",
        "ckpt-4.json",
    ]


def test_nothing_to_restore_starts_at_zero(tmp_path):
    assert TrainingState(tiny_distiller(), tmp_path, every=1).restore() == 0


def test_a_broken_checkpoint_says_what_to_delete(tmp_path):
    distiller = tiny_distiller()
    train(distiller, TrainingState(distiller, tmp_path, every=1), 0, 1)
    for file in tmp_path.glob("*.data*"):
        file.write_bytes(b"")
    with pytest.raises(RunError, match=r"Cannot resume from .*Delete the folder"):
        TrainingState(tiny_distiller(), tmp_path, every=1).restore()
