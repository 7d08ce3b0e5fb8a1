"""Training state on disk: saved whole, pruned, found again after any interruption."""

import contextlib
import json
import os
import pathlib
import shutil
import signal
import threading
import time
import warnings
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from cdfkd_tf.errors import DistillationWarning, RunError, reason
from cdfkd_tf.runtime import keras_internals
from cdfkd_tf.runtime.files import replacing, synced

_SAVE, _STOP = 1, 1000  # requests of one process after a step; they add up


def seed_states(network: keras.Model) -> dict[str, tf.Variable]:
    """Where the random draws within a network (Dropout) stand: layer -> its state.

    Keras leaves them out of what `tf.train.Checkpoint` sees of a network.
    """
    layers = keras_internals.all_layers(network)
    drawing = [layer for layer in layers if getattr(layer, "seed_generator", None)]
    return {
        f"{number}": layer.seed_generator.state.value
        for number, layer in enumerate(drawing)
    }


_NOTE = b"\nSaving at the end of this step; once more stops at once.\n"
_NOTE_UNSAVED = b"\nStopping at the end of this step; once more stops at once.\n"


class Interruption:
    """Holds SIGTERM and Ctrl-C back until a step is finished and saved.

    The first signal is a request, the second an interruption.

    Args:
        saves: whether the state is saved before the run ends.

    Attributes:
        asked: whether a signal came.
    """

    def __init__(self, saves: bool):
        self.asked, self._note = False, _NOTE if saves else _NOTE_UNSAVED

    @contextlib.contextmanager
    def postponed(self) -> Iterator[None]:
        """Within the block SIGTERM and SIGINT set `asked`.

        Elsewhere than in the main thread nothing happens: signals belong to it.
        """
        if threading.current_thread() is not threading.main_thread():
            yield
            return
        numbers = (signal.SIGTERM, signal.SIGINT)
        before = {number: signal.signal(number, self._ask) for number in numbers}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    def _ask(self, number, frame):
        if self.asked:
            raise KeyboardInterrupt
        self.asked = True
        os.write(1, self._note)  # print may be interrupted within itself


