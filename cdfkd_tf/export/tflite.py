"""The export formats of devices: TFLite files of four arithmetics."""

import contextlib
import json
import pathlib
import zipfile
from collections.abc import Callable
from typing import Any

import numpy as np

from cdfkd_tf.export.runner import Runner
from cdfkd_tf.export.tflite_metadata import LABELS, standard_metadata
from cdfkd_tf.runtime.silence_stderr import quiet_stderr

_DESCRIPTION = "metadata.json"


def write_tflite(
    model: Any,
    calibration: np.ndarray | None,
    description: dict[str, Any],
    path: pathlib.Path,
    **how: bool,
) -> None:
    """Writes one TFLite file, for any batch size.

    Args:
        model: see `convert`.
        calibration: likewise.
        description: goes in as standard metadata, and is appended as a ZIP archive,
            as TFLite's associated files are carried: `metadata.json` and `labels.txt`,
            for `zipfile.ZipFile("student_int8.tflite")` or `unzip`.
        path: the file to write.
        **how: see `convert`.
    """
    metadata = standard_metadata(description)
    path.write_bytes(convert(model, calibration, metadata=metadata, **how))
    text = json.dumps(description, indent=1, ensure_ascii=False) + "\n"
    labels = "".join(f"{name}\n" for name in description["classes"])
    with zipfile.ZipFile(path, "a") as archive:
        for name, content in ((_DESCRIPTION, text), (LABELS, labels)):
            # ZipInfo's own date: the same run writes the same bytes. Not compressed:
            # MediaPipe reads no other archives.
            archive.writestr(zipfile.ZipInfo(name), content, zipfile.ZIP_STORED)


def convert(
    model: Any,
    calibration: np.ndarray | None = None,
    *,
    quantised: bool = True,
    half: bool = False,
    metadata: bytes = b"",
) -> bytes:
    """The content of a TFLite file.

    Args:
        model: Keras model, images in [0, 1] to probabilities.
        calibration: images in [0, 1], `(n, height, width, channels)`, that fix value
            ranges: the file computes with integers throughout and takes uint8.
        quantised: whether weights are stored in fewer than 32 bits.
        half: in 16 bits instead of eight.
        metadata: from `standard_metadata`; empty: none.
    """
    import tensorflow as tf

    from cdfkd_tf.export.inference_graph import serving_function
    from cdfkd_tf.export.packing import pack
    from cdfkd_tf.runtime.keras_internals import use_earlier_quantizer

    module = tf.Module()
    module.weights = [variable.value for variable in model.variables]
    serve = serving_function(model).get_concrete_function()

    def converted(earlier: bool = False) -> bytes:
        converter = tf.lite.TFLiteConverter.from_concrete_functions([serve], module)
        if quantised:
            converter.optimizations = [tf.lite.Optimize.DEFAULT]
        if half:
            converter.target_spec.supported_types = [tf.float16]
        if calibration is not None:
            converter.representative_dataset = lambda: ([x[None]] for x in calibration)
            converter.target_spec.supported_ops = [tf.lite.OpsSet.TFLITE_BUILTINS_INT8]
            converter.inference_input_type = converter.inference_output_type = tf.uint8
        if earlier:
            use_earlier_quantizer(converter)
        with quiet_stderr():
            return converter.convert()

    content = converted()
    if calibration is not None and TfliteRunner(content).float_operators:
        # Where one map is padded and concatenated, the converter's present quantiser
        # leaves floats (ResNets with several headers); its earlier one rescales
        # between the two, but knows fewer operations.
        with contextlib.suppress(RuntimeError):
            content = converted(earlier=True)
    return pack(content, _shapes(content), metadata)


class TfliteRunner(Runner):
    """A TFLite file in the LiteRT interpreter, on one thread. Needs no TensorFlow.

    Args:
        source: the file, or its content.

    Raises:
        ValueError, RuntimeError: if the interpreter cannot read it.
    """

    def __init__(self, source: pathlib.Path | bytes):
        is_file = not isinstance(source, bytes)
        self.content = source.read_bytes() if is_file else source
        self.interpreter = _interpreter(self.content)
        (self._input,) = self.interpreter.get_input_details()
        (self._output,) = self.interpreter.get_output_details()
        self.image_shape = tuple(int(n) for n in self._input["shape"][1:])
        self.description = _attached(source) if is_file else {}

    def __call__(self, images: np.ndarray) -> np.ndarray:
        """See `Runner`."""
        if tuple(self._input["shape"]) != images.shape:
            self.interpreter.resize_tensor_input(self._input["index"], images.shape)
            self.interpreter.allocate_tensors()
            (self._input,) = self.interpreter.get_input_details()
        scale, zero = self._input["quantization"]
        if scale:
            limits = np.iinfo(self._input["dtype"])
            images = np.clip(np.rint(images / scale) + zero, limits.min, limits.max)
        images = images.astype(self._input["dtype"])
        self.interpreter.set_tensor(self._input["index"], images)
        self.interpreter.invoke()
        output = self.interpreter.get_tensor(self._output["index"])
        scale, zero = self._output["quantization"]
        return (output.astype("float32") - zero) * scale if scale else output

    @property
    def output_quantisation(self) -> tuple[float, int]:
        """Scale and zero point of the probabilities; scale 0: they are floats."""
        scale, zero = self._output["quantization"]
        return float(scale), int(zero)

    def repeated(self, images: np.ndarray) -> Callable[[], Any]:
        """See `Runner`; the images are set once, before."""
        self(images)
        return self.interpreter.invoke

    @property
    def operators(self) -> list[str]:
        """See `Runner`."""
        return [name for name, _ in self._operations()]

    @property
    def float_operators(self) -> list[str]:
        """See `Runner`."""
        tensors = self.interpreter.get_tensor_details()
        floats = {t["index"] for t in tensors if np.issubdtype(t["dtype"], np.floating)}
        names = {name for name, made in self._operations() if floats.issuperset(made)}
        return sorted(names - {"DEQUANTIZE"})

    def _operations(self) -> list[tuple[str, list[int]]]:
        from cdfkd_tf.runtime.keras_internals import operations

        return operations(self.interpreter)


def _interpreter(content: bytes) -> Any:
    try:
        return _allocated(content)
    except RuntimeError:  # the fast kernels refuse some scales, of untrained networks
        return _allocated(content, plain=True)


def _allocated(content: bytes, *, plain: bool = False) -> Any:
    """An interpreter, `plain` without the fast kernels."""
    from ai_edge_litert.interpreter import Interpreter, OpResolverType

    kinds = OpResolverType.BUILTIN_WITHOUT_DEFAULT_DELEGATES, OpResolverType.AUTO
    with quiet_stderr():
        interpreter = Interpreter(
            model_content=content,
            num_threads=1,
            experimental_op_resolver_type=kinds[not plain],
        )
        interpreter.allocate_tensors()
    return interpreter


def _shapes(content: bytes) -> dict[int, Any]:
    """Shape of each tensor that the batch may shape, for a batch of one."""
    interpreter = _allocated(content, plain=True)
    interpreter.invoke()  # some are known only then
    return {
        tensor["index"]: tensor["shape"]
        for tensor in interpreter.get_tensor_details()
        if -1 in tensor["shape_signature"]
    }


def _attached(path: pathlib.Path) -> dict[str, Any]:
    if not zipfile.is_zipfile(path):
        return {}
    with zipfile.ZipFile(path) as archive:
        known = _DESCRIPTION in archive.namelist()
        return json.loads(archive.read(_DESCRIPTION)) if known else {}
