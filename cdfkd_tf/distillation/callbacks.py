"""What a person can watch: curves, invented images, which classes they show."""

import csv
import io
import math
import pathlib
import time
from collections.abc import Callable

import keras
import numpy as np
import tensorflow as tf
from PIL import Image

from cdfkd_tf.distillation.adversarial import unmoved
from cdfkd_tf.distillation.trouble import TroubleWatch, effective_classes
from cdfkd_tf.errors import RunError
from cdfkd_tf.runtime.files import replacing

GRID = 8  # rows and columns of a sample grid
_GRID_PIXELS = 512  # small images are enlarged to fill about this


class FirstStep(keras.callbacks.Callback):
    """Seconds from now, when it is made, to the end of the first step; else None."""

    def __init__(self):
        super().__init__()
        self._made = time.monotonic()
        self.seconds = None

    def on_train_batch_end(self, batch, logs=None):
        if self.seconds is None:
            self.seconds = time.monotonic() - self._made


class Profile(keras.callbacks.Callback):
    """TensorBoard's profile of a few steps, after those that trace and warm up.

    Args:
        directory: of the event files.
        first: steps of this process that go before.
        count: steps to look at; fewer if the run ends before.
    """

    def __init__(self, directory: pathlib.Path, first: int = 2, count: int = 3):
        super().__init__()
        self.directory, self.first, self.last = directory, first, first + count
        self._steps, self._runs = 0, False

    def on_train_batch_begin(self, batch, logs=None):
        if self._steps == self.first:
            tf.profiler.experimental.start(str(self.directory))
            self._runs = True

    def on_train_batch_end(self, batch, logs=None):
        self._steps += 1
        if self._steps == self.last:
            self._stop()

    def on_train_end(self, logs=None):
        self._stop()

    def _stop(self):
        if self._runs:
            tf.profiler.experimental.stop()
            self._runs = False


class StopOnNaN(keras.callbacks.Callback):
    """Ends the run with a message when a loss is no number any more."""

    def on_epoch_end(self, epoch, logs=None):
        for name, value in (logs or {}).items():
            if not math.isfinite(value):
                raise RunError(
                    f"{name} became {value} in epoch {epoch + 1}; checkpoints of "
                    "earlier epochs are intact. A smaller --student_learning_rate or "
                    "--generator_learning_rate usually helps."
                )


class Curves(keras.callbacks.Callback):
    """TensorBoard scalars: one curve per logged name, true values.

    Args:
        directory: of the event files.
        optimizers: name -> optimiser, whose learning rates are curves too.
        images_per_step: for the speed curve.
    """

    def __init__(
        self,
        directory: pathlib.Path,
        optimizers: dict[str, keras.optimizers.Optimizer],
        images_per_step: int,
    ):
        super().__init__()
        self.directory, self.optimizers = directory, optimizers
        self.images_per_step, self._steps = images_per_step, 0

    def on_train_begin(self, logs=None):
        self.writer = tf.summary.create_file_writer(str(self.directory))

    def on_epoch_begin(self, epoch, logs=None):
        self._started = time.monotonic()

    def on_train_batch_end(self, batch, logs=None):
        self._steps = batch + 1  # of an interrupted epoch: since it went on

    def on_epoch_end(self, epoch, logs=None):
        seconds = time.monotonic() - self._started
        speed = self._steps * self.images_per_step / seconds
        values = dict(logs or {}, images_per_second=speed)
        for name, optimizer in self.optimizers.items():
            values[f"{name}_learning_rate"] = float(
                keras.ops.convert_to_numpy(optimizer.learning_rate)
            )
        with self.writer.as_default(step=epoch + 1):
            for name, value in values.items():
                tf.summary.scalar(name, value)
        self.writer.flush()

    def on_train_end(self, logs=None):
        self.writer.close()


