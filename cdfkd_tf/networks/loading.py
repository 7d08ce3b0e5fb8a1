"""Strangers' model files: read without running code from them."""

import os
import pathlib
import zipfile

import keras
import tensorflow as tf
from keras import KerasTensor

from cdfkd_tf.errors import RequestError, reason
from cdfkd_tf.networks.saved_model_check import check_saved_model


class SavedModelClassifier:
    """A TensorFlow SavedModel as a teacher: its answers and gradients, no layers.

    Args:
        folder: of the SavedModel.

    Raises:
        RequestError: unreadable, without a usable signature, or with an operation
            that runs Python or touches files.
    """

    def __init__(self, folder: pathlib.Path):
        self.name, self.layers, self.trainable = folder.name, [], False
        self._loaded = tf.saved_model.load(str(folder))
        signatures = self._loaded.signatures
        if not signatures:
            raise RequestError(f"SavedModel {folder} has no signature to call.")
        key = "serving_default" if "serving_default" in signatures else list(signatures)
        self._signature = signatures[key if isinstance(key, str) else key[0]]
        arguments = self._signature.structured_input_signature[1]
        outputs = self._signature.structured_outputs
        if len(arguments) != 1 or len(outputs) != 1:
            raise RequestError(
                f"SavedModel {folder} must take one tensor of images and answer one of "
                f"classes; it takes {len(arguments)} and answers {len(outputs)}."
            )
        (self._input, spec), (self._output, answer) = (
            *arguments.items(),
            *outputs.items(),
        )
        self.input_shape = tuple(spec.shape)
        self.output_shape = tuple(answer.shape)
        self._dtype = spec.dtype
        self.weights = list(getattr(self._loaded, "variables", ()))

    def __call__(self, images: KerasTensor, training: bool = False) -> KerasTensor:
        """The answers `(B, C)`; always in inference mode."""
        return self._signature(**{self._input: tf.cast(images, self._dtype)})[
            self._output
        ]


def load_classifier(file: str | pathlib.Path) -> keras.Model | SavedModelClassifier:
    """A classifier from a `.keras` or `.h5` file or a SavedModel folder.

    Args:
        file: the path.

    Raises:
        RequestError: missing, empty, unreadable or unsafe.
    """
    path = pathlib.Path(file)
    if path.is_dir():
        return _load_saved_model(path)
    if not path.is_file():
        raise RequestError(f"There is no teacher file {path}. Check --teachers.")
    if not path.stat().st_size:
        raise RequestError(f"Teacher file {path} is empty; save the model again.")
    return load_network(path, "teacher")


def load_network(path: pathlib.Path, role: str) -> keras.Model:
    """A Keras model from a file, in safe mode: no Lambda, no pickle.

    Args:
        path: a `.keras` or `.h5` file.
        role: what messages call it.

    Raises:
        RequestError: unreadable or unsafe.
    """
    try:
        return keras.saving.load_model(path, compile=False, safe_mode=True)
    except Exception as error:  # Keras raises many kinds for a bad file
        raise RequestError(
            f"Cannot read {role} {path}: expected a Keras model file (.keras) of "
            f"plain layers. {_why_unreadable(path, error)}"
        ) from error


def _why_unreadable(path: pathlib.Path, error: Exception) -> str:
    """Keras calls many things a file that is not found."""
    if not path.is_file():
        return "There is no such file."
    if not os.access(
        path, os.R_OK, effective_ids=os.access in os.supports_effective_ids
    ):
        return "You may not read it."
    if path.suffix == ".keras" and not zipfile.is_zipfile(path):
        return "It is cut off, damaged, or another kind of file."
    return reason(error)


def _load_saved_model(folder: pathlib.Path) -> SavedModelClassifier:
    if not (folder / "saved_model.pb").is_file():
        raise RequestError(
            f"Teacher {folder} is a folder: expected a .keras file, or a SavedModel "
            "with saved_model.pb inside."
        )
    try:
        check_saved_model(folder)
        return SavedModelClassifier(folder)
    except RequestError:
        raise
    except Exception as error:  # TensorFlow raises many kinds, too
        raise RequestError(
            f"Cannot read SavedModel {folder}: {reason(error)}"
        ) from error
