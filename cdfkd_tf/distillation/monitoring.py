"""What is watched while a student learns: agreement, generated images, collapse."""

import csv
import itertools
import json
import math
import pathlib
import time
import warnings
from collections.abc import Sequence

import keras
import numpy as np
import tensorflow as tf
from PIL import Image

from cdfkd_tf.data.specs import DatasetSpec
from cdfkd_tf.distillation.distiller import Distiller
from cdfkd_tf.errors import DistillationWarning
from cdfkd_tf.runtime.files import replacing
from cdfkd_tf.teachers.teacher import Teacher
from cdfkd_tf.workdir import Workdir, read_history

NUM_EARLIER = 8  # generators that are remembered by their images
_KEPT_BYTES = 2**23  # of each; up to 100x100 pixels that is the whole grid
PATIENCE = 5  # epochs in a row before a warning
_NEARLY_UNIFORM = 0.999  # share of the greatest possible entropy
_CHANCE = 0.05  # Cohen's kappa up to this is agreement by chance
_FEW_CLASSES = 0.1  # share of all classes
_GRID = 8  # rows and columns of a sample grid
_GRID_PIXELS = 512  # small images are enlarged to fill about this
_TIMED = 3  # iterations before the first estimate of the time to go
_WORTH_TELLING = 20  # seconds
# Agreement through earlier generators follows true accuracy best, see
# experiments/README.md.
BEST_SIGNAL = "agreement_earlier"