class TrainingState(keras.callbacks.Callback):
    """Saves what learns: at the end of epochs, after minutes, when interrupted.

    Stands last among the callbacks, so that what they wrote for an epoch is there
    before its checkpoint. A checkpoint is `ckpt-<steps>.*`, and counts once its record
    `ckpt-<steps>.json`, written last, stands beside it. What never changes (teachers)
    or follows from the position alone (noise, order of images, learning rates) is not
    saved.

    Args:
        parts: name -> network, optimiser or variables.
        directory: where checkpoints live.
        steps_per_epoch: of `fit`.
        metrics: whose running values within an epoch are saved, too.
        every: epochs between checkpoints; 0 saves none at all.
        minutes: between checkpoints within an epoch; 0: only when interrupted.
        keep: how many of the last stay.
        all_reduce: a whole number of this process to the sum over all processes.
        writes: whether this process is the one that writes.

    Attributes:
        epoch: finished epochs.
        step: finished steps of the next one.
        seconds: spent in `fit`, earlier processes included.
    """

    def __init__(
        self,
        parts: Mapping[str, Any],
        directory: pathlib.Path,
        steps_per_epoch: int,
        *,
        metrics: Mapping[str, keras.metrics.Metric] | None = None,
        every: int = 1,
        minutes: float = 0,
        keep: int = 2,
        all_reduce: Callable[[int], int] = int,
        writes: bool = True,
    ):
        super().__init__()
        self.epoch, self.step, self.seconds = 0, 0, 0.0
        self.steps_per_epoch = steps_per_epoch
        self._checkpoint = tf.train.Checkpoint(**parts)
        self._directory, self._metrics = pathlib.Path(directory), dict(metrics or {})
        self._every, self._minutes, self._keep = every, minutes, keep
        self._all_reduce, self._writes = all_reduce, writes
        self._interruption = Interruption(saves=every > 0)
        self._running: dict[str, list] = {}  # values of metrics at `step`

    @property
    def steps_done(self) -> int:
        """Steps since the beginning of the run."""
        return self.epoch * self.steps_per_epoch + self.step

    def restore(self) -> None:
        """Goes to the last checkpoint that can be read, if any; warns of later ones.

        Raises:
            RunError: if there are checkpoints and none can be read.
        """
        broken = []
        for record_file in reversed(self._records()):
            name = str(record_file.with_suffix(""))
            try:
                record = json.loads(record_file.read_text())
                self._checkpoint.read(name).assert_existing_objects_matched()
                self.epoch, self.step = int(record["epoch"]), int(record["step"])
                self.seconds, self._running = record["seconds"], record["metrics"]
            except Exception as error:  # TensorFlow raises many kinds for a bad file
                broken.append(f"{name}: {reason(error)}")
                continue
            if broken:
                warnings.warn(
                    f"Going on from {name}, an earlier checkpoint: cannot read "
                    f"{broken[0]}",
                    DistillationWarning,
                    stacklevel=2,
                )
            return
        if broken:
            raise RunError(
                f"Cannot resume from {broken[0]} Delete the folder {self._directory} "
                "to start again."
            )

    def fit(self, model: keras.Model, data: Any, *, epochs: int, **kwargs) -> None:
        """`model.fit` from where this stands: first the rest of a begun epoch.

        The first SIGTERM or Ctrl-C lets the step finish and saves; a second one does
        not wait.

        Args:
            model: compiled.
            data: `steps_done -> dataset` that starts there.
            epochs: length of the whole run.
            **kwargs: as in `keras.Model.fit`; this callback joins the others.

        Raises:
            KeyboardInterrupt: after saving.
        """
        callbacks = [*kwargs.pop("callbacks", ()), self]
        with self._interruption.postponed():
            for last, steps in self._stretches(epochs):
                model.fit(
                    data(self.steps_done),
                    initial_epoch=self.epoch,
                    epochs=last,
                    steps_per_epoch=steps,
                    callbacks=callbacks,
                    shuffle=False,
                    **kwargs,
                )
                if model.stop_training:  # a callback asked for it
                    break

    def _stretches(self, epochs: int):
        """`(epochs, steps_per_epoch)` of each call of `fit`."""
        if self.step:
            yield self.epoch + 1, self.steps_per_epoch - self.step
        if self.epoch < epochs:
            yield epochs, self.steps_per_epoch

    def on_train_begin(self, logs=None):
        self._started = self._saved = time.monotonic()

    def on_epoch_begin(self, epoch, logs=None):
        self._skipped = self.step
        if self.step:  # fit() has just reset them
            for name, values in self._running.items():
                for variable, value in zip(self._metrics[name].variables, values):
                    variable.assign(value)

    def on_train_batch_end(self, batch, logs=None):
        self.step = self._skipped + batch + 1
        if self.step == self.steps_per_epoch:
            return  # at the end of an epoch there is more to wait for
        waited = time.monotonic() - self._saved
        self._save_or_stop(bool(self._minutes) and waited >= 60 * self._minutes)

    def on_epoch_end(self, epoch, logs=None):
        self.epoch, self.step = epoch + 1, 0
        self._save_or_stop(self._every > 0 and self.epoch % self._every == 0)

    def _save_or_stop(self, due: bool) -> None:
        """Saves if this or another process has to, ends the run if one was asked to."""
        request = _STOP if self._interruption.asked else _SAVE if due else 0
        requests = self._all_reduce(request)
        if requests and self._every:
            self._save()
        if requests >= _STOP:
            done = f"after {self.epoch} epochs and {self.step} steps."
            print("Saved" if self._every else "Stopped", done, flush=True)
            raise KeyboardInterrupt

    def _save(self) -> None:
        now = time.monotonic()
        self.seconds += now - self._started
        self._started = self._saved = now
        running = {
            name: [np.asarray(variable).tolist() for variable in metric.variables]
            for name, metric in self._metrics.items()
            if self.step
        }
        record = {
            "epoch": self.epoch,
            "step": self.step,
            "seconds": self.seconds,
            "metrics": running,  # read by all: hosts can only read them together
        }
        if self._writes:
            self._write(record)

    def _write(self, record: dict[str, Any]) -> None:
        self._directory.mkdir(parents=True, exist_ok=True)
        name = self._directory / f"ckpt-{self.steps_done}"
        record_file = name.with_suffix(".json")
        record_file.unlink(missing_ok=True)  # while its files change it does not count
        written = self._checkpoint.write(str(name))
        for file in sorted(self._directory.glob(f"{pathlib.Path(written).name}.*")):
            synced(file)
        with replacing(record_file) as temporary:
            temporary.write_text(json.dumps(record))
        self._prune()

    def _prune(self) -> None:
        """Removes old checkpoints, and what killed processes left of theirs."""
        for record_file in self._records()[: -self._keep]:
            record_file.unlink()
        kept = {record_file.stem for record_file in self._records()}
        for file in self._directory.glob("*ckpt-*"):
            name = file.name.removeprefix(".").split(".")[0].removesuffix("_temp")
            if file.is_dir():
                shutil.rmtree(file, ignore_errors=True)
            elif name not in kept:
                file.unlink(missing_ok=True)

    def _records(self) -> list[pathlib.Path]:
        """Of checkpoints that count, the oldest first."""
        files = self._directory.glob("ckpt-*.json")
        return sorted(files, key=lambda file: int(file.stem.removeprefix("ckpt-")))
