"""Whether an exported file computes what the Keras model computes."""

import contextlib
import pathlib
import warnings
from collections.abc import Iterable, Iterator
from typing import Any

import numpy as np

from cdfkd_tf.errors import DistillationWarning, RunError
from cdfkd_tf.export.format import Format

LOW_AGREEMENT = 0.99  # below it, the user is warned
_MOVED = 0.5  # share of probability on other classes, mean over the images: broken

Batches = Iterable[tuple[np.ndarray, np.ndarray | None]]


def verify(
    row: Format, path: pathlib.Path, batches: Batches, expected: np.ndarray
) -> dict[str, Any]:
    """Loads one exported file and compares it with Keras, batch by batch.

    Args:
        row: the file's format.
        path: the file, or the folder of a SavedModel.
        batches: images `(B, height, width, channels)` in [0, 1], and labels `(B,)` or
            None.
        expected: `(n, C)`, Keras's probabilities for all of them, in the same order.

    Returns:
        Values for results.json: `bytes`, `accuracy` (None without labels),
        `agreement` (share of images with Keras's class), `max_abs_difference` of a
        probability, `latency_ms` (median for one image), `threads` it was measured
        with, `operators` (how many; None where the file lists none).

    Raises:
        RunError: if the file cannot be loaded, or differs by more than its format's
            rounding explains.
    """
    with _refused_as_broken(row):
        run = row.load(path)
    outputs, labels, image = [], [], None
    for images, known in batches:
        with _refused_as_broken(row):
            outputs.append(run(images))
        labels.append(known)
        image = images[:1]
    outputs = np.concatenate(outputs)
    _refuse_different(row, outputs, expected)
    if row.check:
        row.check(run)
    classes = outputs.argmax(-1)
    accuracy = None
    if labels[0] is not None:
        accuracy = float(np.mean(classes == np.concatenate(labels).reshape(-1)))
    return {
        "bytes": size_of(path),
        "accuracy": accuracy,
        "agreement": float(np.mean(classes == expected.argmax(-1))),
        "max_abs_difference": float(np.abs(outputs - expected).max()),
        "latency_ms": run.latency(image),
        "threads": run.threads,
        "operators": None if run.operators is None else len(run.operators),
    }


@contextlib.contextmanager
def _refused_as_broken(row: Format) -> Iterator[None]:
    try:
        yield
    except Exception as error:  # interpreters raise many kinds for a bad file
        raise RunError(f"The {row.name} file cannot be run: {error}") from error


def _refuse_different(row: Format, outputs: np.ndarray, expected: np.ndarray) -> None:
    differences = np.abs(outputs - expected)
    largest, moved = differences.max(), differences.sum(-1).mean() / 2
    # Not >: also where it is no number.
    if not (largest <= row.tolerance and moved <= _MOVED):
        raise RunError(
            f"The {row.name} file computes something else than the Keras model: a "
            f"probability differs by up to {largest:.2g}, allowed is {row.tolerance}; "
            f"{moved:.2g} of the probability is on other classes, allowed is {_MOVED}."
        )


def warn_of_disagreement(row: Format, agreement: float) -> None:
    """Warns where a file disagrees with Keras on more than one image in a hundred.

    Args:
        row: the file's format.
        agreement: share of images with Keras's class, in [0, 1].
    """
    if agreement < LOW_AGREEMENT:
        warnings.warn(
            f"{row.name} agrees with Keras on {agreement:.1%} of the images, less than "
            f"{LOW_AGREEMENT:.0%}. {row.remedy}".rstrip(),
            DistillationWarning,
            stacklevel=3,
        )


def size_of(path: pathlib.Path) -> int:
    """Bytes of a file, or of all files in a folder."""
    files = [path] if path.is_file() else [f for f in path.rglob("*") if f.is_file()]
    return sum(file.stat().st_size for file in files)
