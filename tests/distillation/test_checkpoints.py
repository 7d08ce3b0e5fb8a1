"""A resumed run ends where an undisturbed one does, wherever it stopped."""

import json
import os
import signal

import keras
import numpy as np
import pytest
import tensorflow as tf

from cdfkd_tf.data.noise import latent_dataset
from cdfkd_tf.distillation.checkpoints import TrainingState
from cdfkd_tf.errors import DistillationWarning, RunError
from tests import toys
from tests.rows import rows
from tests.toys import LATENT, largest_difference, state_values

STEPS = 3


class SignalAt(keras.callbacks.Callback):
    """Sends a signal to this process at the end of one step, counted from 1."""

    def __init__(self, step, number=signal.SIGTERM):
        super().__init__()
        self.left, self.number = step, number

    def on_train_batch_end(self, batch, logs=None):
        self.left -= 1
        if not self.left:
            os.kill(os.getpid(), self.number)


class Log(keras.callbacks.Callback):
    def __init__(self):
        super().__init__()
        self.rows = {}

    def on_epoch_end(self, epoch, logs=None):
        self.rows[epoch] = dict(logs)


def distil(distiller, folder, epochs, *callbacks, every=1):
    parts, metrics = distiller.state, distiller.trackers
    state = TrainingState(parts, folder, STEPS, metrics=metrics, every=every)
    state.restore()
    position, log = (state.epoch, state.step), Log()
    state.fit(
        distiller,
        lambda first: latent_dataset(8, 3, LATENT, seed=0, first_step=first),
        epochs=epochs,
        callbacks=[log, *callbacks],
        verbose=0,
    )
    return position, log.rows


def test_restore_within_an_epoch_equals_going_on(tmp_path):
    whole = toys.distiller()
    _, expected = distil(whole, tmp_path / "whole", 2, every=0)
    assert not (tmp_path / "whole").exists()
    first = toys.distiller()
    before = signal.getsignal(signal.SIGTERM)
    with pytest.raises(KeyboardInterrupt):
        distil(first, tmp_path / "parts", 2, SignalAt(5))
    assert signal.getsignal(signal.SIGTERM) is before
    second = toys.distiller()
    # All must come from the file.
    for network in (second.student, second.source.generator):
        network.set_weights([weight + 1 for weight in network.get_weights()])
    position, rows = distil(second, tmp_path / "parts", 2)
    assert position == (1, 2)
    assert rows == {1: pytest.approx(expected[1], rel=1e-6)}
    differences = largest_difference(state_values(whole), state_values(second))
    # Two engines traced apart may differ by one rounding; momenta are large numbers.
    assert max(differences[name] for name in ("student", "generator")) <= 1e-6
    assert len(differences) == 4 and max(differences.values()) <= 1e-5


@pytest.mark.slow
def test_restore_of_a_student_with_counters_and_random_draws(tmp_path):
    """Weights that are whole numbers: an adapted Normalization's, Dropout's seed."""
    options = {"dropout": 0.5, "adapted": True, "clip_gradients": 1.0}
    whole = toys.distiller(**options)
    distil(whole, tmp_path / "whole", 1, every=0)
    kinds = {weight.dtype for weight in whole.student.non_trainable_variables}
    assert kinds == {"float32", "int64"}
    with pytest.raises(KeyboardInterrupt):
        distil(toys.distiller(**options), tmp_path / "parts", 1, SignalAt(2))
    second = toys.distiller(**options)
    assert distil(second, tmp_path / "parts", 1)[0] == (0, 2)
    differences = largest_difference(state_values(whole), state_values(second))
    assert max(differences.values()) <= 1e-4


def drawing_model():
    """Draws at random within, as some students do."""
    keras.utils.set_random_seed(0)
    model = keras.Sequential(
        [keras.Input((2,)), keras.layers.Dropout(0.5), keras.layers.Dense(1)]
    )
    model.compile(keras.optimizers.SGD(0.1, momentum=0.9), "mse")
    return model


def state_of(model, folder, **options):
    model.optimizer.build(model.trainable_variables)
    parts = {"model": model, "optimizer": model.optimizer}
    state = TrainingState(parts, folder, STEPS, **options)
    state.restore()
    return state


def numbers(first):
    draw = lambda step: tf.random.stateless_normal((4, 2), (7, step))  # noqa: E731
    steps = tf.data.Dataset.range(first, 1000)
    return steps.map(lambda step: (draw(step), tf.reduce_sum(draw(step), 1)))


def fit(model, folder, epochs, *callbacks, **options):
    state = state_of(model, folder, **options)
    state.fit(model, numbers, epochs=epochs, callbacks=callbacks, verbose=0)
    return model.get_weights()


def test_checkpoint_holds_where_random_draws_within_a_network_stand(tmp_path):
    expected = fit(drawing_model(), tmp_path / "whole", 2)
    with pytest.raises(KeyboardInterrupt):
        fit(drawing_model(), tmp_path / "parts", 2, SignalAt(4))
    ours = fit(drawing_model(), tmp_path / "parts", 2)
    for a, b in zip(ours, expected):
        np.testing.assert_array_equal(a, b)


