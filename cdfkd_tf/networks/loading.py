"""Model files from elsewhere, read without running code from them."""

import os
import pathlib
import zipfile

import keras
import tensorflow as tf
from keras import KerasTensor

from cdfkd_tf.errors import RequestError, reason
from cdfkd_tf.networks.saved_model_check import check_saved_model


class SavedModelClassifier:
    """A TensorFlow SavedModel as a classifier: outputs and gradients, no layers.

    Call arguments:
        images: `(B, ...)` as its signature takes them. Returns `(B, C)`, logits or
            probabilities as the file has it; always in inference mode.

    Args:
        folder: of the SavedModel.

    Raises:
        RequestError: without a signature of one input and one output. TensorFlow
            raises many kinds of errors for a damaged file.
    """

    def __init__(self, folder: pathlib.Path):
        self.name, self.layers, self.trainable = folder.name, [], False
        self._loaded = tf.saved_model.load(str(folder))
        signatures = self._loaded.signatures
        if not signatures:
            raise RequestError(f"SavedModel {folder} has no signature to call.")
        first = next(iter(signatures.values()))
        self._signature = signatures.get("serving_default", first)
        inputs = self._signature.structured_input_signature[1]
        outputs = self._signature.structured_outputs
        if len(inputs) != 1 or len(outputs) != 1:
            raise RequestError(
                f"SavedModel {folder} must take one tensor of images and answer one of "
                f"classes; it takes {len(inputs)} and answers {len(outputs)}."
            )
        ((self._input, image),) = inputs.items()
        ((self._output, answer),) = outputs.items()
        self.input_shape, self._dtype = tuple(image.shape), image.dtype
        self.output_shape = tuple(answer.shape)
        self.weights = list(getattr(self._loaded, "variables", ()))

    def __call__(self, images: KerasTensor, training: bool = False) -> KerasTensor:
        """See the class."""
        outputs = self._signature(**{self._input: tf.cast(images, self._dtype)})
        return outputs[self._output]


def load_classifier(file: str | pathlib.Path) -> keras.Model | SavedModelClassifier:
    """A classifier from a `.keras` or `.h5` file or a SavedModel folder.

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
    """Keras's own message calls several causes a file that is not found."""
    effective = os.access in os.supports_effective_ids
    if not path.is_file():
        return "There is no such file."
    if not os.access(path, os.R_OK, effective_ids=effective):
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
