"""The export format of other runtimes: ONNX, written by tf2onnx."""

import json
import logging
import pathlib
from typing import Any

import numpy as np

from cdfkd_tf.export.runner import Runner

_KEY = "metadata.json"


def write_onnx(
    model: Any, calibration: None, description: dict[str, Any], path: pathlib.Path
) -> None:
    """Writes a file from `image`, float32 in [0, 1], to `probabilities`.

    Args:
        model: Keras model, images `(B, height, width, channels)` in [0, 1] to
            probabilities `(B, C)`, without `Normalization` layers; B is any number.
        calibration: none.
        description: becomes the entry `metadata.json` of the file's own metadata, its
            classes the entry `labels`, too.
        path: the file to write.
    """
    import onnx
    import tf2onnx

    from cdfkd_tf.export.inference_graph import serving_function

    logging.getLogger("tf2onnx").setLevel(logging.CRITICAL)  # what it raises is enough
    serve = serving_function(model)
    converted, _ = tf2onnx.convert.from_function(serve, serve.input_signature)
    for value in (*converted.graph.input, *converted.graph.output):
        value.type.tensor_type.shape.dim[0].dim_param = "batch"
    entries = {_KEY: description, "labels": list(description["classes"])}
    onnx.helper.set_model_props(
        converted,
        {key: json.dumps(entry, ensure_ascii=False) for key, entry in entries.items()},
    )
    onnx.checker.check_model(converted)
    onnx.save(converted, str(path))


class OnnxRunner(Runner):
    """An ONNX file in onnxruntime, on one thread of the CPU. Needs no TensorFlow.

    Args:
        path: the file.
    """

    def __init__(self, path: pathlib.Path):
        import onnxruntime

        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = options.inter_op_num_threads = 1
        self._session = onnxruntime.InferenceSession(
            str(path), options, providers=["CPUExecutionProvider"]
        )
        (image,) = self._session.get_inputs()
        self._name, self.image_shape = image.name, tuple(image.shape[1:])
        attached = self._session.get_modelmeta().custom_metadata_map
        self.description = json.loads(attached.get(_KEY, "{}"))

    def __call__(self, images: np.ndarray) -> np.ndarray:
        """See `Runner`."""
        (output,) = self._session.run(None, {self._name: images.astype("float32")})
        return output
