"""Model files from elsewhere, read without running code from them."""

import contextlib
import copy
import functools
import json
import pathlib
import sys
import tempfile
import warnings
import zipfile
from typing import Any

import h5py
import keras
import numpy as np

from cdfkd_tf.errors import DistillationWarning, RequestError, reason
from cdfkd_tf.imported.onnx_files import open_onnx
from cdfkd_tf.imported.torch_programs import open_program
from cdfkd_tf.networks.black_box import BlackBoxClassifier, read_onnx, read_tflite
from cdfkd_tf.networks.file_kinds import (
    HDF5,
    ONNX,
    PROGRAM,
    SAVED_MODEL,
    TFLITE,
    recognise,
)
from cdfkd_tf.networks.keras_configs import explanation, modernised, with_old_functions
from cdfkd_tf.networks.saved_model_check import check_saved_model
from cdfkd_tf.networks.saved_models import SavedModelClassifier
from cdfkd_tf.runtime.child_process import in_child

_READ_SECONDS = 20  # for what a file says of itself: whole ones take far less than one


def load_classifier(
    file: str | pathlib.Path,
) -> keras.Model | SavedModelClassifier | BlackBoxClassifier:
    """A classifier from a file of Keras, PyTorch, ONNX, TFLite, or a SavedModel folder.

    Networks of ONNX files and PyTorch programs become Keras models. An ONNX file with
    an operator that is not known, or that then answers otherwise, only answers; a
    `DistillationWarning` says so.

    Args:
        file: told by its content, not by its name; `~` is the home folder.

    Raises:
        RequestError: missing, unreadable or unsafe, or not finite: what it is, and
            what to do.
    """
    return _load(pathlib.Path(file), "teacher")


def load_network(path: pathlib.Path, role: str) -> keras.Model:
    """A Keras model from a file, without running code from it.

    Args:
        path: as `load_classifier` takes it, but a file of Keras: others show no layers.
        role: what messages call it.

    Raises:
        RequestError: as `load_classifier` does.
    """
    network = _load(path, role)
    if not isinstance(network, keras.Model):
        kind, _ = recognise(path, role)
        raise RequestError(
            f"Cannot read {role} {path}: expected the layers of a Keras model; it is "
            f"{kind}, which shows none. Give its .keras file."
        )
    return network


def check_finite(network: keras.Model | SavedModelClassifier, name: str) -> None:
    """Refuses a network with weights that are no numbers.

    Args:
        network: loaded.
        name: what the message calls it.

    Raises:
        RequestError: naming the first such weight.
    """
    for weight in getattr(network, "weights", ()):
        values = np.asarray(weight)
        if values.dtype.kind not in "iub" and not np.isfinite(values).all():
            count = np.size(values) - np.isfinite(values).sum()
            raise RequestError(
                f"{name}: weight {getattr(weight, 'path', weight.name)} holds {count} "
                f"NaN or infinite values of {values.size}; training must have "
                "diverged. Give an earlier or repaired file."
            )


def _load(path: pathlib.Path, role: str) -> keras.Model | SavedModelClassifier:
    path = path.expanduser()
    kind, place = recognise(path, role)
    if kind == SAVED_MODEL and place.parent == path:
        warnings.warn(
            f"{role} {path} holds versions of a SavedModel; the newest, {place.name}, "
            "is taken.",
            DistillationWarning,
            stacklevel=3,
        )
    read = _READERS.get(kind, functools.partial(_read_keras, kind=kind))
    try:
        network = read(place)
    except RequestError as error:
        raise RequestError(f"Cannot read {role} {path}. {error}") from error
    except Exception as error:  # TensorFlow and Keras raise many kinds for a bad file
        raise RequestError(
            f"Cannot read {role} {path}: {reason(error, 400)}"
        ) from error
    check_finite(network, f"{role.capitalize()} {path}")
    return network


def _read_saved_model(folder: pathlib.Path) -> SavedModelClassifier:
    check_saved_model(folder)
    return SavedModelClassifier(folder)


