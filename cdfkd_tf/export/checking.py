"""Does an exported file do what the Keras model does?"""

import dataclasses
import pathlib
from collections.abc import Iterable
from typing import Any

import keras
import numpy as np

from cdfkd_tf.errors import RunError
from cdfkd_tf.export.runners import SavedModelRunner, TfliteRunner, load_runner

LOW_AGREEMENT = 0.99  # below it, the export says so
# Largest difference of a probability; what differs more is broken, not rounded.
_TOLERANCE = {"saved_model": 1e-4, "tflite_float32": 1e-4, "tflite_float16": 0.05}
# Of eight-bit files: share of probability that sits elsewhere, mean over the images.
_MOVED = 0.5


@dataclasses.dataclass(frozen=True)
class Reference:
    """Images and what Keras says about them.

    Attributes:
        batches: images in [0, 1], `(B, height, width, channels)`.
        answers: `(n, C)`, Keras's probabilities for all of them.
        labels: `(n,)`, or None where they are unknown.
    """

    batches: list[np.ndarray]
    answers: np.ndarray
    labels: np.ndarray | None

    @classmethod
    def of(
        cls,
        predictor: keras.Model,
        batches: Iterable[tuple[np.ndarray, np.ndarray | None]],
    ) -> "Reference":
        """Asks `predictor` about every batch of images and labels."""
        pixels, labels = zip(*batches)
        answers = [predictor.predict_on_batch(batch) for batch in pixels]
        known = None if labels[0] is None else np.concatenate(labels)
        return cls(list(pixels), np.concatenate(answers), known)


def check(name: str, path: pathlib.Path, reference: Reference) -> dict[str, Any]:
    """Loads one exported file and compares it with Keras.

    Args:
        name: a key of `FILES`.
        path: the file, or the folder of a SavedModel.
        reference: what it should say.

    Returns:
        Values for results.json: `bytes`, `accuracy` (None without labels),
        `agreement` (share of images with Keras's class), `max_abs_difference` of a
        probability, `latency_ms` (median for one image), `threads` it was measured
        with, `operators` (None for a SavedModel).

    Raises:
        RunError: if the file cannot be loaded, or differs by more than its format's
            rounding explains.
    """
    try:
        run = load_runner(path)
        answers = np.concatenate([run(batch) for batch in reference.batches])
    except Exception as error:  # interpreters raise many kinds for a bad file
        raise RunError(f"The {name} file cannot be run: {error}") from error
    _refuse_broken(name, answers, reference.answers)
    first = reference.batches[0][:1]
    if isinstance(run, SavedModelRunner):
        _check_bytes_signature(run, first)
    elif name == "tflite_int8":
        _refuse_floats(run)
    classes, labels = answers.argmax(-1), reference.labels
    return {
        "bytes": size_of(path),
        "accuracy": None if labels is None else float(np.mean(classes == labels)),
        "agreement": float(np.mean(classes == reference.answers.argmax(-1))),
        "max_abs_difference": float(np.abs(answers - reference.answers).max()),
        "latency_ms": run.latency(first),
        "threads": run.threads,
        "operators": len(run.operators()) if isinstance(run, TfliteRunner) else None,
    }


def _refuse_broken(name: str, answers: np.ndarray, expected: np.ndarray) -> None:
    differences = np.abs(answers - expected)
    limit = _TOLERANCE.get(name)
    if limit is not None:
        measured, what = float(differences.max()), "a probability differs by up to"
    else:
        limit, what = _MOVED, "the share of probability given to other classes is"
        measured = float(differences.sum(-1).mean() / 2)
    if not measured <= limit:  # also where it is no number
        raise RunError(
            f"The {name} file answers otherwise than the Keras model: {what} "
            f"{measured:.2g}, allowed is {limit}."
        )


def _check_bytes_signature(run: SavedModelRunner, pixels: np.ndarray) -> None:
    grey = np.rint(pixels * 255).astype("uint8")
    difference = np.abs(run.from_bytes(grey) - run(grey / np.float32(255))).max()
    if not difference <= _TOLERANCE["saved_model"]:
        raise RunError(
            f"The SavedModel's serve_uint8 differs from serving_default by "
            f"{difference:.2g}."
        )


def _refuse_floats(run: TfliteRunner) -> None:
    floats = [
        t["name"] for t in run.tensors() if np.issubdtype(t["dtype"], np.floating)
    ]
    if floats:
        raise RunError(
            f"The int8 file computes with floats in {len(floats)} tensors: a device "
            "without floating point cannot run it."
        )


def size_of(path: pathlib.Path) -> int:
    """Bytes of a file, or of all files in a folder."""
    files = [path] if path.is_file() else [f for f in path.rglob("*") if f.is_file()]
    return sum(file.stat().st_size for file in files)
