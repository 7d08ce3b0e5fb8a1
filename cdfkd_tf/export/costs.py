"""What the teachers would cost on the device that gets the student."""

import contextlib
import pathlib
import tempfile
from collections.abc import Sequence
from typing import Any

import keras

from cdfkd_tf.export.checking import size_of
from cdfkd_tf.export.formats import tflite, write_saved_model
from cdfkd_tf.export.runners import TfliteRunner
from cdfkd_tf.networks.introspection import multiply_adds
from cdfkd_tf.teachers.teacher import Teacher


def teacher_costs(
    teachers: Sequence[Teacher],
) -> list[dict[str, Any]]:
    """Each teacher as a float32 TFLite file, measured and forgotten.

    Teachers of equal layers are measured once.

    Args:
        teachers: each at the size of image that it takes.

    Returns:
        Per teacher `multiply_adds`, `bytes`, `latency_ms` (median of one image, one
        thread); None where a teacher cannot be counted or converted.
    """
    known: dict[str, dict[str, Any]] = {}
    costs = []
    for teacher in teachers:
        key = _architecture(teacher.model)
        if key not in known:
            known[key] = _cost(teacher)
        costs.append(dict(known[key]))
    return costs


def _architecture(teacher: keras.Model) -> str:
    kinds = [type(layer).__name__ for layer in teacher.layers]
    shapes = [tuple(weight.shape) for weight in teacher.weights]
    return f"{kinds} {shapes}"


def _cost(teacher: Teacher) -> dict[str, Any]:
    cost: dict[str, Any] = dict.fromkeys(("multiply_adds", "bytes", "latency_ms"))
    shape = teacher.image_shape
    # A foreign layer may not know its shapes.
    with contextlib.suppress(AttributeError, TypeError, ValueError):
        cost["multiply_adds"] = multiply_adds(teacher.model) or None
    try:
        image = keras.Input(shape, name="image")
        model = keras.Model(image, teacher.model(image))
        with tempfile.TemporaryDirectory() as scratch:
            source = pathlib.Path(scratch) / "source"
            write_saved_model(model, source)
            file = pathlib.Path(scratch) / "teacher.tflite"
            file.write_bytes(tflite(source, "tflite_float32"))
            cost["bytes"] = size_of(file)
            cost["latency_ms"] = TfliteRunner(file).latency(_black(shape))
    except Exception as error:  # converters raise many kinds for what they lack
        reason = " ".join(str(error).split())[:150]
        print(f"{teacher.name} has no TFLite file to compare with: {reason}")
    return cost


def _black(image_shape):
    return keras.ops.convert_to_numpy(keras.ops.zeros((1, *image_shape)))
