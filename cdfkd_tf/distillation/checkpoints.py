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
_NOTE = b"\nSaving at the end of this step; once more stops at once.\n"
_NOTE_UNSAVED = b"\nStopping at the end of this step; once more stops at once.\n"


class TrainingState(keras.callbacks.Callback):
    """Saves what learns: at the end of epochs, after minutes, when interrupted.

    Stands last among the callbacks, so that what they wrote for an epoch is there
    before its checkpoint. A checkpoint is `ckpt-<steps>.*`, and counts once its record
    `ckpt-<steps>.json`, written last, stands beside it. What never changes (teachers)
    or follows from the position alone (noise, order of images, learning rates) is not
    saved.

    Within `fit`, the first SIGTERM or Ctrl-C waits until the step is finished and
    saved; the second one does not. Elsewhere than in the main thread, to which signals
    belong, they do what they always did.

    Args:
        parts: name -> network or optimiser.
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
        first_step: seconds from here to the end of the first step in this process;
            None: there was none.
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
        self.first_step, self._made = None, time.monotonic()
        self.steps_per_epoch = steps_per_epoch
        self._checkpoint = tf.train.Checkpoint(**parts, seeds=_seed_states(parts))
        self._directory, self._metrics = pathlib.Path(directory), dict(metrics or {})
        self._every, self._minutes, self._keep = every, minutes, keep
        self._all_reduce, self._writes = all_reduce, writes
        self._is_asked = False  # whether a signal came
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

        Args:
            model: compiled.
            data: `steps_done -> dataset` that starts there.
            epochs: length of the whole run.
            **kwargs: as in `keras.Model.fit`; this callback joins the others.

        Raises:
            KeyboardInterrupt: after saving.
        """
        callbacks = [*kwargs.pop("callbacks", ()), self]
        stretches = []
        if self.step:
            stretches.append((self.epoch + 1, self.steps_per_epoch - self.step))
        if self.epoch + len(stretches) < epochs:
            stretches.append((epochs, self.steps_per_epoch))
        with self._signals_postponed():
            for last, steps in stretches:
                model.fit(
                    data(self.steps_done),
                    initial_epoch=self.epoch,
                    epochs=last,
                    steps_per_epoch=steps,
                    callbacks=callbacks,
                    shuffle=False,
                    **kwargs,
                )
                self._save_or_stop(False)  # a signal may come after the last step
                if model.stop_training:  # a callback asked for it
                    break

    @contextlib.contextmanager
    def _signals_postponed(self) -> Iterator[None]:
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
        if self._is_asked:
            raise KeyboardInterrupt
        self._is_asked = True
        # Not by print, which may be interrupted within itself.
        os.write(1, _NOTE if self._every else _NOTE_UNSAVED)

    def on_train_begin(self, logs=None):
        self._started = self._saved = time.monotonic()

    def on_epoch_begin(self, epoch, logs=None):
        self._skipped = self.step
        if self.step:  # fit() has just reset them
            for name, values in self._running.items():
                for variable, value in zip(self._metrics[name].variables, values):
                    variable.assign(value)

    def on_train_batch_end(self, batch, logs=None):
        if self.first_step is None:
            self.first_step = time.monotonic() - self._made
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
        request = _STOP if self._is_asked else _SAVE if due else 0
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
        if not self._writes:  # metrics were read by all: hosts can only do so together
            return
        self._directory.mkdir(parents=True, exist_ok=True)
        name = self._directory / f"ckpt-{self.steps_done}"
        record_file = name.with_suffix(".json")
        record_file.unlink(missing_ok=True)  # while its files change it does not count
        written = self._checkpoint.write(str(name))
        for file in sorted(self._directory.glob(f"{pathlib.Path(written).name}.*")):
            synced(file)
        position = {"epoch": self.epoch, "step": self.step, "seconds": self.seconds}
        with replacing(record_file) as temporary:
            temporary.write_text(json.dumps({**position, "metrics": running}))
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


def _seed_states(parts: Mapping[str, Any]) -> dict[str, tf.Variable]:
    """Where the random draws within networks (Dropout) stand.

    Keras leaves them out of what `tf.train.Checkpoint` sees of a network.
    """
    return {
        f"{name}_{number}": layer.seed_generator.state.value
        for name, part in parts.items()
        if isinstance(part, keras.Model)
        for number, layer in enumerate(keras_internals.all_layers(part))
        if getattr(layer, "seed_generator", None)
    }
