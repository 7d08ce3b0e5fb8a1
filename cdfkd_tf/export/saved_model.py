"""The export format of servers: a TensorFlow SavedModel."""

import json
import pathlib
from typing import Any

import numpy as np

from cdfkd_tf.export.runner import Runner
from cdfkd_tf.networks.saved_model_check import check_saved_model
from cdfkd_tf.runtime.silence_stderr import quiet_tensorflow
from cdfkd_tf.workdir import read_json, write_text

_DESCRIPTION = pathlib.Path("assets.extra", "metadata.json")


def write_saved_model(
    model: Any, calibration: None, description: dict[str, Any], path: pathlib.Path
) -> None:
    """Writes the signatures `serving_default` and `serve_uint8`.

    Both take `image`, of any batch size, and give `probabilities`: the first takes
    float32 in [0, 1], the second uint8 in [0, 255].

    Args:
        model: Keras model, images in [0, 1] to probabilities.
        calibration: none.
        description: goes into `assets.extra/metadata.json`.
        path: the folder to write.
    """
    import tensorflow as tf

    from cdfkd_tf.export.inference_graph import serving_function

    serve = serving_function(model)
    image = tf.TensorSpec((None, *model.input_shape[1:]), tf.uint8, name="image")

    @tf.function(input_signature=[image])
    def serve_uint8(image):
        return serve(tf.cast(image, tf.float32) / 255)

    # Not Keras's own export: it stores every variable twice.
    module = tf.Module()
    module.weights = [variable.value for variable in model.variables]
    signatures = {"serving_default": serve, "serve_uint8": serve_uint8}
    tf.saved_model.save(module, str(path), signatures=signatures)
    text = json.dumps(description, indent=1, ensure_ascii=False)
    write_text(path / _DESCRIPTION, text + "\n")


def description_of(folder: pathlib.Path) -> dict[str, Any]:
    """What a folder that was exported says about itself; empty if nothing."""
    return read_json(folder / _DESCRIPTION) or read_json(folder / _DESCRIPTION.name)


class SavedModelRunner(Runner):
    """A SavedModel's `serving_default` in TensorFlow.

    Args:
        path: its folder.

    Raises:
        RequestError: if it holds operations that could do more than compute.
    """

    def __init__(self, path: pathlib.Path):
        quiet_tensorflow()
        import tensorflow as tf

        check_saved_model(path)
        self._loaded = tf.saved_model.load(str(path))  # signatures die with it
        self._serve = self._loaded.signatures["serving_default"]
        self._constant = tf.constant
        self.threads = tf.config.threading.get_intra_op_parallelism_threads() or None
        _, inputs = self._serve.structured_input_signature
        self.image_shape = tuple(inputs["image"].shape[1:])
        self.description = description_of(path)

    def __call__(self, images: np.ndarray) -> np.ndarray:
        """See `Runner`."""
        return self._serve(image=self._constant(images))["probabilities"].numpy()
