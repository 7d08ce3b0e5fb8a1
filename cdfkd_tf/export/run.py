"""Export: each file is written aside, checked, then published under its name."""

import os
import pathlib
import shutil
import tempfile
from collections.abc import Callable, Sequence
from typing import Any

import keras
import numpy as np

import cdfkd_tf
from cdfkd_tf.errors import RequestError, RunError, lookup, one_line
from cdfkd_tf.export.calibration import calibration_images
from cdfkd_tf.export.finetuning import finetune_int8
from cdfkd_tf.export.format import FORMATS, Format
from cdfkd_tf.export.inference_graph import inference_graph
from cdfkd_tf.export.verify import Batches, verify, warn_of_disagreement
from cdfkd_tf.networks.introspection import multiply_adds

LICENCE = (
    "Made with cdfkd_tf (Apache-2.0). The weights were learned from the teachers: "
    "their licences, and those of the images they were trained on, decide what the "
    "weights may be used for."
)
_UNFINISHED = ".unfinished-"
_POOL, _CALIBRATION = 1024, 512  # images drawn, and chosen of them
_CALIBRATION_SEED = 2  # keeps the draw apart from a run's others


def export(
    predictor: keras.Model,
    formats: Sequence[str],
    directory: pathlib.Path,
    *,
    batches: Batches,
    calibration_pool: Callable[[int, int], np.ndarray],
    description: dict[str, Any],
    int8_finetune_steps: int = 0,
    seed: int = 0,
) -> list[dict[str, Any]]:
    """Writes `predictor` in each format and checks each file.

    Files get their names together, after all of them passed: an export that fails, or
    is killed, leaves the files of an earlier one. Nothing else in `directory` is
    touched.

    Args:
        predictor: image in [0, 1] to probabilities, from `build_predictor`.
        formats: keys of `FORMATS`.
        directory: created if missing.
        batches: what the files are compared with Keras on: pairs of images
            `(B, height, width, channels)` in [0, 1] and labels `(B,)` or None. Gone
            through once for Keras and once per format, in the same order.
        calibration_pool: `(count, seed)` to at least `count` images in [0, 1], or as
            many as there are; called once, for a format with calibration.
        description: from `describe`.
        int8_finetune_steps: updates under simulated eight-bit arithmetic; 0: none.
        seed: of the choice of calibration images and of fine-tuning.

    Returns:
        One entry of results.json per format.

    Raises:
        RequestError: unknown format, a package that it needs is missing, or no images
            to compare on.
        RunError: if a file cannot be written or is not what Keras computes.
    """
    rows = [lookup(FORMATS, name, "export format") for name in dict.fromkeys(formats)]
    for row in rows:
        row.check_installed()
    if not rows:
        return []
    expected = [predictor.predict_on_batch(images) for images, _ in batches]
    if not expected:
        raise RequestError("There are no images to compare exported files on.")
    expected = np.concatenate(expected)
    model = inference_graph(predictor)
    counts = {"parameters": model.count_params(), "multiply_adds": multiply_adds(model)}

    sources = {False: (model, None)}  # by whether the format is calibrated
    if any(row.calibrated for row in rows):
        pool = np.clip(calibration_pool(_POOL, _CALIBRATION_SEED), 0, 1)
        chosen = calibration_images(pool, predictor, _CALIBRATION, seed)
        sources[True] = inference_graph(predictor), chosen
        if int8_finetune_steps:
            finetune_int8(*sources[True], pool, steps=int8_finetune_steps, seed=seed)
    directory.mkdir(parents=True, exist_ok=True)
    for left in directory.glob(f"{_UNFINISHED}*"):  # of a killed process
        shutil.rmtree(left, ignore_errors=True)
    entries = []
    with tempfile.TemporaryDirectory(dir=directory, prefix=_UNFINISHED) as scratch:
        for row in rows:
            written = pathlib.Path(scratch, row.file)
            try:
                row.write(*sources[row.calibrated], written)
                row.attach(written, _completed(description, row))
                figures = verify(row, written, batches, expected)
            except Exception as error:
                raise _explained(row, error) from error
            file = str(directory / row.file)
            entries.append({"format": row.name, "file": file, **figures, **counts})
            warn_of_disagreement(row, figures["agreement"])
        _publish([row.file for row in rows], pathlib.Path(scratch), directory)
    return entries


def describe(
    *,
    dataset: str,
    method: str,
    student: str,
    class_names: Sequence[str],
    image_shape: Sequence[int],
    shorter_side: int = 0,
) -> dict[str, Any]:
    """What the exported files say about themselves; the format adds its own.

    Args:
        dataset: whose classes are known.
        method: how the student was taught.
        student: its backbone.
        class_names: one per class, in the order of the outputs.
        image_shape: `(height, width, channels)` of the input.
        shorter_side: images are scaled to it and cropped in the centre, in pixels; 0:
            scaled to `image_shape` as they are.
    """
    height, width, channels = image_shape
    return {
        "made_by": "cdfkd_tf",
        "version": cdfkd_tf.__version__,
        "task": "image classification",
        "dataset": dataset,
        "method": method,
        "student": student,
        "classes": list(class_names),
        "input": {
            "height": height,
            "width": width,
            "channels": channels,
            "channel_order": "RGB" if channels == 3 else "grey",
            "shorter_side": shorter_side,
        },
        "output": "one probability per class",
        "licence": LICENCE,
    }


def _completed(description: dict[str, Any], row: Format) -> dict[str, Any]:
    values = {"type": row.input_type, "range": list(row.input_range)}
    image = {**description["input"], **values}
    return {**description, "format": row.name, "input": image}


def _explained(row: Format, error: Exception) -> Exception:
    if hasattr(error, "exit_code"):
        return error
    why = f"{type(error).__name__}: {one_line(error)}"
    return RunError(f"Cannot export {row.name}: {why}")


def _publish(
    files: Sequence[str], scratch: pathlib.Path, directory: pathlib.Path
) -> None:
    """Moves checked files to their place; what stood there goes with `scratch`."""
    for file in files:
        final = directory / file
        if final.is_dir():  # a folder has to be empty
            os.replace(final, scratch / f"earlier {file}")
        os.replace(scratch / file, final)
