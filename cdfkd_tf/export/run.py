"""Export: each file is written aside, checked, then published under its name."""

import math
import os
import pathlib
import re
import shutil
import tempfile
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import keras
import numpy as np

import cdfkd_tf
from cdfkd_tf.data.specs import DatasetSpec
from cdfkd_tf.errors import RequestError, RunError, lookup, reason
from cdfkd_tf.export.calibration import calibration_images
from cdfkd_tf.export.finetuning import finetune_int8
from cdfkd_tf.export.format import FORMATS, Format
from cdfkd_tf.export.inference_graph import inference_graph
from cdfkd_tf.export.runner import Runner
from cdfkd_tf.export.saved_model import description_of
from cdfkd_tf.export.verify import Batches, verify, warn_of_floats
from cdfkd_tf.networks.introspection import multiply_adds
from cdfkd_tf.runtime.keras_internals import is_graph, leaf_layers

LICENCE = (
    "Made with cdfkd_tf (Apache-2.0). The weights were learned from the teachers: "
    "their licences, and those of the images they were trained on, decide what the "
    "weights may be used for."
)
_US = "cdfkd_tf"
_UNFINISHED = ".unfinished-"
_POOL, _CALIBRATION = 1024, 512  # images drawn, and chosen of them; fewer large ones:
_POOL_VALUES, _FEWEST = 2**24, 64  # as many numbers in all, but at least 64 images
_ROUGH, _ROUGH_TOLERANCE = {"float16", "bfloat16"}, 0.05  # of a predictor's layers
_LONGEST_CAUSE = 1000  # characters; of whole sentences
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
            `(B, height, width, channels)` in [0, 1] and labels `(B,)` or None; gone
            through once.
        calibration_pool: `(count, seed)` to at least `count` images in [0, 1], or as
            many as there are; called once, for a format with calibration.
        description: from `describe`.
        int8_finetune_steps: updates under simulated eight-bit arithmetic; 0: none.
        seed: of the choice of calibration images and of fine-tuning.

    Returns:
        One entry of results.json per format.

    Raises:
        RequestError: unknown format, a package that it needs is missing, a folder of
            somebody else in the place of a file, or no images to compare on.
        RunError: if a file cannot be written or is not what Keras computes.
    """
    rows = _installed(formats)
    if not rows:
        return []
    for final in [directory / row.file for row in rows]:
        made_by = description_of(final).get("made_by") if final.is_dir() else _US
        if made_by != _US:
            raise RequestError(
                f"An export would replace {final}, a folder that none has written. "
                "Move it, or export into another folder."
            )
    model = inference_graph(predictor)
    counts = {"parameters": model.count_params(), "multiply_adds": multiply_adds(model)}
    sources = {False: (model, None)}  # by whether the format is calibrated
    if any(row.calibrated for row in rows):
        count = min(
            _POOL, max(_FEWEST, _POOL_VALUES // math.prod(model.input_shape[1:]))
        )
        pool = np.clip(calibration_pool(count, _CALIBRATION_SEED), 0, 1)
        chosen = calibration_images(pool, predictor, _CALIBRATION, seed)
        sources[True] = inference_graph(predictor), chosen
        if int8_finetune_steps:
            first, best = finetune_int8(
                *sources[True], pool, steps=int8_finetune_steps, seed=seed
            )
            print(
                f"int8 fine-tuning: divergence from float32 on held-out images "
                f"{first:.4f} before, {best:.4f} after."
                + ("" if best < first else " No gain: the weights stay.")
            )
    directory.mkdir(parents=True, exist_ok=True)
    for left in directory.glob(f"{_UNFINISHED}*"):  # of a killed process
        shutil.rmtree(left, ignore_errors=True)
    with tempfile.TemporaryDirectory(dir=directory, prefix=_UNFINISHED) as folder:
        scratch = pathlib.Path(folder)
        for row in rows:
            values = {"type": row.input_type, "range": list(row.input_range)}
            image = {**description["input"], **values}
            about = {**description, "format": row.name, "input": image}
            try:
                row.write(*sources[row.calibrated], about, scratch / row.file)
            except Exception as error:  # converters raise many kinds
                raise RunError(f"Cannot export {row.name}: {_cause(error)}") from error
        rough = {layer.compute_dtype for layer in leaf_layers(predictor)} & _ROUGH
        slack = _ROUGH_TOLERANCE if rough else 0.0
        figures = verify(rows, scratch, predictor.predict_on_batch, batches, slack)
        for row in rows:
            final = directory / row.file
            if final.is_dir():  # a folder has to be empty; it goes with `scratch`
                earlier = final.rename(scratch / f"earlier {row.file}")
                for other in earlier.iterdir():  # which somebody has put there
                    if not (scratch / row.file / other.name).exists():
                        other.rename(scratch / row.file / other.name)
            os.replace(scratch / row.file, final)
    return [
        {"format": row.name, "file": str(directory / row.file), **measured, **counts}
        for row, measured in zip(rows, figures)
    ]


def check_formats(
    predictor: keras.Model, formats: Sequence[str], int8_finetune_steps: int = 0
) -> None:
    """Writes formats once, and runs the files once, to see that it can be done.

    Into a temporary folder, which is removed. Weights count for nothing: to be called
    with an untrained network, before it is trained.

    Args:
        predictor: see `export`.
        formats: likewise.
        int8_finetune_steps: likewise; a single one is tried.

    Raises:
        RequestError: naming the format, and the layer or operation that it lacks.
    """
    rows = _installed(formats)
    if not rows:
        return
    try:
        model = inference_graph(predictor)
    except Exception as error:
        raise RequestError(
            f"The student cannot be exported: {_cause(error)} Leave --export_formats "
            "empty, or choose another --student."
        ) from error
    # Of the formats of one runtime, the last one asks most of its converter.
    hardest = {row.load: row for row in FORMATS.values() if row in rows}
    with tempfile.TemporaryDirectory() as folder:
        for row in hardest.values():
            try:
                warn_of_floats(row, _tried(row, model, folder))
            except Exception as error:
                others = [r for r in rows if r.load == row.load and r != row]
                names = [r.name for r in others if _fails(r, model, folder)]
                names = ", ".join([*names, row.name])
                raise RequestError(
                    f"The student cannot be exported as {names}: {_cause(error)}"
                    f"{_culprit(row, model, folder)} Leave {names} out of "
                    "--export_formats, or choose another --student."
                ) from error
    if int8_finetune_steps and any(row.calibrated for row in rows):
        images = _noise(model, 4)
        try:
            finetune_int8(model, images, images, steps=1, seed=0)
        except Exception as error:
            raise RequestError(
                f"The student cannot be fine-tuned for int8: {_cause(error)} Use "
                "--int8_finetune_steps=0, or choose another --student."
            ) from error


def _installed(formats: Sequence[str]) -> list[Format]:
    rows = [lookup(FORMATS, name, "export format") for name in dict.fromkeys(formats)]
    for row in rows:
        row.check_installed()
    return rows


def _tried(row: Format, model: keras.Model, folder: str) -> Runner:
    """The file of `model`, which need be no whole network, after one call."""
    path = pathlib.Path(tempfile.mkdtemp(dir=folder), row.file)
    inputs = _noise(model, 2)
    row.write(model, inputs if row.calibrated else None, {"classes": ()}, path)
    run = row.load(path)
    run(inputs)
    return run


def _noise(model: keras.Model, count: int) -> np.ndarray:
    rng = np.random.default_rng(0)
    return rng.uniform(size=(count, *model.input_shape[1:])).astype("float32")


def _culprit(row: Format, model: keras.Model, folder: str) -> str:
    """Names the first layer or operation that cannot be written alone."""
    seen = set()
    for part in _operations(model):
        kind = f"{type(part)} {getattr(part, 'activation', '')}"
        if kind in seen or not isinstance(part.input, keras.KerasTensor):
            continue
        seen.add(kind)
        alone = keras.Input(part.input.shape[1:])
        if _fails(row, keras.Model(alone, part(alone)), folder):
            return f" It fails at {part.name} ({type(part).__name__})."
    return ""


def _fails(row: Format, model: keras.Model, folder: str) -> bool:
    try:
        _tried(row, model, folder)
    except Exception:
        return True
    return False


def _operations(model: keras.Model) -> Iterator[keras.Operation]:
    for part in model.operations:
        yield from _operations(part) if is_graph(part) else [part]


def _cause(error: Exception) -> str:
    """What an error says, not cut off; of a converter's pages, what it lacks."""
    lacks = sorted(set(re.findall(r"'tf\.(\w+)' op is neither", str(error))))
    if lacks:
        return f"TFLite has no operation {', '.join(lacks)}."
    kind = "" if hasattr(error, "exit_code") else f"{type(error).__name__}: "
    return kind + reason(error, _LONGEST_CAUSE)


def describe(
    spec: DatasetSpec, class_names: Sequence[str], *, method: str, student: str
) -> dict[str, Any]:
    """What the exported files say about themselves; the format adds its own.

    Args:
        spec: of the images.
        class_names: one per class, in the order of the outputs.
        method: how the student was taught.
        student: its backbone.

    Returns:
        Field -> value, as JSON holds them; sides of the images in pixels.
    """
    height, width, channels = spec.image_shape
    return {
        "made_by": _US,
        "version": cdfkd_tf.__version__,
        "task": "image classification",
        "dataset": spec.name,
        "method": method,
        "student": student,
        "classes": list(class_names),
        "input": {
            "height": height,
            "width": width,
            "channels": channels,
            "channel_order": "RGB" if channels == 3 else "grey",
            "shorter_side": spec.shorter_side,
        },
        "output": "one probability per class",
        "licence": LICENCE,
    }