def names(folder):
    return sorted(file.name for file in folder.iterdir())


def files_of(*steps):
    endings = ("data-00000-of-00001", "index", "json")
    return sorted(f"ckpt-{step}.{ending}" for step in steps for ending in endings)


def test_checkpoints_keep_the_last_and_remains_are_cleared_away(tmp_path):
    model = drawing_model()
    (tmp_path / "ckpt-99_temp").mkdir()  # killed while writing
    (tmp_path / "ckpt-98.index").write_text("half of it")
    (tmp_path / ".ckpt-98.json").write_text("")
    fit(model, tmp_path, 2)
    assert names(tmp_path) == files_of(3, 6)
    fit(model, tmp_path, 5, every=2, keep=3)
    assert names(tmp_path) == files_of(3, 6, 12)


@pytest.mark.slow
def test_checkpoints_are_written_within_long_epochs(tmp_path):
    with pytest.raises(KeyboardInterrupt):
        fit(drawing_model(), tmp_path, 1, SignalAt(2), minutes=1e-9, keep=9)
    assert names(tmp_path) == files_of(1, 2)


@pytest.mark.slow
def test_interruption_by_a_second_signal_does_not_wait(tmp_path):
    with pytest.raises(KeyboardInterrupt):
        fit(drawing_model(), tmp_path, 1, SignalAt(1), SignalAt(1))
    assert not list(tmp_path.iterdir())


@rows("number", [signal.SIGTERM, signal.SIGINT])
def test_interruption_ends_a_run_without_checkpoints_too(number, tmp_path, capfd):
    with pytest.raises(KeyboardInterrupt):
        fit(drawing_model(), tmp_path, 4, SignalAt(2, number), every=0)
    printed = "".join(capfd.readouterr())
    assert "Stopped after 0 epochs and 2 steps." in printed and "Sav" not in printed
    assert not list(tmp_path.iterdir())


@pytest.mark.slow
def test_interruption_in_the_last_step_waits_for_the_end_of_the_epoch(tmp_path):
    with pytest.raises(KeyboardInterrupt):
        fit(drawing_model(), tmp_path, 4, SignalAt(3), every=4)
    state = state_of(drawing_model(), tmp_path)
    assert (state.epoch, state.step) == (1, 0)


def test_restore_without_any_checkpoint_starts_at_zero(tmp_path):
    state = state_of(drawing_model(), tmp_path)
    assert state.steps_done == 0 and state.seconds == 0


@rows("ending", ["data-00000-of-00001", "index", "json"])
def test_restore_leaves_a_truncated_checkpoint_for_the_one_before(tmp_path, ending):
    expected = fit(drawing_model(), tmp_path, 3)
    file = tmp_path / f"ckpt-9.{ending}"
    file.write_bytes(file.read_bytes()[:-40])
    with pytest.warns(DistillationWarning, match=r"Going on from .*ckpt-6, an earlier"):
        state = state_of(drawing_model(), tmp_path)
    assert state.epoch == 2
    with pytest.warns(DistillationWarning):
        ours = fit(drawing_model(), tmp_path, 3)
    for a, b in zip(ours, expected):
        np.testing.assert_array_equal(a, b)


def test_restore_of_unreadable_checkpoints_says_what_to_delete(tmp_path):
    fit(drawing_model(), tmp_path, 1)
    for file in tmp_path.glob("*.data*"):
        file.write_bytes(b"")
    with pytest.raises(RunError, match=r"Cannot resume from .*Delete the folder"):
        state_of(drawing_model(), tmp_path)


@pytest.mark.slow
def test_checkpoint_record_says_where_the_run_stands(tmp_path):
    fit(drawing_model(), tmp_path, 1)
    record = json.loads((tmp_path / "ckpt-3.json").read_text())
    assert (record["epoch"], record["step"]) == (1, 0) and record["seconds"] > 0


def test_interruption_of_one_process_stops_all_of_a_run(tmp_path):
    requests = []

    def all_reduce(request):
        requests.append(request)
        return request + 1000 * (len(requests) == 2)  # another process's

    with pytest.raises(KeyboardInterrupt):
        fit(drawing_model(), tmp_path, 1, all_reduce=all_reduce)
    assert requests == [0, 0] and names(tmp_path) == files_of(2)


@pytest.mark.slow
def test_checkpoints_are_written_by_one_process_of_a_run(tmp_path):
    fit(drawing_model(), tmp_path, 1, writes=False)
    assert names(tmp_path) == []


class SignalAtTheEnd(keras.callbacks.Callback):
    """Sends a signal when all steps are done and their checkpoint is written."""

    def on_train_end(self, logs=None):
        os.kill(os.getpid(), signal.SIGTERM)


@pytest.mark.slow
def test_interruption_after_the_last_step_is_not_forgotten(tmp_path):
    with pytest.raises(KeyboardInterrupt):
        fit(drawing_model(), tmp_path, 1, SignalAtTheEnd(), every=2)
    assert names(tmp_path) == files_of(3)