def _read_onnx(path: pathlib.Path) -> keras.Model | BlackBoxClassifier:
    box = read_onnx(path)
    try:
        model = open_onnx(path, path.stem)
        _check_alike(model, box)
    except Exception as error:  # anybody's network
        warnings.warn(
            f"{path} only answers, so that students learn from it without a generator "
            f"that learns, too: {reason(error, 300)}",
            DistillationWarning,
            stacklevel=2,
        )
        return box
    kinds = {type(layer).__name__ for layer in model.layers}
    if "Conv2D" in kinds and not any("Normalization" in kind for kind in kinds):
        warnings.warn(
            f"{path} holds no BatchNormalization, which generators learn most from. If "
            "its network has some, they were folded away: export it again with "
            "torch.onnx.export(..., optimize=False), or, with dynamo=False, "
            "training=TrainingMode.PRESERVE and do_constant_folding=False.",
            DistillationWarning,
            stacklevel=2,
        )
    return model


def _check_alike(model: keras.Model, box: BlackBoxClassifier) -> None:
    """Asks a network and its file about the same noise."""
    sides = [side or _SIDE for side in box.input_shape[1:]]
    images = np.random.default_rng(0).random((2, *sides), "float32")
    if "int" in model.inputs[0].dtype:
        images = np.floor(images * 255)
    ours, theirs = (np.asarray(each(images)) for each in (model, box))
    ours = ours.reshape(theirs.shape) if ours.size == theirs.size else ours
    largest = np.abs(theirs).max()
    gap = np.abs(ours - theirs).max() if ours.shape == theirs.shape else np.inf
    if not gap <= _ROUNDING * largest:
        raise ValueError(f"its layers answer otherwise, by {gap:.2g} of {largest:.2g}")


_SIDE = 96  # of noise for networks that take images of any size
_ROUNDING = 1e-3  # of the largest answer; half precision in files has no more

# What is not read by Keras itself.
_READERS = {
    SAVED_MODEL: _read_saved_model,
    ONNX: _read_onnx,
    PROGRAM: open_program,
    TFLITE: read_tflite,
}


def _read_keras(path: pathlib.Path, kind: str) -> keras.Model:
    """By Keras itself; else its network made of its description, then filled.

    Keras goes by names of files, and reads descriptions of Keras 3 alone.
    """
    if kind == HDF5:
        _check_readable(path)
    entry, version = _description(path, kind)
    is_old = version.startswith(("0.", "1.", "2."))
    with tempfile.TemporaryDirectory() as folder:
        named = pathlib.Path(folder) / ("model.h5" if kind == HDF5 else "model.keras")
        named.symlink_to(path.resolve())
        if kind != HDF5 and not is_old:
            with contextlib.suppress(Exception):  # explained below
                return keras.saving.load_model(named, compile=False, safe_mode=True)
        entry = modernised(with_old_functions(entry) if is_old else entry)
        try:
            # A copy: it takes the description apart.
            model = keras.saving.deserialize_keras_object(
                copy.deepcopy(entry), safe_mode=True
            )
        except Exception as error:  # many kinds, for what is wrong in it
            raise RequestError(explanation(entry, version, error)) from error
        model.load_weights(path / "model.weights.h5" if path.is_dir() else named)
    return model


def _check_readable(file: pathlib.Path) -> None:
    """Refuses an HDF5 file whose damage would make its library loop or abort.

    Names, shapes and attributes are read, in a process of their own.
    """

    def read_attributes(_, item) -> None:  # anything but None would end the visit
        dict(item.attrs)

    def read_through() -> dict:
        with contextlib.suppress(Exception), h5py.File(file, "r") as opened:
            read_attributes("", opened)
            opened.visititems(read_attributes)
        return {}  # what else is wrong is said better where it is read

    if sys.platform == "linux" and in_child(read_through, _READ_SECONDS) is None:
        raise RequestError(
            f"The file is damaged: reading it ends the process or takes more than "
            f"{_READ_SECONDS} s. Give a copy that is whole."
        )


def _description(path: pathlib.Path, kind: str) -> tuple[dict[str, Any], str]:
    """What the file says of its network, and the version of Keras that saved it."""
    if kind == HDF5:
        with h5py.File(path, "r") as file:
            texts = [file.attrs["model_config"], file.attrs.get("keras_version", "1")]
        config, version = (t.decode() if isinstance(t, bytes) else t for t in texts)
        return json.loads(config), version
    if path.is_dir():
        texts = [(path / name).read_text() for name in ("config.json", "metadata.json")]
    else:
        with zipfile.ZipFile(path) as archive:
            texts = [archive.read(name) for name in ("config.json", "metadata.json")]
    entry, metadata = map(json.loads, texts)
    return entry, metadata.get("keras_version", "?")
