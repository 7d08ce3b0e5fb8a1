"""Training state on disk: save, prune, resume."""

import json
import pathlib
import time

import keras
import tensorflow as tf

from cdfkd_tf.errors import RunError
from cdfkd_tf.files import replacing
from cdfkd_tf.training.distiller import Distiller

KEEP = 2


class TrainingState(keras.callbacks.Callback):
    """Saves the networks that learn and their optimisers at the end of an epoch.

    The teachers are not saved: they never change. The noise needs no state, it
    follows from the seed and the step.

    Args:
        distiller: compiled.
        directory: where checkpoints live; the last `KEEP` stay.
        every: epochs between checkpoints; 0 saves none.
    """

    def __init__(self, distiller: Distiller, directory: pathlib.Path, every: int):
        super().__init__()
        self.every = every
        self.seconds = 0.0  # spent in fit, earlier processes included
        self._directory = pathlib.Path(directory)
        self._checkpoint = tf.train.Checkpoint(**distiller.state)
        self._manager = tf.train.CheckpointManager(
            self._checkpoint, str(directory), max_to_keep=KEEP
        )

    def restore(self) -> int:
        """Loads the last checkpoint, if there is one.

        Returns:
            The number of finished epochs: the `initial_epoch` to go on with.

        Raises:
            RunError: if the checkpoint cannot be read.
        """
        latest = self._manager.latest_checkpoint
        if not latest:
            return 0
        try:
            self._checkpoint.restore(latest).assert_existing_objects_matched()
            record = json.loads(self._record(latest).read_text())
        except Exception as error:  # TensorFlow raises many kinds for a bad file
            raise RunError(
                f"Cannot resume from {latest}: {error} Delete the folder "
                f"{self._directory} to start again."
            ) from error
        self.seconds = record["seconds"]
        return record["epoch"]

    def on_train_begin(self, logs=None):
        self._started = time.monotonic()

    def on_epoch_end(self, epoch, logs=None):
        now = time.monotonic()
        self.seconds += now - self._started
        self._started = now
        if self.every and (epoch + 1) % self.every == 0:
            self._save(epoch + 1)

    def _save(self, epoch):
        # The record first: a checkpoint counts once the manager names it.
        path = str(self._directory / f"ckpt-{epoch}")
        record = self._record(path)
        with replacing(record) as temporary:
            text = json.dumps({"epoch": epoch, "seconds": self.seconds})
            temporary.write_text(text)
        self._manager.save(checkpoint_number=epoch)
        kept = {self._record(name).name for name in self._manager.checkpoints}
        for old in self._directory.glob("*.json"):
            if old.name not in kept:
                old.unlink()

    def _record(self, checkpoint):
        return self._directory / f"{pathlib.Path(checkpoint).name}.json"
