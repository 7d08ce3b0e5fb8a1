"""Exported files loaded again, by what a device or a server would load them with."""

import pathlib
import time
from typing import Any

import numpy as np

from cdfkd_tf.networks.saved_model_check import check_saved_model
from cdfkd_tf.runtime.silence_stderr import quiet_stderr

_WARM_UP, _RUNS = 10, 100


class TfliteRunner:
    """A TFLite file in the LiteRT interpreter, on one thread. Needs no TensorFlow.

    Args:
        source: the file, or its content.

    Attributes:
        threads: that an answer takes.

    Raises:
        ValueError, RuntimeError: if the interpreter cannot read it.
    """

    threads = 1

    def __init__(self, source: pathlib.Path | bytes):
        from ai_edge_litert.interpreter import Interpreter

        given = (
            {"model_content": source}
            if isinstance(source, bytes)
            else {"model_path": str(source)}
        )
        with quiet_stderr():
            self._interpreter = Interpreter(num_threads=1, **given)
            self._interpreter.allocate_tensors()
        (self._input,) = self._interpreter.get_input_details()
        (self._output,) = self._interpreter.get_output_details()
        self.image_shape = tuple(int(n) for n in self._input["shape"][1:])

    def __call__(self, pixels: np.ndarray) -> np.ndarray:
        """Probabilities `(B, C)` of images `(B, height, width, channels)` in 0..1."""
        if tuple(self._input["shape"]) != pixels.shape:
            self._interpreter.resize_tensor_input(self._input["index"], pixels.shape)
            self._interpreter.allocate_tensors()
            (self._input,) = self._interpreter.get_input_details()
        self._interpreter.set_tensor(
            self._input["index"], _quantise(pixels, self._input)
        )
        self._interpreter.invoke()
        answer = self._interpreter.get_tensor(self._output["index"])
        return _dequantise(answer, self._output)

    def latency(self, pixels: np.ndarray) -> float:
        """Median milliseconds of one warm answer to one image `(1, ...)`."""
        self(pixels)  # sets the image and, if need be, the size
        return _median_milliseconds(self._interpreter.invoke)

    def tensors(self) -> list[dict[str, Any]]:
        """The interpreter's description of every tensor."""
        return self._interpreter.get_tensor_details()

    def operators(self) -> list[str]:
        """Names of the operations in the file."""
        details = self._interpreter._get_ops_details()
        return [op["op_name"] for op in details if op["op_name"] != "DELEGATE"]


class SavedModelRunner:
    """A SavedModel's `serving_default` in TensorFlow.

    Args:
        path: its folder.
    """

    def __init__(self, path: pathlib.Path):
        import tensorflow as tf

        check_saved_model(path)
        self._loaded = tf.saved_model.load(str(path))  # signatures die with it
        self._signatures, self._constant = self._loaded.signatures, tf.constant
        self.threads = tf.config.threading.get_intra_op_parallelism_threads() or None
        shape = self._signatures["serving_default"].structured_input_signature[1]
        self.image_shape = tuple(shape["image"].shape[1:])

    def __call__(self, pixels: np.ndarray) -> np.ndarray:
        """Probabilities `(B, C)` of images `(B, height, width, channels)` in 0..1."""
        return self._serve("serving_default", pixels.astype("float32"))

    def from_bytes(self, pixels: np.ndarray) -> np.ndarray:
        """The same for uint8 images, through the signature `serve_uint8`."""
        return self._serve("serve_uint8", pixels)

    def latency(self, pixels: np.ndarray) -> float:
        """Median milliseconds of one warm answer to one image `(1, ...)`."""
        return _median_milliseconds(lambda: self(pixels))

    def _serve(self, signature, pixels):
        answer = self._signatures[signature](image=self._constant(pixels))
        return answer["probabilities"].numpy()


def load_runner(path: pathlib.Path) -> TfliteRunner | SavedModelRunner:
    """The runner for an exported file, or for the folder of a SavedModel."""
    return SavedModelRunner(path) if path.is_dir() else TfliteRunner(path)


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


def _median_milliseconds(call) -> float:
    for _ in range(_WARM_UP):
        call()
    seconds = []
    for _ in range(_RUNS):
        start = time.perf_counter()
        call()
        seconds.append(time.perf_counter() - start)
    return round(1000 * float(np.median(seconds)), 4)