class HistoryTable(keras.callbacks.Callback):
    """Every logged number of every epoch as a CSV file, complete after each epoch.

    Args:
        file: rewritten whole; rows of an earlier process are kept.
        first_epoch: finished epochs of earlier processes; later rows are dropped.
    """

    def __init__(self, file: pathlib.Path, first_epoch: int = 0):
        super().__init__()
        self.file, self.rows = pathlib.Path(file), []
        if first_epoch and self.file.exists():
            with self.file.open(newline="") as table:
                self.rows = list(csv.DictReader(table))[:first_epoch]

    def on_epoch_end(self, epoch, logs=None):
        values = {name: f"{value:.6g}" for name, value in (logs or {}).items()}
        self.rows.append({"epoch": epoch + 1, **values})
        columns = list(dict.fromkeys(name for row in self.rows for name in row))
        text = io.StringIO()
        writer = csv.DictWriter(text, columns, restval="", lineterminator="\n")
        writer.writeheader()
        writer.writerows(self.rows)
        with replacing(self.file) as temporary:
            temporary.write_text(text.getvalue())


class Inventor:
    """Invents images without moving anything, and asks the teachers about them.

    Args:
        generator: noise to normalised images.
        ask_teachers: normalised images to logits `(B, T, C)`.
    """

    def __init__(self, generator: keras.Model, ask_teachers: Callable):
        self._statistics = generator.non_trainable_variables

        @tf.function
        def invent(noise):
            images = generator(noise, training=True)
            return images, ask_teachers(images)

        self._invent = invent

    def __call__(self, noise: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """For noise `(n, Z)`, images `(n, height, width, ch)`, logits `(n, T, C)`."""
        with unmoved(self._statistics):  # looking must not move anything
            images, logits = self._invent(tf.constant(noise))
        return images.numpy(), logits.numpy()


class InventedImages(keras.callbacks.Callback):
    """Grids of generated images, and how often each class is seen in them.

    A histogram on few classes is mode collapse. `invented_classes` is the
    exponential of its entropy: the number of classes as good as in use.

    Args:
        invent: an `Inventor`.
        noise: `(n, Z)`, the same at every epoch so that pictures compare.
        denormalise: normalised images to [0, 1].
        samples: folder for the PNG grids.
        logs: folder for TensorBoard's copy.
        watch: sees every epoch's answers, too.
    """

    def __init__(
        self,
        invent: Inventor,
        noise: np.ndarray,
        denormalise: Callable,
        samples: pathlib.Path,
        logs: pathlib.Path,
        watch: TroubleWatch | None = None,
    ):
        super().__init__()
        self.invent, self.noise, self.denormalise = invent, noise, denormalise
        self.samples, self.logs = pathlib.Path(samples), logs
        self.watch = watch

    def on_train_begin(self, logs=None):
        self.samples.mkdir(parents=True, exist_ok=True)
        self.writer = tf.summary.create_file_writer(str(self.logs))

    def on_epoch_end(self, epoch, logs=None):
        images, logits = self.invent(self.noise)
        if self.watch:
            self.watch.see(logits)
        grid = tile(self.denormalise(images))
        with replacing(self.samples / f"epoch_{epoch + 1:04d}.png") as temporary:
            grid.save(temporary)
        classes = logits.mean(axis=1).argmax(-1)
        shares = np.bincount(classes, minlength=logits.shape[-1]) / len(classes)
        with self.writer.as_default(step=epoch + 1):
            pixels = np.asarray(grid.convert("RGB"))[None]
            tf.summary.image("invented_images", pixels)
            tf.summary.histogram("invented_class", classes, buckets=len(shares))
            tf.summary.scalar("invented_classes", effective_classes(shares))
        self.writer.flush()

    def on_train_end(self, logs=None):
        self.writer.close()


def tile(images: np.ndarray) -> Image.Image:
    """Up to 64 images `(n, height, width, 1 or 3)` in [0, 1] as one picture."""
    images = np.clip(images[: GRID * GRID], 0, 1)
    count, height, width, channels = images.shape
    rows = math.ceil(count / GRID)
    empty = np.ones((rows * GRID - count, height, width, channels))
    cells = np.concatenate([images, empty]).reshape(rows, GRID, height, width, channels)
    # One white pixel between neighbours.
    cells = np.pad(cells, [(0, 0), (0, 0), (0, 1), (0, 1), (0, 0)], constant_values=1)
    picture = cells.transpose(0, 2, 1, 3, 4).reshape(
        rows * (height + 1), GRID * (width + 1), channels
    )
    pixels = np.rint(picture * 255).astype("uint8")
    image = Image.fromarray(pixels[..., 0] if channels == 1 else pixels)
    scale = max(1, _GRID_PIXELS // image.width)
    size = (image.width * scale, image.height * scale)
    return image.resize(size, Image.Resampling.NEAREST)
