"""Classifiers that only answer: Python functions, ONNX and TFLite files.

No gradient passes and no layer is seen, so that a student learns from such teachers on
images that do not come from a generator.
"""

import importlib
import pathlib
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import tensorflow as tf
from keras import KerasTensor

from cdfkd_tf.errors import RequestError, RunError, reason
from cdfkd_tf.imported.onnx_files import num_images

Answer = Callable[[np.ndarray], Any]


class BlackBoxClassifier:
    """A classifier of which only the answers are known.

    Call arguments:
        images: `(B, height, width, channels)`. Returns what `answer` does, `(B, C)`.

    Args:
        answer: float32 images `(B, height, width, channels)` to rows `(B, C)`, logits
            or probabilities.
        name: what messages call it.
        input_shape: `(None, height, width, channels)`, None where any will do; None:
            images as they come.
        batch_size: of every call; None: any.
        told_values: the pixel values that it expects, as `--teacher_input` names them,
            and how that is known; None: it is not.

    Raises:
        RunError: when called, if `answer` raises or returns another shape.
    """

    def __init__(
        self,
        answer: Answer,
        name: str,
        input_shape: Sequence[int | None] | None = None,
        batch_size: int | None = None,
        told_values: tuple[str, str] | None = None,
    ):
        self.name, self.answer, self.batch_size = name, answer, batch_size
        self.told_values = told_values
        if input_shape is not None:
            self.input_shape = tuple(input_shape)
        self.layers, self.weights, self.trainable = [], [], False

    def __call__(self, images: KerasTensor, training: bool = False) -> KerasTensor:
        """See the class."""
        rows = tf.numpy_function(self._rows, [tf.cast(images, "float32")], "float32")
        rows.set_shape((None, None))
        return rows

    def _rows(self, images: np.ndarray) -> np.ndarray:
        step = self.batch_size or max(1, len(images))
        parts = []
        for start in range(0, len(images), step):
            part = images[start : start + step]
            # Of a fixed batch the last one is filled up with its own last image.
            filled = np.concatenate([part, np.repeat(part[-1:], step - len(part), 0)])
            rows = self._checked(filled if self.batch_size else part)
            parts.append(rows[: len(part)])
        return np.concatenate(parts)

    def _checked(self, images: np.ndarray) -> np.ndarray:
        try:
            rows = np.asarray(self.answer(images))
        except Exception as error:  # anybody's function
            raise RunError(
                f"Teacher {self.name} failed on {len(images)} images "
                f"{images.shape[1:]}: {reason(error)}"
            ) from error
        if rows.ndim > 2 and all(side == 1 for side in rows.shape[1:-1]):
            rows = rows.reshape(len(rows), -1)
        if rows.ndim != 2 or len(rows) != len(images):
            raise RunError(
                f"Teacher {self.name} returned {rows.shape} for {len(images)} images; "
                "expected one row of classes per image."
            )
        if not np.isfinite(rows).all():
            raise RunError(
                f"Teacher {self.name} returned NaN or infinite values for images "
                f"{images.shape}."
            )
        return rows.astype("float32")


def read_onnx(path: pathlib.Path) -> BlackBoxClassifier:
    """An ONNX file as a black box, run by ONNX Runtime.

    Args:
        path: takes one batch of images, channels last or first, and answers rows of
            classes.

    Raises:
        RequestError: onnxruntime is missing, or the file takes or answers something
            else.
    """
    runtime = _library("onnxruntime", "ONNX", path)
    session = runtime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    image = _only([i for i in session.get_inputs()], path, "takes")
    sides = [side if isinstance(side, int) else None for side in image.shape]
    whole = "uint8" in image.type
    number = np.uint8 if whole else np.float16 if "float16" in image.type else None
    number = number or np.float32

    def answer(images):
        return session.run(None, {image.name: images.astype(number)})

    told = ("0..255", f"read from its input of {image.type}") if whole else None
    return _box(answer, path, sides, told)


