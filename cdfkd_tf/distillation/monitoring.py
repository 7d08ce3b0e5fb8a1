"""What is watched while a student learns: agreement, generated images, collapse."""

import csv
import io
import itertools
import json
import math
import pathlib
import time
import warnings
from collections.abc import Callable, Sequence

import keras
import numpy as np
import tensorflow as tf
from PIL import Image

from cdfkd_tf.errors import DistillationWarning
from cdfkd_tf.runtime.files import replacing
from cdfkd_tf.workdir import read_history

NUM_EARLIER = 8  # generators that are remembered by their images
_IMAGES_OF_EACH = 64
PATIENCE = 5  # epochs in a row before a warning
_NEARLY_UNIFORM = 0.999  # share of the greatest possible entropy
_CHANCE = 0.05  # Cohen's kappa up to this is agreement by chance
_FEW_CLASSES = 0.1  # share of all classes
_GRID = 8  # rows and columns of a sample grid
_GRID_PIXELS = 512  # small images are enlarged to fill about this
# Agreement through earlier generators follows true accuracy best, see
# experiments/README.md.
BEST_SIGNAL = "agreement_earlier"


class FirstStep(keras.callbacks.Callback):
    """Seconds from now, when it is made, to the end of the first step; else None."""

    def __init__(self):
        super().__init__()
        self._made = time.monotonic()
        self.seconds = None

    def on_train_batch_end(self, batch, logs=None):
        if self.seconds is None:
            self.seconds = time.monotonic() - self._made


