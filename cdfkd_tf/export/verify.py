"""Whether exported files compute what the Keras model computes."""

import contextlib
import pathlib
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import numpy as np

from cdfkd_tf.errors import DistillationWarning, RequestError, RunError
from cdfkd_tf.export.format import Format
from cdfkd_tf.export.micro import FIGURES, micro_figures
from cdfkd_tf.export.runner import Runner, in_parts

LOW_AGREEMENT = 0.99  # below it, the user is warned
# Share of probability on other classes, mean over the images, above which a file is
# broken. Half of it is lost where bytes round even probabilities of many classes to 0.
_MOVED = 0.6

Batches = Iterable[tuple[np.ndarray, np.ndarray | None]]


def verify(
    rows: Sequence[Format],
    folder: pathlib.Path,
    predict: Callable[[np.ndarray], np.ndarray],
    batches: Batches,
    slack: float = 0.0,
) -> list[dict[str, Any]]:
    """Loads exported files and compares them with Keras, batch by batch.

    Warns of a file that disagrees with Keras on more than one image in a hundred, and
    of one that should compute with integers and does not throughout.

    Args:
        rows: formats of the files.
        folder: that holds them.
        predict: what Keras computes: images to probabilities `(B, C)`.
        batches: images `(B, height, width, channels)` in [0, 1], and labels `(B,)` or
            None; gone through once.
        slack: a probability of every file may differ as much.

    Returns:
        Values for results.json, per file: `bytes`, `accuracy` (None without labels),
        `agreement` (share of images with Keras's class), `max_abs_difference` of a
        probability, `latency_ms` (median for one image), `threads` it was measured
        with, `operators` (how many) and `float_operators` (names of those that
        compute with floats), both None where the file lists none; what
        `micro_figures` gives, None where the format is not for it.

    Raises:
        RequestError: no images.
        RunError: if a file cannot be loaded, or differs by more than its format's
            rounding explains.
    """
    files = [_File(row, folder / row.file) for row in rows]
    image = None
    for images, labels in batches:
        rest = None if labels is None else np.reshape(labels, -1)
        for part in in_parts(images):
            expected, image = predict(part), part[:1]
            for file in files:
                file.compare(part, rest, expected)
            rest = None if rest is None else rest[len(part) :]
    if image is None:
        raise RequestError("There are no images to compare exported files on.")
    return [file.figures(image, slack) for file in files]


class _File:
    """One exported file, and how it did so far."""

    def __init__(self, row: Format, path: pathlib.Path):
        self.row, self.path = row, path
        with self._refused_as_broken():
            self.run = row.load(path)
        self.images = self.labelled = self.right = self.agreed = 0
        self.largest = self.moved = 0.0

    def compare(self, images, labels, expected) -> None:
        with self._refused_as_broken():
            outputs = self.run(images)
        differences, classes = np.abs(outputs - expected), outputs.argmax(-1)
        # Not Python's max, which may lose what is no number.
        self.largest = float(np.maximum(self.largest, differences.max()))
        self.moved += float(differences.sum()) / 2
        self.images += len(images)
        self.agreed += int(np.sum(classes == expected.argmax(-1)))
        if labels is not None:
            self.labelled += len(images)
            self.right += int(np.sum(classes == labels[: len(images)]))

    def figures(self, image: np.ndarray, slack: float) -> dict[str, Any]:
        row, run, moved = self.row, self.run, self.moved / self.images
        allowed = max(row.tolerance, slack)
        # Not >: also where it is no number.
        if not (self.largest <= allowed and moved <= _MOVED):
            raise RunError(
                f"The {row.name} file computes something else than the Keras model: a "
                f"probability differs by up to {self.largest:.2g}, allowed is "
                f"{allowed}; {moved:.2g} of the probability is on other classes, "
                f"allowed is {_MOVED}."
            )
        warn_of_floats(row, run)
        agreement = self.agreed / self.images
        if agreement < LOW_AGREEMENT:
            _warn(
                f"{row.name} agrees with Keras on {agreement:.1%} of the images, less "
                f"than {LOW_AGREEMENT:.0%}. {row.remedy}".rstrip()
            )
        return {
            "bytes": _size_of(self.path),
            "accuracy": self.right / self.labelled if self.labelled else None,
            "agreement": agreement,
            "max_abs_difference": self.largest,
            "latency_ms": run.latency(image),
            "threads": run.threads,
            "operators": None if run.operators is None else len(run.operators),
            "float_operators": run.float_operators,
            **self._micro(image),
        }

    def _micro(self, image: np.ndarray) -> dict[str, Any]:
        """A file of integers in a microcontroller's interpreter, where it is there."""
        if not self.row.calibrated:
            return dict.fromkeys(FIGURES)
        figures = micro_figures(self.run.content, image, self.run(image))
        if figures["micro_unsupported"]:
            _warn(
                f"{self.row.name} does not run in tflite-micro: "
                f"{', '.join(figures['micro_unsupported'])}. Phones run it; for a "
                "microcontroller choose another --student or --aggregator."
            )
        return figures

    @contextlib.contextmanager
    def _refused_as_broken(self) -> Iterator[None]:
        try:
            yield
        except Exception as error:  # interpreters raise many kinds for a bad file
            raise RunError(
                f"The {self.row.name} file cannot be run: {error}"
            ) from error


def warn_of_floats(row: Format, run: Runner) -> None:
    """Warns of a file that should compute with integers and does not throughout.

    Args:
        row: the file's format.
        run: the file, loaded.
    """
    if row.calibrated and run.float_operators:
        _warn(
            f"{row.name} computes {', '.join(run.float_operators)} with floats, for "
            "TFLite has no integers for that: a device without floating point cannot "
            "run it. All else is in integers."
        )


def _warn(text: str) -> None:
    warnings.warn(text, DistillationWarning, stacklevel=4)


def _size_of(path: pathlib.Path) -> int:
    files = [path] if path.is_file() else [f for f in path.rglob("*") if f.is_file()]
    return sum(file.stat().st_size for file in files)
