"""Every format asked for: written aside, checked, then given its name."""

import os
import pathlib
import shutil
import tempfile
import warnings
from collections.abc import Callable
from typing import Any

import keras
import numpy as np

from cdfkd_tf.errors import DistillationWarning, RunError
from cdfkd_tf.export import metadata
from cdfkd_tf.export.checking import LOW_AGREEMENT, Reference, check
from cdfkd_tf.export.formats import FILES, tflite, write_saved_model
from cdfkd_tf.export.lean import lean_predictor
from cdfkd_tf.networks.introspection import multiply_adds

_UNFINISHED = ".unfinished-"


def export_checked(
    predictor: keras.Model,
    formats: tuple[str, ...],
    directory: pathlib.Path,
    *,
    calibration: np.ndarray,
    reference: Reference,
    description: dict[str, Any],
    finetune: Callable[[keras.Model], None] | None = None,
) -> list[dict[str, Any]]:
    """Writes `predictor` in each format, and checks each file.

    What has its final name is complete, passed its check and is of this predictor, also
    after a full disk or a killed process: files of an earlier export are deleted first,
    and what did not pass.

    Args:
        predictor: image in [0, 1] to probabilities, from `build_predictor`.
        formats: keys of `FILES`.
        directory: created when missing.
        calibration: images in [0, 1] that fix the value ranges of the int8 file.
        reference: what the files should say.
        description: from `metadata.describe`.
        finetune: changes the weights of the network that becomes the int8 file.

    Returns:
        One entry of results.json per format.

    Raises:
        RunError: if a file cannot be written or does not pass.
    """
    directory.mkdir(parents=True, exist_ok=True)
    for left in directory.glob(f"{_UNFINISHED}*"):  # of a killed process
        shutil.rmtree(left, ignore_errors=True)
    for file in FILES.values():
        _remove(directory / file)
    lean = lean_predictor(predictor)
    entries = []
    with tempfile.TemporaryDirectory(dir=directory, prefix=_UNFINISHED) as scratch:
        files = _Files(lean, pathlib.Path(scratch), calibration)
        for name in formats:
            final = directory / FILES[name]
            if name == "tflite_int8" and finetune:
                finetuned = lean_predictor(predictor)
                finetune(finetuned)
                files = _Files(finetuned, pathlib.Path(scratch), calibration)
            try:
                written = files.write(name)
                metadata.attach(written, metadata.of_format(description, name))
                figures = check(name, written, reference)
            except Exception as error:
                raise _explained(name, error) from error
            os.replace(written, final)
            entries.append(
                {
                    "format": name,
                    "file": str(final),
                    **figures,
                    "parameters": lean.count_params(),
                    "multiply_adds": multiply_adds(lean),
                }
            )
            _warn(entries[-1])
    return entries


class _Files:
    """One network's files in a scratch folder; the SavedModel behind them made once."""

    def __init__(self, model: keras.Model, scratch: pathlib.Path, calibration):
        self._model, self._calibration = model, calibration
        self._folder = pathlib.Path(tempfile.mkdtemp(dir=scratch))
        self._source = self._folder / "source"

    def write(self, name: str) -> pathlib.Path:
        if not self._source.exists():
            write_saved_model(self._model, self._source)
        path = self._folder / name
        if name == "saved_model":
            shutil.copytree(self._source, path)
        else:
            path.write_bytes(tflite(self._source, name, self._calibration))
        return path


def _remove(path: pathlib.Path) -> None:
    if path.is_dir():
        aside = path.with_name(f"{_UNFINISHED}{path.name}")
        os.replace(path, aside)  # a folder deleted half is no folder to load
        shutil.rmtree(aside, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)


def _explained(name: str, error: Exception) -> Exception:
    if hasattr(error, "exit_code"):
        return error
    if isinstance(error, shutil.Error):  # of copying: a list, one entry per file
        error = OSError(error.args[0][0][-1])
    reason = " ".join(str(error).split())[:300]
    return RunError(f"Cannot export {name}: {type(error).__name__}: {reason}")


def _warn(entry: dict[str, Any]) -> None:
    if entry["agreement"] < LOW_AGREEMENT:
        remedy = (
            " --int8_finetune_steps=200 may help, or tflite_dynamic."
            if entry["format"] == "tflite_int8"
            else ""
        )
        warnings.warn(
            f"{entry['format']} agrees with Keras on {entry['agreement']:.1%} of the "
            f"images, less than {LOW_AGREEMENT:.0%}.{remedy}",
            DistillationWarning,
            stacklevel=3,
        )
