"""What the teachers would cost on the device that gets the student."""

import contextlib
from collections.abc import Sequence
from typing import Any

import keras
import numpy as np

from cdfkd_tf.errors import reason
from cdfkd_tf.export.tflite import TfliteRunner, convert
from cdfkd_tf.networks.introspection import multiply_adds
from cdfkd_tf.teachers.teacher import Teacher


def teacher_costs(teachers: Sequence[Teacher]) -> list[dict[str, Any]]:
    """Each teacher as a float32 TFLite file in memory, measured.

    Teachers of equal layers and image size are measured once.

    Args:
        teachers: each at the size of image that it takes.

    Returns:
        Per teacher `multiply_adds`, `bytes`, `latency_ms` (median of one image, one
        thread); None where a teacher cannot be counted or converted.
    """
    known: dict[str, dict[str, Any]] = {}
    costs = []
    for teacher in teachers:
        kinds = [type(layer).__name__ for layer in teacher.model.layers]
        shapes = [tuple(weight.shape) for weight in teacher.model.weights]
        architecture = f"{teacher.image_shape} {kinds or id(teacher)} {shapes}"
        if architecture not in known:
            known[architecture] = _cost(teacher)
        costs.append(dict(known[architecture]))
    return costs


def _cost(teacher: Teacher) -> dict[str, Any]:
    cost: dict[str, Any] = dict.fromkeys(("multiply_adds", "bytes", "latency_ms"))
    # Layers of another package may not know their shapes.
    with contextlib.suppress(AttributeError, TypeError, ValueError):
        cost["multiply_adds"] = multiply_adds(teacher.model) or None
    try:
        image = keras.Input(teacher.image_shape, name="image")
        content = convert(keras.Model(image, teacher.model(image)), quantised=False)
        black = np.zeros((1, *teacher.image_shape), "float32")
        cost["latency_ms"] = TfliteRunner(content).latency(black)
        cost["bytes"] = len(content)
    except Exception as error:  # converters raise many kinds for what they lack
        print(f"{teacher.name} has no TFLite file to compare with: {reason(error)}")
    return cost
