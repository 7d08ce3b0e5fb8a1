"""When to stop without real data: does the student say what the teachers say?

Nobody sees accuracy where there is no labelled image. What can be seen is agreement:
the share of invented images on which student and teachers' mean pick one class.
"""

import json
import pathlib

import keras
import numpy as np
import tensorflow as tf

from cdfkd_tf.distillation.callbacks import Inventor
from cdfkd_tf.runtime.files import replacing

SIGNALS = ("agreement", "agreement_earlier")
NUM_EARLIER = 8  # generators that are remembered by their images
_IMAGES_OF_EACH = 64


class HeldOutAgreement(keras.callbacks.Callback):
    """Agreement on images of held-out noise, through current and earlier generators.

    Logs `agreement` (the current generator, which is trained to find disagreement) and
    `agreement_earlier` (images kept from up to `NUM_EARLIER` generators spread evenly
    over the run; before there is one, as `agreement`). Stands first among the
    callbacks, so that the others see both names.

    Args:
        student: images to `{"logits": (B, H, C), ...}`.
        invent: an `Inventor`.
        noise: `(n, Z)` that no update sees.
        epochs: length of the run.
        file: where the kept images stand, for a run that is resumed.
        first_epoch: finished epochs of earlier processes.
    """

    def __init__(
        self,
        student: keras.Model,
        invent: Inventor,
        noise: np.ndarray,
        *,
        epochs: int,
        file: pathlib.Path,
        first_epoch: int = 0,
    ):
        super().__init__()
        self._invent, self._noise = invent, noise
        self._file = pathlib.Path(file)
        self._every = max(1, epochs // NUM_EARLIER)
        self._earlier = self._read(first_epoch)

        @tf.function(reduce_retracing=True)
        def student_classes(images):
            logits = student(images, training=False)["logits"]
            return tf.argmax(tf.reduce_mean(logits, axis=1), -1)

        self._student_classes = student_classes

    def on_epoch_end(self, epoch, logs=None):
        images, logits = self._invent(self._noise)
        classes = logits.mean(axis=1).argmax(-1)
        now = earlier = self._agreement(images, classes)
        if self._earlier:
            kept = zip(*((images, classes) for _, images, classes in self._earlier))
            earlier = self._agreement(*(np.concatenate(arrays) for arrays in kept))
        logs.update(agreement=now, agreement_earlier=earlier)
        if (epoch + 1) % self._every == 0:
            few = slice(_IMAGES_OF_EACH)
            self._earlier.append((epoch + 1, images[few], classes[few]))
            self._write()

    def _agreement(self, images, classes):
        return float(np.mean(self._student_classes(images).numpy() == classes))

    def _write(self):
        epochs, images, classes = (np.array(part) for part in zip(*self._earlier))
        with replacing(self._file) as temporary:
            np.savez(temporary, epochs=epochs, images=images, classes=classes)

    def _read(self, first_epoch):
        if not first_epoch or not self._file.exists():
            return []
        with np.load(self._file, allow_pickle=False) as kept:
            rows = zip(kept["epochs"].tolist(), kept["images"], kept["classes"])
            return [row for row in rows if row[0] <= first_epoch]


class KeepBest(keras.callbacks.Callback):
    """Keeps the student's weights of the epoch at which a logged number was highest.

    Ties go to the later epoch. A resumed run goes on with what was kept.

    Args:
        student: whose weights are kept.
        name: of the logged number.
        directory: of the weights and of a note beside them.
        first_epoch: finished epochs of earlier processes; 0 forgets what was kept.
    """

    def __init__(
        self,
        student: keras.Model,
        name: str,
        directory: pathlib.Path,
        first_epoch: int = 0,
    ):
        super().__init__()
        self.student, self.name = student, name
        self._directory = pathlib.Path(directory)
        self._note = self._directory / "best.json"
        self.best = {"epoch": 0, "value": float("-inf")}
        if first_epoch and self._note.exists():
            self.best = json.loads(self._note.read_text())

    @property
    def _weights(self) -> pathlib.Path:
        return self._directory / f"epoch_{self.best['epoch']}.weights.h5"

    def on_epoch_end(self, epoch, logs=None):
        if logs[self.name] < self.best["value"]:
            return
        self.best = {"epoch": epoch + 1, "value": logs[self.name]}
        with replacing(self._weights) as temporary:
            self.student.save_weights(temporary)
        with replacing(self._note) as temporary:  # from now on it is the best
            temporary.write_text(json.dumps(self.best))
        for file in self._directory.glob("*.weights.h5"):
            if file != self._weights:
                file.unlink()

    def restore(self) -> None:
        """Puts the kept weights into the student."""
        self.student.load_weights(self._weights)