class GeneratedImagesMonitor(keras.callbacks.Callback):
    """Looks at the image source after each epoch, without moving anything.

    Logs `agreement`, the share of images on which student and teachers' mean pick one
    class (the current generator, which is trained to find disagreement), and
    `agreement_earlier`, the same on images kept from up to `NUM_EARLIER` generators
    spread evenly over the run; before there is one, as `agreement`. Writes a grid of
    the images and how often each class occurs: a histogram on few classes is mode
    collapse. `generated_classes` is the exponential of its entropy.

    Stands first among the callbacks, so that the others see its names. No more images
    are computed at once than in a step of the training.

    Args:
        distiller: student, teachers and a source that shows images.
        spec: of the images.
        workdir: of kept images, pictures and TensorBoard's copies.
        epochs: length of the run.
        batch_size: images at once.
        first_epoch: finished epochs of earlier processes.
    """

    def __init__(
        self,
        distiller: Distiller,
        spec: DatasetSpec,
        workdir: Workdir,
        *,
        epochs: int,
        batch_size: int,
        first_epoch: int = 0,
    ):
        super().__init__()
        self._distiller, self._spec, self._workdir = distiller, spec, workdir
        self._batch_size, self._every = batch_size, max(1, epochs // NUM_EARLIER)
        self._warnings = CollapseWarnings(
            distiller.teachers.teachers,
            alike=distiller.teachers.rule.name == "mean",
        )
        self._earlier = self._read(first_epoch)
        student, teachers = distiller.student, distiller.teachers

        @tf.function(reduce_retracing=True)
        def predict_student(images):
            logits = student(images, training=False)["logits"]
            return tf.argmax(teachers.combined(logits), axis=-1)

        @tf.function(reduce_retracing=True)
        def predict_teachers(images):
            logits = teachers(images).logits
            return logits, tf.argmax(teachers.combined(logits), axis=-1)

        self._student, self._teachers = predict_student, predict_teachers

    def on_train_begin(self, logs=None):
        self._writer = tf.summary.create_file_writer(str(self._workdir.logs))

    def on_epoch_end(self, epoch, logs=None):
        shown, found = [], []
        for images in self._distiller.source.observe():
            shown += list(images[: _GRID**2 - len(shown)])
            found.append((*self._teachers(images), self._student(images)))
        logits, classes, predicted = (np.concatenate(part) for part in zip(*found))
        now = earlier = float(np.mean(predicted == classes))
        if self._earlier:
            earlier = self._agreement_earlier()
        logs.update(agreement=now, agreement_earlier=earlier)
        shown = np.stack(shown)
        if (epoch + 1) % self._every == 0:
            few = slice(max(1, _KEPT_BYTES // shown[0].nbytes))
            kept = classes[: len(shown)]
            self._earlier.append((epoch + 1, shown[few], kept[few]))
            self._write()
        self._warnings.update(logits, classes)
        self._show(epoch, shown, classes, logits.shape[-1])

    def on_train_end(self, logs=None):
        self._writer.close()

    def _show(self, epoch, images, classes, num_classes):
        grid = tile(self._spec.denormalise(images))
        picture = self._workdir.samples / f"epoch_{epoch + 1:04d}.png"
        with replacing(picture) as temporary:
            grid.save(temporary)
        shares = np.bincount(classes, minlength=num_classes) / len(classes)
        with self._writer.as_default(step=epoch + 1):
            tf.summary.image("generated_images", np.asarray(grid.convert("RGB"))[None])
            tf.summary.histogram("generated_class", classes, buckets=num_classes)
            tf.summary.scalar("generated_classes", effective_classes(shares))
        self._writer.flush()

    def _agreement_earlier(self):
        right = [
            self._student(images[start:][: self._batch_size])
            == classes[start:][: self._batch_size]
            for _, images, classes in self._earlier
            for start in range(0, len(images), self._batch_size)
        ]
        return float(np.mean(np.concatenate(right)))

    def _write(self):
        epochs, images, classes = (np.array(part) for part in zip(*self._earlier))
        with replacing(self._workdir.earlier_images) as temporary:
            np.savez(temporary, epochs=epochs, images=images, classes=classes)

    def _read(self, first_epoch):
        file = self._workdir.earlier_images
        if not first_epoch or not file.exists():
            return []
        with np.load(file, allow_pickle=False) as kept:
            rows = zip(kept["epochs"].tolist(), kept["images"], kept["classes"])
            return [row for row in rows if row[0] <= first_epoch]


class CollapseWarnings:
    """Warns of uniform teachers, chance agreement and mode collapse, once each.

    Args:
        teachers: for the messages.
        patience: epochs in a row that each must last.
        alike: whether they are expected to agree.
    """

    def __init__(
        self,
        teachers: Sequence[Teacher],
        patience: int = PATIENCE,
        alike: bool = True,
    ):
        self.teachers, self.patience, self._alike = list(teachers), patience, alike
        self._lasting: dict[str, int] = {}
        self._told: set[str] = set()

    def update(self, logits: np.ndarray, classes: np.ndarray) -> None:
        """Looks at one epoch.

        Args:
            logits: of the teachers for generated images, `(n, T, C)`.
            classes: of the teachers' mean, `(n,)`.
        """
        found = {
            **self._uniform(logits),
            **(self._disagreeing(logits) if self._alike else {}),
            **self._collapsed(classes, logits.shape[-1]),
        }
        self._lasting = {key: self._lasting.get(key, 0) + 1 for key in found}
        for key, message in found.items():
            if self._lasting[key] >= self.patience and key not in self._told:
                self._told.add(key)
                warnings.warn(message, DistillationWarning, stacklevel=2)

    def _uniform(self, logits):
        shifted = logits - logits.max(-1, keepdims=True)
        log_p = shifted - np.log(np.exp(shifted).sum(-1, keepdims=True))
        entropy = -(np.exp(log_p) * log_p).sum(-1).mean(0) / math.log(logits.shape[-1])
        return {
            f"uniform {index}": f"Teacher {teacher.name} gives all classes the same "
            "probability on every generated image: there is nothing to learn from it. "
            "Does it expect other pixel values (--teacher_input), or return "
            f"probabilities (--teacher_output)?{_guesses([teacher])}"
            for index, teacher in enumerate(self.teachers)
            if entropy[index] > _NEARLY_UNIFORM
        }

    def _disagreeing(self, logits):
        classes, num_classes = logits.argmax(-1), logits.shape[-1]
        shares = np.stack(
            [np.bincount(column, minlength=num_classes) for column in classes.T]
        ) / len(classes)
        found = {}
        for one, two in itertools.combinations(range(len(self.teachers)), 2):
            chance = float(shares[one] @ shares[two])
            agreement = float(np.mean(classes[:, one] == classes[:, two]))
            if chance < 1 and (agreement - chance) / (1 - chance) <= _CHANCE:
                pair = [self.teachers[one], self.teachers[two]]
                found[f"disagree {one} {two}"] = (
                    f"Teachers {pair[0].name} and {pair[1].name} pick the same class "
                    f"on {agreement:.0%} of generated images, as chance would "
                    f"({chance:.0%}): do they know the same classes, list them in the "
                    "same order, and expect these pixel values (--teacher_input)?"
                    f"{_guesses(pair)}"
                )
        return found

    def _collapsed(self, classes, num_classes):
        shares = np.bincount(classes, minlength=num_classes) / len(classes)
        in_use = effective_classes(shares)
        if in_use >= max(1.5, _FEW_CLASSES * num_classes):
            return {}
        return {
            "collapse": f"The generated images show about {in_use:.1f} of "
            f"{num_classes} classes (mode collapse): the student cannot learn the "
            "others. Try --generator_loss=balance=1, a larger bn weight or a smaller "
            f"--generator_learning_rate.{_guesses(self.teachers)}"
        }


def _guesses(teachers: Sequence[Teacher]) -> str:
    """Names the teachers whose reading of pixels is a guess, as a possible cause."""
    return "".join(
        f" The reading of teacher {teacher.name}, {teacher.reading.values}, is a "
        "guess: try another --teacher_input."
        for teacher in teachers
        if teacher.reading.guessed
    )


def effective_classes(shares: np.ndarray) -> float:
    """How many classes are as good as in use: the exponential of the entropy.

    Args:
        shares: `(C,)`, of each class, summing to 1.

    Returns:
        From 1, all images in one class, to C.
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
        for epoch, values in enumerate([*zip(*columns.values())][:first_epoch]):
            self._append(epoch, dict(zip(columns, values)))

    def _append(self, epoch, logs):
        known = {name: f"{v:.6g}" for name, v in logs.items() if v is not None}
        self.rows.append({"epoch": epoch + 1, **known})

    def on_epoch_end(self, epoch, logs=None):
        self._append(epoch, logs)
        columns = list(dict.fromkeys(name for row in self.rows for name in row))
        with replacing(self.file) as temporary, temporary.open("w") as text:
            writer = csv.DictWriter(text, columns, lineterminator="\n")
            writer.writeheader()
            writer.writerows(self.rows)


class TrainingFigures(keras.callbacks.Callback):
    """Logs the student's speed, the time that is left, and learning rates.

    The first estimate is printed after a few iterations: `images_per_second` and
    `minutes_left` are logged at the end of each epoch.

    Args:
        epochs: of the whole run.
        images_per_step: that the student learns from in one iteration.
        optimizers: name -> optimiser.
    """

    def __init__(
        self,
        epochs: int,
        images_per_step: int,
        optimizers: dict[str, keras.optimizers.Optimizer],
    ):
        super().__init__()
        self.epochs, self._images_per_step = epochs, images_per_step
        self._optimizers, self._steps, self._told = optimizers, 0, False

    def on_epoch_begin(self, epoch, logs=None):
        self._started, self._epoch = time.monotonic(), epoch

    def on_train_batch_end(self, batch, logs=None):
        self._steps = batch + 1  # of an interrupted epoch: since it went on
        if self._told or batch < _TIMED:
            if not batch:  # the first one traces
                self._second = time.monotonic()
            return
        self._told = True
        each = (time.monotonic() - self._second) / batch
        left = (self.epochs - self._epoch) * self.params["steps"] - batch - 1
        if left * each >= _WORTH_TELLING:
            print(f"\nAbout {left * each / 60:.1f} minutes to go.")

    def on_epoch_end(self, epoch, logs=None):
        seconds = time.monotonic() - self._started
        logs["images_per_second"] = self._steps * self._images_per_step / seconds
        logs["minutes_left"] = seconds * (self.epochs - epoch - 1) / 60
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
        self.student, self.name, self._directory = student, name, directory
        self._note = directory / "best.json"
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
    images = np.clip(images, 0, 1)
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
