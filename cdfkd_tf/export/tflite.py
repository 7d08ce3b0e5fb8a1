"""The export formats of devices: TFLite files of four arithmetics."""

import json
import pathlib
import zipfile
from collections.abc import Callable
from typing import Any

import numpy as np

from cdfkd_tf.errors import RunError
from cdfkd_tf.export.runner import Runner
from cdfkd_tf.runtime.silence_stderr import quiet_stderr

_DESCRIPTION, _LABELS = "metadata.json", "labels.txt"


def write_tflite(
    model: Any, path: pathlib.Path, calibration: np.ndarray | None = None, **how: bool
) -> None:
    """Writes one TFLite file, for any batch size; arguments as of `convert`."""
    path.write_bytes(convert(model, calibration, **how))


def convert(
    model: Any,
    calibration: np.ndarray | None = None,
    *,
    quantised: bool = True,
    half: bool = False,
) -> bytes:
    """The content of a TFLite file.

    Args:
        model: Keras model, images in [0, 1] to probabilities.
        calibration: images in [0, 1], `(n, height, width, channels)`, that fix value
            ranges: the file computes with integers throughout and takes uint8.
        quantised: whether weights are stored in fewer than 32 bits.
        half: in 16 bits instead of eight.
    """
    import tensorflow as tf

    from cdfkd_tf.export.inference_graph import serving_function
    from cdfkd_tf.export.packing import pack
    from cdfkd_tf.runtime.keras_internals import use_earlier_quantizer

    module = tf.Module()
    module.weights = [variable.value for variable in model.variables]
    serve = serving_function(model).get_concrete_function()
    converter = tf.lite.TFLiteConverter.from_concrete_functions([serve], module)
    if quantised:
        converter.optimizations = [tf.lite.Optimize.DEFAULT]
    if half:
        converter.target_spec.supported_types = [tf.float16]
    if calibration is not None:
        converter.representative_dataset = lambda: ([x[None]] for x in calibration)
        converter.target_spec.supported_ops = [tf.lite.OpsSet.TFLITE_BUILTINS_INT8]
        converter.inference_input_type = converter.inference_output_type = tf.uint8
    with quiet_stderr():
        content = converter.convert()
        if calibration is not None and float_tensors(TfliteRunner(content)):
            # Where one map is padded and concatenated, the converter's present
            # quantiser leaves floats (ResNets with several headers); its earlier one
            # rescales between the two.
            use_earlier_quantizer(converter)
            content = converter.convert()
    return pack(content)


class TfliteRunner(Runner):
    """A TFLite file in the LiteRT interpreter, on one thread. Needs no TensorFlow.

    Args:
        source: the file, or its content.

    Raises:
        ValueError, RuntimeError: if the interpreter cannot read it.
    """

    def __init__(self, source: pathlib.Path | bytes):
        from ai_edge_litert.interpreter import Interpreter

        is_content = isinstance(source, bytes)
        given = {"model_content": source} if is_content else {"model_path": str(source)}
        with quiet_stderr():
            self._interpreter = Interpreter(num_threads=1, **given)
            self._interpreter.allocate_tensors()
        (self._input,) = self._interpreter.get_input_details()
        (self._output,) = self._interpreter.get_output_details()
        self.image_shape = tuple(int(n) for n in self._input["shape"][1:])
        self.description = {} if is_content else _attached(source)

    def __call__(self, images: np.ndarray) -> np.ndarray:
        """See `Runner`."""
        if tuple(self._input["shape"]) != images.shape:
            self._interpreter.resize_tensor_input(self._input["index"], images.shape)
            self._interpreter.allocate_tensors()
            (self._input,) = self._interpreter.get_input_details()
        values = _quantise(images, self._input)
        self._interpreter.set_tensor(self._input["index"], values)
        self._interpreter.invoke()
        return _dequantise(
            self._interpreter.get_tensor(self._output["index"]), self._output
        )

    def repeated(self, images: np.ndarray) -> Callable[[], Any]:
        """See `Runner`; the images are set once, before."""
        self(images)
        return self._interpreter.invoke

    def tensors(self) -> list[dict[str, Any]]:
        """The interpreter's description of every tensor."""
        return self._interpreter.get_tensor_details()

    @property
    def operators(self) -> list[str]:
        """Names of the operations in the file."""
        from cdfkd_tf.runtime.keras_internals import operator_names

        return operator_names(self._interpreter)


def float_tensors(run: TfliteRunner) -> list[str]:
    """Names of the tensors that hold floating-point numbers."""
    return [
        tensor["name"]
        for tensor in run.tensors()
        if np.issubdtype(tensor["dtype"], np.floating)
    ]


def refuse_floats(run: TfliteRunner, images: np.ndarray) -> None:
    """Checks that a file computes in integers.

    Args:
        run: the loaded file.
        images: not used.

    Raises:
        RunError: if it does not.
    """
    floats = float_tensors(run)
    if floats:
        raise RunError(
            f"The int8 file computes with floats in {len(floats)} tensors: a device "
            "without floating point cannot run it."
        )


def attach_to_tflite(path: pathlib.Path, description: dict[str, Any]) -> None:
    """Appends a ZIP archive, as TFLite's associated files are carried.

    It holds `metadata.json` and `labels.txt`, for
    `zipfile.ZipFile("student_int8.tflite")` or `unzip`.
    """
    text = json.dumps(description, indent=1, ensure_ascii=False) + "\n"
    labels = "".join(f"{name}\n" for name in description["classes"])
    with zipfile.ZipFile(path, "a", zipfile.ZIP_DEFLATED) as archive:
        for name, content in ((_DESCRIPTION, text), (_LABELS, labels)):
            # ZipInfo's own date: the same run writes the same bytes.
            entry = zipfile.ZipInfo(name)
            entry.compress_type = zipfile.ZIP_DEFLATED
            archive.writestr(entry, content)


def _attached(path: pathlib.Path) -> dict[str, Any]:
    if not zipfile.is_zipfile(path):
        return {}
    with zipfile.ZipFile(path) as archive:
        known = _DESCRIPTION in archive.namelist()
        return json.loads(archive.read(_DESCRIPTION)) if known else {}


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