def read_tflite(path: pathlib.Path) -> BlackBoxClassifier:
    """A TFLite file as a black box, run by LiteRT.

    Args:
        path: takes one batch of images, channels last, and answers rows of classes; as
            floating-point or quantised numbers.

    Raises:
        RequestError: the file takes or answers something else.
    """
    from ai_edge_litert.interpreter import Interpreter

    interpreter = Interpreter(model_path=str(path), num_threads=1)
    taken = _only(interpreter.get_input_details(), path, "takes")
    given = interpreter.get_output_details()
    sides = [int(side) for side in taken["shape_signature"]]
    sides = [None if side < 0 else side for side in sides]
    place = taken["index"]
    interpreter.allocate_tensors()

    def answer(images):
        if tuple(interpreter.get_input_details()[0]["shape"]) != images.shape:
            interpreter.resize_tensor_input(place, images.shape, strict=True)
            interpreter.allocate_tensors()
        interpreter.set_tensor(place, _quantised(images, taken))
        interpreter.invoke()
        return [
            _dequantised(interpreter.get_tensor(one["index"]), one) for one in given
        ]

    return _box(answer, path, sides, _quantised_range(taken))


def _quantised_range(detail: dict[str, Any]) -> tuple[str, str] | None:
    """The range that a quantised input spans, and the words for it; None: no usual."""
    if not np.issubdtype(detail["dtype"], np.integer) or not detail["quantization"][0]:
        return None
    scale, zero = detail["quantization"]
    limits = np.iinfo(detail["dtype"])
    low, high = ((value - zero) * scale for value in (limits.min, limits.max))
    for name, ends in (("0..1", (0, 1)), ("-1..1", (-1, 1)), ("0..255", (0, 255))):
        if np.allclose((low, high), ends, atol=0.02 * (ends[1] - ends[0])):
            return name, "read from how its input is quantised"
    return None


def _box(
    answer: Answer,
    path: pathlib.Path,
    sides: list,
    told_values: tuple[str, str] | None,
) -> BlackBoxClassifier:
    """Channels last, one output, fixed batches: what a file wants otherwise."""
    if len(sides) not in (3, 4):
        raise RequestError(
            f"Teacher {path} takes {tuple(sides)}; expected one batch of images (B, "
            "height, width, channels) or (B, channels, height, width)."
        )
    batch, first, shape = num_images(sides)

    def ask(images):
        outputs = answer(images.transpose(0, 3, 1, 2) if first else images)
        rows = [output for output in outputs if np.ndim(output) >= 2]
        return rows[0] if rows else outputs[0]

    return BlackBoxClassifier(ask, str(path), (None, *shape), batch, told_values)


def _only(inputs: Sequence[Any], path: pathlib.Path, verb: str) -> Any:
    if len(inputs) != 1:
        raise RequestError(
            f"Teacher {path} {verb} {len(inputs)} tensors; expected one batch of "
            "images."
        )
    return inputs[0]


def _quantised(images: np.ndarray, detail: dict[str, Any]) -> np.ndarray:
    if not np.issubdtype(detail["dtype"], np.integer):
        return images.astype(detail["dtype"])
    scale, zero = detail["quantization"]
    images = images / scale + zero if scale else images
    limits = np.iinfo(detail["dtype"])
    return np.clip(np.rint(images), limits.min, limits.max).astype(detail["dtype"])


def _dequantised(values: np.ndarray, detail: dict[str, Any]) -> np.ndarray:
    scale, zero = detail["quantization"]
    if not np.issubdtype(detail["dtype"], np.integer) or not scale:
        return values
    return (values.astype("float32") - zero) * scale


def _library(name: str, kind: str, path: pathlib.Path) -> Any:
    try:
        return importlib.import_module(name)
    except ImportError:
        raise RequestError(
            f"Teacher {path} is an {kind} file, which {name} runs: pip install "
            f"'cdfkd_tf[onnx]'."
        ) from None