class GeneratedImagesMonitor(keras.callbacks.Callback):
    """Looks at the image source after each epoch, without moving anything.

    Logs `agreement`, the share of images on which student and teachers' mean pick one
    class (the current generator, which is trained to find disagreement), and
    `agreement_earlier`, the same on images kept from up to `NUM_EARLIER` generators
    spread evenly over the run; before there is one, as `agreement`. Writes a grid of
    the images and how often each class occurs: a histogram on few classes is mode
    collapse. `generated_classes` is the exponential of its entropy.

    Stands first among the callbacks, so that the others see its names.

    Args:
        observe: the image source's normalised images to look at.
        student_logits: normalised images to logits `(B, H, C)`.
        teacher_logits: normalised images to logits `(B, T, C)`.
        mean_logits: `(B, T, C)` to the teachers' mean `(B, C)`.
        denormalise: normalised images to [0, 1].
        epochs: length of the run.
        earlier_images: file of the kept images, for a run that is resumed.
        samples: folder of the PNG grids.
        logs: folder of TensorBoard's copy.
        batch_size: images at once.
        warnings: sees every epoch's logits, too.
        first_epoch: finished epochs of earlier processes.
    """

    def __init__(
        self,
        observe: Callable[[], np.ndarray],
        student_logits: Callable,
        teacher_logits: Callable,
        mean_logits: Callable,
        *,
        denormalise: Callable,
        epochs: int,
        earlier_images: pathlib.Path,
        samples: pathlib.Path,
        logs: pathlib.Path,
        batch_size: int,
        warnings: "CollapseWarnings | None" = None,
        first_epoch: int = 0,
    ):
        super().__init__()
        self._observe = observe
        self._student = _in_parts(student_logits, batch_size)
        self._teachers = _in_parts(teacher_logits, batch_size)
        self._mean, self._denormalise = mean_logits, denormalise
        self._file, self._samples = pathlib.Path(earlier_images), pathlib.Path(samples)
        self._logs, self._warnings = str(logs), warnings
        self._every = max(1, epochs // NUM_EARLIER)
        self._earlier = self._read(first_epoch)

    def on_train_begin(self, logs=None):
        self._writer = tf.summary.create_file_writer(self._logs)

    def on_epoch_end(self, epoch, logs=None):
        images = self._observe()
        logits = self._teachers(images)
        classes = np.asarray(self._mean(logits)).argmax(-1)
        now = earlier = self._agreement(images, classes)
        if self._earlier:
            kept = zip(*((images, classes) for _, images, classes in self._earlier))
            earlier = self._agreement(*(np.concatenate(arrays) for arrays in kept))
        logs.update(agreement=now, agreement_earlier=earlier)
        if (epoch + 1) % self._every == 0:
            few = slice(_IMAGES_OF_EACH)
            self._earlier.append((epoch + 1, images[few], classes[few]))
            self._write()
        if self._warnings:
            self._warnings.update(logits)
        self._show(epoch, images, classes, logits.shape[-1])

    def on_train_end(self, logs=None):
        self._writer.close()

    def _show(self, epoch, images, classes, num_classes):
        grid = tile(self._denormalise(images[: _GRID * _GRID]))
        with replacing(self._samples / f"epoch_{epoch + 1:04d}.png") as temporary:
            grid.save(temporary)
        shares = np.bincount(classes, minlength=num_classes) / len(classes)
        with self._writer.as_default(step=epoch + 1):
            tf.summary.image("generated_images", np.asarray(grid.convert("RGB"))[None])
            tf.summary.histogram("generated_class", classes, buckets=num_classes)
            tf.summary.scalar("generated_classes", effective_classes(shares))
        self._writer.flush()

    def _agreement(self, images, classes):
        predicted = self._student(images).mean(axis=1).argmax(-1)
        return float(np.mean(predicted == classes))

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


def _in_parts(function: Callable, batch_size: int) -> Callable:
    """A traced function of one batch as a NumPy function of any number of images."""
    traced = tf.function(function, reduce_retracing=True)

    def apply(images):
        starts = range(0, len(images), batch_size)
        parts = [traced(tf.constant(images[s : s + batch_size])) for s in starts]
        return np.concatenate([part.numpy() for part in parts])

    return apply


class CollapseWarnings:
    """Warns of uniform teachers, chance agreement and mode collapse, once each.

    Args:
        names: of the teachers, for the messages.
        patience: epochs in a row that each must last.
    """

    def __init__(self, names: Sequence[str], patience: int = PATIENCE):
        self.names, self.patience = list(names), patience
        self._lasting: dict[str, float] = {}

    def update(self, logits: np.ndarray) -> None:
        """One epoch's teacher logits `(n, T, C)` for generated images."""
        found = [
            *self._uniform(logits),
            *self._disagreeing(logits.argmax(-1), logits.shape[-1]),
            *self._collapsed(logits.mean(1).argmax(-1), logits.shape[-1]),
        ]
        messages = dict(found)
        self._lasting = {key: self._lasting.get(key, 0) + 1 for key in messages} | {
            key: math.inf for key, count in self._lasting.items() if count == math.inf
        }
        for key, message in messages.items():
            if self._lasting[key] >= self.patience and self._lasting[key] != math.inf:
                self._lasting[key] = math.inf  # never again
                warnings.warn(message, DistillationWarning, stacklevel=2)

    def _uniform(self, logits):
        shifted = logits - logits.max(-1, keepdims=True)
        log_p = shifted - np.log(np.exp(shifted).sum(-1, keepdims=True))
        entropy = -(np.exp(log_p) * log_p).sum(-1).mean(0) / math.log(logits.shape[-1])
        for name, value in zip(self.names, entropy):
            if value > _NEARLY_UNIFORM:
                yield (
                    f"uniform {name}",
                    f"Teacher {name} gives all classes the same probability on every "
                    "generated image: there is nothing to learn from it. Does it "
                    "expect other pixel values (--teacher_input), or return "
                    "probabilities (--teacher_output)?",
                )

    def _disagreeing(self, classes, num_classes):
        shares = np.stack(
            [np.bincount(column, minlength=num_classes) for column in classes.T]
        ) / len(classes)
        for one, two in itertools.combinations(range(len(self.names)), 2):
            chance = float(shares[one] @ shares[two])
            agreement = float(np.mean(classes[:, one] == classes[:, two]))
            if chance < 1 and (agreement - chance) / (1 - chance) <= _CHANCE:
                yield (
                    f"disagree {one} {two}",
                    f"Teachers {self.names[one]} and {self.names[two]} pick the same "
                    f"class on {agreement:.0%} of generated images, as chance would "
                    f"({chance:.0%}): do they list classes in the same order, and "
                    "expect these pixel values (--teacher_input)?",
                )

    def _collapsed(self, classes, num_classes):
        shares = np.bincount(classes, minlength=num_classes) / len(classes)
        in_use = effective_classes(shares)
        if in_use < max(1.5, _FEW_CLASSES * num_classes):
            yield (
                "collapse",
                f"The generated images show about {in_use:.1f} of {num_classes} "
                "classes (mode collapse): the student cannot learn the others. Try "
                "--generator_loss=balance=1, a larger bn weight or a smaller "
                "--generator_learning_rate.",
            )


def effective_classes(shares: np.ndarray) -> float:
    """How many classes are as good as in use: the exponential of the entropy.

    Args:
        shares: of each class, summing to 1.
    """
    return math.exp(-sum(share * math.log(share) for share in shares if share))


class HistoryTable(keras.callbacks.Callback):
    """Every logged number of every epoch as a CSV file, complete after each epoch.

    Unlike Keras's CSVLogger it survives a resumed run (rows after the checkpoint are
    dropped) and columns that only some epochs have.

    Args:
        file: rewritten whole; rows of an earlier process are kept.
        first_epoch: finished epochs of earlier processes; later rows are dropped.
    """

    def __init__(self, file: pathlib.Path, first_epoch: int = 0):
        super().__init__()
        self.file, self.rows = pathlib.Path(file), []
        columns = read_history(self.file) if first_epoch else {}
        for epoch in range(first_epoch if columns else 0):
            row = {name: values[epoch] for name, values in columns.items()}
            self.rows.append({"epoch": epoch + 1, **row})

    def on_epoch_end(self, epoch, logs=None):
        self.rows.append({"epoch": epoch + 1, **(logs or {})})
        columns = list(dict.fromkeys(name for row in self.rows for name in row))
        text = io.StringIO()
        writer = csv.DictWriter(text, columns, restval="", lineterminator="\n")
        writer.writeheader()
        for row in self.rows:
            known = {name: value for name, value in row.items() if value is not None}
            writer.writerow({name: f"{value:.6g}" for name, value in known.items()})
        with replacing(self.file) as temporary:
            temporary.write_text(text.getvalue())


class TrainingFigures(keras.callbacks.Callback):
    """Logs `images_per_second` of the student, and each optimiser's learning rate.

    Args:
        images_per_step: that the student learns from in one iteration.
        optimizers: name -> optimiser.
    """

    def __init__(
        self,
        images_per_step: int,
        optimizers: dict[str, keras.optimizers.Optimizer],
    ):
        super().__init__()
        self._images_per_step, self._steps = images_per_step, 0
        self._optimizers = optimizers

    def on_epoch_begin(self, epoch, logs=None):
        self._started = time.monotonic()

    def on_train_batch_end(self, batch, logs=None):
        self._steps = batch + 1  # of an interrupted epoch: since it went on

    def on_epoch_end(self, epoch, logs=None):
        seconds = time.monotonic() - self._started
        logs["images_per_second"] = self._steps * self._images_per_step / seconds
        for name, optimizer in self._optimizers.items():
            rate = float(keras.ops.convert_to_numpy(optimizer.learning_rate))
            logs[f"{name}_learning_rate"] = rate


class KeepBest(keras.callbacks.Callback):
    """Keeps the student's weights of the epoch at which a logged number was highest.

    Ties go to the later epoch. Unlike Keras's ModelCheckpoint a resumed run goes on
    with what was kept, and only the student is.

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


def tile(images: np.ndarray) -> Image.Image:
    """Up to 64 images `(n, height, width, 1 or 3)` in [0, 1] as one picture."""
    images = np.clip(images[: _GRID * _GRID], 0, 1)
    count, height, width, channels = images.shape
    rows = math.ceil(count / _GRID)
    empty = np.ones((rows * _GRID - count, height, width, channels))
    cells = np.concatenate([images, empty])
    cells = cells.reshape(rows, _GRID, height, width, channels)
    # One white pixel between neighbours.
    cells = np.pad(cells, [(0, 0), (0, 0), (0, 1), (0, 1), (0, 0)], constant_values=1)
    picture = cells.transpose(0, 2, 1, 3, 4).reshape(
        rows * (height + 1), _GRID * (width + 1), channels
    )
    pixels = np.rint(picture * 255).astype("uint8")
    image = Image.fromarray(pixels[..., 0] if channels == 1 else pixels)
    scale = max(1, _GRID_PIXELS // image.width)
    size = (image.width * scale, image.height * scale)
    return image.resize(size, Image.Resampling.NEAREST)
