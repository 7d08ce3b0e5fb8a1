"""The predictor as files for servers and devices, each checked after it is written."""

import os
import pathlib
import shutil
import tempfile
import time
from collections.abc import Iterable
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from cdfkd_tf.errors import RunError
from cdfkd_tf.quiet import quiet_stderr

FILES = {
    "saved_model": "saved_model",
    "tflite_float32": "student_float32.tflite",
    "tflite_int8": "student_int8.tflite",
}
# A file that differs more from Keras is broken, not rounded.
_FLOAT_TOLERANCE = 1e-3
_LATENCY_RUNS = 50


def export_predictor(
    predictor: keras.Model,
    formats: tuple[str, ...],
    directory: pathlib.Path,
    calibration: np.ndarray,
) -> dict[str, pathlib.Path]:
    """Writes `predictor` in each format.

    A file gets its final name only when it is complete.

    Args:
        predictor: image in [0, 1] to probabilities.
        formats: keys of `FILES`.
        directory: created when missing.
        calibration: images in [0, 1], `(n, height, width, channels)`, that fix the
            value ranges of the int8 file.

    Returns:
        Format -> path of the file, or of the folder for a SavedModel.
    """
    directory.mkdir(parents=True, exist_ok=True)
    written = {}
    with tempfile.TemporaryDirectory(dir=directory) as scratch:
        source = pathlib.Path(scratch) / "source"
        _write_saved_model(predictor, source)
        for name in formats:
            temporary, final = pathlib.Path(scratch) / name, directory / FILES[name]
            if name == "saved_model":
                shutil.copytree(source, temporary)
                shutil.rmtree(final, ignore_errors=True)
            else:
                is_int8 = name == "tflite_int8"
                temporary.write_bytes(
                    _convert(source, calibration if is_int8 else None)
                )
            os.replace(temporary, final)
            written[name] = final
    return written


def check_export(
    name: str,
    path: pathlib.Path,
    predictor: keras.Model,
    batches: Iterable[tuple[np.ndarray, np.ndarray | None]],
) -> dict[str, Any]:
    """Loads one exported file again and compares it with Keras.

    Args:
        name: a key of `FILES`.
        path: what `export_predictor` wrote.
        predictor: the Keras model it was made from.
        batches: images in [0, 1] and their labels, or None if those are unknown; the
            accuracy is then None.

    Returns:
        The entry of results.json: bytes, accuracy, agreement (share of images with
        Keras's class), largest difference of a probability, and median milliseconds
        for one image on one thread.

    Raises:
        RunError: if a float file differs from Keras by more than rounding.
    """
    run = _saved_model_runner(path) if name == "saved_model" else _litert_runner(path)
    rows = [
        (predictor.predict_on_batch(pixels), run(pixels), labels)
        for pixels, labels in batches
    ]
    expected, answers = (np.concatenate(part) for part in list(zip(*rows))[:2])
    labels = None if rows[0][2] is None else np.concatenate([row[2] for row in rows])
    first_image = next(iter(batches))[0][:1]
    difference = float(np.abs(answers - expected).max())
    if name != "tflite_int8" and not difference <= _FLOAT_TOLERANCE:
        raise RunError(
            f"{path} answers otherwise than the Keras model: probabilities differ by "
            f"{difference:.2g}, allowed is {_FLOAT_TOLERANCE}."
        )
    classes = answers.argmax(-1)
    return {
        "format": name,
        "file": str(path),
        "bytes": _bytes(path),
        "accuracy": None if labels is None else float(np.mean(classes == labels)),
        "agreement": float(np.mean(classes == expected.argmax(-1))),
        "max_abs_difference": difference,
        "latency_ms": _latency(run, first_image),
    }


def calibration_pixels(images: np.ndarray) -> np.ndarray:
    """Invented images for the int8 calibration, and one ramp from black to white.

    The input's scale comes from these images: invented ones that never reach white
    would let a real white saturate.

    Args:
        images: `(n, height, width, channels)`, in about [0, 1]; clipped.
    """
    images = np.clip(images, 0, 1).astype("float32")
    ramp = np.linspace(0, 1, images[0].size, dtype="float32")
    return np.concatenate([images, ramp.reshape(1, *images.shape[1:])])


def _write_saved_model(predictor: keras.Model, path: pathlib.Path) -> None:
    shape = (None, *predictor.input_shape[1:])
    archive = keras.export.ExportArchive()
    archive.track(predictor)
    archive.add_endpoint(
        "serving_default",
        lambda image: {"probabilities": predictor(image, training=False)},
        input_signature=[tf.TensorSpec(shape, tf.float32, name="image")],
    )
    archive.write_out(str(path), verbose=False)


def _convert(saved_model: pathlib.Path, calibration: np.ndarray | None) -> bytes:
    converter = tf.lite.TFLiteConverter.from_saved_model(str(saved_model))
    if calibration is not None:
        converter.optimizations = [tf.lite.Optimize.DEFAULT]
        converter.representative_dataset = lambda: (
            [image[None]] for image in calibration
        )
        converter.target_spec.supported_ops = [tf.lite.OpsSet.TFLITE_BUILTINS_INT8]
        converter.inference_input_type = tf.uint8
        converter.inference_output_type = tf.uint8
    with quiet_stderr():
        return converter.convert()


def _saved_model_runner(path: pathlib.Path):
    loaded = tf.saved_model.load(str(path))
    serve = loaded.signatures["serving_default"]

    def run(pixels):
        return serve(image=tf.constant(pixels))["probabilities"].numpy()

    run.keep_alive = loaded  # a signature dies with its model
    return run


def _litert_runner(path: pathlib.Path):
    from ai_edge_litert.interpreter import Interpreter

    with quiet_stderr():
        interpreter = Interpreter(str(path), num_threads=1)
        interpreter.allocate_tensors()
    (entry,) = interpreter.get_input_details()
    (leave,) = interpreter.get_output_details()

    def run(pixels):
        if tuple(interpreter.get_input_details()[0]["shape"]) != pixels.shape:
            interpreter.resize_tensor_input(entry["index"], pixels.shape)
        interpreter.allocate_tensors()
        interpreter.set_tensor(entry["index"], _quantise(pixels, entry))
        interpreter.invoke()
        return _dequantise(interpreter.get_tensor(leave["index"]), leave)

    return run


def _quantise(values: np.ndarray, details: dict) -> np.ndarray:
    scale, zero = details["quantization"]
    if not scale:
        return values.astype(details["dtype"])
    limits = np.iinfo(details["dtype"])
    steps = np.rint(values / scale) + zero
    return np.clip(steps, limits.min, limits.max).astype(details["dtype"])


def _dequantise(values: np.ndarray, details: dict) -> np.ndarray:
    scale, zero = details["quantization"]
    return (values.astype("float32") - zero) * scale if scale else values


def _latency(run, pixels: np.ndarray) -> float:
    """Median milliseconds of one warm call with one image."""
    seconds = []
    for _ in range(_LATENCY_RUNS):
        start = time.perf_counter()
        run(pixels)
        seconds.append(time.perf_counter() - start)
    return round(1000 * float(np.median(seconds)), 4)


def _bytes(path: pathlib.Path) -> int:
    files = [path] if path.is_file() else [f for f in path.rglob("*") if f.is_file()]
    return sum(file.stat().st_size for file in files)
