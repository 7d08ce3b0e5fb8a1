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
    model: Any, calibration: np.ndarray | None, path: pathlib.Path, **how: bool
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
    for is_last in (False, True):
        converter = tf.lite.TFLiteConverter.from_concrete_functions([serve], module)
        if quantised:
            converter.optimizations = [tf.lite.Optimize.DEFAULT]
        if half:
            converter.target_spec.supported_types = [tf.float16]
        if calibration is not None:
            converter.representative_dataset = lambda: ([x[None]] for x in calibration)
            converter.target_spec.supported_ops = [tf.lite.OpsSet.TFLITE_BUILTINS_INT8]
            converter.inference_input_type = converter.inference_output_type = tf.uint8
        if is_last:
            use_earlier_quantizer(converter)
        with quiet_stderr():
            content = converter.convert()
        # Where one map is padded and concatenated, the converter's present quantiser
        # leaves floats (ResNets with several headers); its earlier one rescales
        # between the two.
        if calibration is None or not float_tensors(TfliteRunner(content)):
            break
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

        is_file = not isinstance(source, bytes)
        content = source.read_bytes() if is_file else source
        with quiet_stderr():
            self._interpreter = Interpreter(model_content=content, num_threads=1)
            self._interpreter.allocate_tensors()
        (self._input,) = self._interpreter.get_input_details()
        (self._output,) = self._interpreter.get_output_details()
        self.image_shape = tuple(int(n) for n in self._input["shape"][1:])
        self.description = _attached(source) if is_file else {}

    def __call__(self, images: np.ndarray) -> np.ndarray:
        """See `Runner`."""
        if tuple(self._input["shape"]) != images.shape:
            self._interpreter.resize_tensor_input(self._input["index"], images.shape)
            self._interpreter.allocate_tensors()
            (self._input,) = self._interpreter.get_input_details()
        scale, zero = self._input["quantization"]
        if scale:
            limits = np.iinfo(self._input["dtype"])
            images = np.clip(np.rint(images / scale) + zero, limits.min, limits.max)
        images = images.astype(self._input["dtype"])
        self._interpreter.set_tensor(self._input["index"], images)
        self._interpreter.invoke()
        output = self._interpreter.get_tensor(self._output["index"])
        scale, zero = self._output["quantization"]
        return (output.astype("float32") - zero) * scale if scale else output

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
    floats = [t for t in run.tensors() if np.issubdtype(t["dtype"], np.floating)]
    return [tensor["name"] for tensor in floats]


def refuse_floats(run: TfliteRunner) -> None:
    """Raises RunError if a file does not compute in integers throughout."""
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
