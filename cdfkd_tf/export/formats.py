"""A predictor written in one format, under whatever name the caller gives."""

import pathlib

import keras
import numpy as np
import tensorflow as tf

from cdfkd_tf.export.packing import has_floats, pack
from cdfkd_tf.runtime.silence_stderr import quiet_stderr

FILES = {
    "saved_model": "saved_model",
    "tflite_float32": "student_float32.tflite",
    "tflite_float16": "student_float16.tflite",
    "tflite_dynamic": "student_dynamic.tflite",
    "tflite_int8": "student_int8.tflite",
}


def write_saved_model(model: keras.Model, path: pathlib.Path) -> None:
    """A SavedModel with the signatures `serving_default` and `serve_uint8`.

    Both take `image`, of any batch size, and give `probabilities`: the first takes
    float32 in [0, 1], the second uint8.

    Args:
        model: images in [0, 1] to probabilities.
        path: the folder to write.
    """
    shape = (None, *model.input_shape[1:])

    def from_floats(image):
        return {"probabilities": model(image, training=False)}

    def from_bytes(image):
        return from_floats(tf.cast(image, tf.float32) / 255)

    # Not Keras's own export: it stores every variable twice.
    module = tf.Module()
    module.weights = [variable.value for variable in model.variables]
    signatures = {
        name: tf.function(
            function, input_signature=[tf.TensorSpec(shape, dtype, name="image")]
        )
        for name, function, dtype in (
            ("serving_default", from_floats, tf.float32),
            ("serve_uint8", from_bytes, tf.uint8),
        )
    }
    tf.saved_model.save(module, str(path), signatures=signatures)


def tflite(
    saved_model: pathlib.Path, name: str, calibration: np.ndarray | None = None
) -> bytes:
    """The content of a TFLite file.

    Args:
        saved_model: from `write_saved_model`.
        name: a key of `FILES` that starts with `tflite_`.
        calibration: images in [0, 1], `(n, height, width, channels)`, that fix the
            value ranges of `tflite_int8`; the other formats need none.
    """
    converter = tf.lite.TFLiteConverter.from_saved_model(
        str(saved_model), signature_keys=["serving_default"]
    )
    if name != "tflite_float32":
        converter.optimizations = [tf.lite.Optimize.DEFAULT]
    if name == "tflite_float16":
        converter.target_spec.supported_types = [tf.float16]
    if name == "tflite_int8":
        converter.representative_dataset = lambda: (
            [image[None]] for image in calibration
        )
        converter.target_spec.supported_ops = [tf.lite.OpsSet.TFLITE_BUILTINS_INT8]
        converter.inference_input_type = tf.uint8
        converter.inference_output_type = tf.uint8
    with quiet_stderr():
        content = pack(converter.convert())
        if name == "tflite_int8" and has_floats(content):
            # Where one map is padded and concatenated, the converter's present
            # quantiser leaves floats (ResNets with several headers); its earlier one
            # rescales between the two.
            converter.experimental_new_quantizer = False
            content = pack(converter.convert())
    return content
