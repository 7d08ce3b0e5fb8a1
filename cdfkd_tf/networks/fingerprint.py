"""Tells whether a network is still the one that it was."""

import hashlib
import json
import pathlib
import zipfile
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    import keras

_BLOCK = 2**20
_NOT_CONTENT = "metadata.json"  # of a .keras file: when and with what it was saved
_NOT_SETTINGS = {"trainable", "shared_object_id"}  # what a use of the model may change


def fingerprint(network: "keras.Model | str | pathlib.Path") -> str:
    """`sha256:` and 64 digits, equal for equal weights and settings alone.

    Args:
        network: a model in memory: its weights and its layers' settings count, not
            their names, which depend on what was built before. Or a path: the content
            counts, of a folder (SavedModel) that of all its files with their names,
            of a `.keras` file without the date.

    Returns:
        Of one model in memory always the same; of its file another one.
    """
    digest = hashlib.sha256()
    is_path = isinstance(network, (str, pathlib.Path))
    parts = _of_files(pathlib.Path(network)) if is_path else _of_model(network)
    for part in parts:
        digest.update(part)
    return f"sha256:{digest.hexdigest()}"


def _of_files(path: pathlib.Path) -> Iterator[bytes]:
    if path.is_dir():
        for file in sorted(file for file in path.rglob("*") if file.is_file()):
            yield str(file.relative_to(path)).encode()
            yield from _of_files(file)
    elif zipfile.is_zipfile(path):
        with zipfile.ZipFile(path) as archive:
            for name in sorted(archive.namelist()):
                if name != _NOT_CONTENT:
                    yield name.encode()
                    with archive.open(name) as file:
                        yield from iter(lambda file=file: file.read(_BLOCK), b"")
    else:
        with path.open("rb") as file:
            yield from iter(lambda: file.read(_BLOCK), b"")


def _of_model(model: "keras.Model") -> Iterator[bytes]:
    # Here: finished runs compare files without TensorFlow.
    import keras

    from cdfkd_tf.runtime.keras_internals import all_layers, is_graph

    # The settings of a graph hold those of its layers and how they are connected.
    for layer in [model] if is_graph(model) else all_layers(model):
        yield type(layer).__name__.encode()
        try:
            settings = _without_names(layer.get_config(), {})
        except Exception:  # anybody's layers: some cannot tell
            continue
        yield json.dumps(settings, sort_keys=True, default=lambda _: "").encode()
    for weight in model.weights:
        value = np.ascontiguousarray(keras.ops.convert_to_numpy(weight))
        yield f"{value.dtype} {value.shape}".encode()
        yield value.tobytes()


def _without_names(settings: Any, numbers: dict[str, str]) -> Any:
    """Settings with numbers, in the order of appearance, in the place of names."""
    if isinstance(settings, dict):
        if isinstance(name := settings.get("name"), str):
            numbers.setdefault(name, str(len(numbers)))
        kept = {k: value for k, value in settings.items() if k not in _NOT_SETTINGS}
        return {key: _without_names(value, numbers) for key, value in kept.items()}
    if isinstance(settings, (list, tuple)):
        return [_without_names(value, numbers) for value in settings]
    return numbers.get(settings, settings) if isinstance(settings, str) else settings
