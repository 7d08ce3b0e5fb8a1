"""PyTorch's networks as Keras models: modules in memory, files of `torch.export`.

PyTorch writes them as ONNX in memory, BatchNormalizations kept; that is opened.
"""

import contextlib
import importlib
import io
import json
import logging
import pathlib
import re
import sys
import warnings
import zipfile
from collections.abc import Iterator
from typing import Any

import keras
import numpy as np

from cdfkd_tf.errors import RequestError, one_line, reason
from cdfkd_tf.imported.onnx_files import open_onnx
from cdfkd_tf.imported.tensors import Unsupported

_EXPORT = "torch.onnx.export(model, (image,), 'model.onnx', optimize=False)"
# What a program of `torch.export` may name: loading one calls what it names, and
# evaluates its formulas.
_CALLED = re.compile(
    r"torch\.ops\.aten\.(?!from_file)\w+\.\w+|torch\.sym_(int|max|min|not)"
    r"|_operator\.(add|sub|mul|floordiv|truediv|mod|pow|neg|eq|ne|lt|le|gt|ge|getitem)"
)
_FORMULA = re.compile(
    r"(?:Symbol\('[suz]\d+'(?:, (?:positive|integer)=True)*\)|[suz]\d+|Integer|Add|Mul"
    r"|Pow|Max|Min|Mod|FloorDiv|Eq|[\d\s+*/(),.<>=-])*"
)
_GUARD = re.compile(r"(?:L\['\w+'\]|\.size\(\)\[\d+\]|and|or|not|[\d\s()+*/<>=!%-])*")
_DIFFERENCE = 1e-3  # of the largest answer


def from_torch(module: Any, example: Any, name: str = "network") -> keras.Model:
    """A PyTorch module as a Keras model: layers, weights, gradients.

    Args:
        module: a `torch.nn.Module` that takes one batch of images and answers rows of
            classes. It is exported in inference mode and comes back as it was.
        example: such a batch, a tensor or array `(B, channels, height, width)`.
        name: of the model.

    Returns:
        A functional model of images `(B, height, width, channels)`, in the range that
        the module expects, with the module's BatchNormalizations.

    Raises:
        RequestError: PyTorch or onnxscript is missing, the module does not take the
            example, PyTorch cannot export it, or an operator of it has no counterpart:
            which one.
    """
    torch = _torch(name)
    with _inference(module), torch.no_grad():
        image, expected = _asked(torch, name, module, example)
        automatic = ({0: torch.export.Dim.AUTO},)
        model = _opened(torch, name, module, (image,), dynamic_shapes=automatic)
        answer = np.asarray(model(image.movedim(1, -1).cpu().numpy()))
    gap = np.abs(answer - expected).max()
    if not gap <= _DIFFERENCE * np.abs(expected).max():
        raise RequestError(
            f"The layers made of {name} answer otherwise than it does, by {gap:.2g}. "
            "Give it as a function from images to classes instead."
        )
    return model


def is_module(value: Any) -> bool:
    """Whether it is a network of PyTorch, which is not imported for that."""
    torch = sys.modules.get("torch")
    return torch is not None and isinstance(value, torch.nn.Module)


def open_program(path: pathlib.Path) -> keras.Model:
    """The program in a file of `torch.export.save` (`.pt2`) as a Keras model.

    Args:
        path: holds plain tensors and a graph of PyTorch's own operations.

    Raises:
        RequestError: as `from_torch` does; and where loading the file would run
            what it brings.
    """
    torch = _torch(path)
    _check_program(torch, path)
    with _quiet():
        program = torch.export.load(path)
    return _opened(torch, path.stem, program)


def _asked(torch: Any, name: str, module: Any, example: Any) -> tuple[Any, np.ndarray]:
    """The example as a tensor, and what the module answers."""
    try:
        image = torch.as_tensor(example, dtype=torch.float32)
        rows = module(image)
        if not isinstance(rows, torch.Tensor):
            raise TypeError(f"it answers a {type(rows).__name__}, not one tensor")
    except Exception as error:  # anybody's module
        got = tuple(example.shape) if hasattr(example, "shape") else repr(example)[:50]
        raise RequestError(
            f"{name} must take its example, a batch of images (images, channels, "
            f"height, width), and answer rows of classes; got {got}. "
            f"{reason(error, 300)} A module that takes or answers otherwise: wrap it."
        ) from error
    return image, rows.cpu().numpy()


def _opened(torch: Any, name: str, program: Any, *inputs: Any, **options: Any):
    try:
        with _quiet():
            made = torch.onnx.export(
                program, *inputs, optimize=False, dynamo=True, verbose=False, **options
            )
    except Exception as error:  # of any of PyTorch's parts
        while error.__cause__:
            error = error.__cause__
        raise RequestError(
            f"PyTorch cannot export {name} as ONNX: {one_line(error, 300)}"
        ) from error
    try:
        return open_onnx(made.model_proto, name)
    except Unsupported as error:
        raise RequestError(f"{name} cannot become a Keras model: {error}.") from error


def _torch(name: Any) -> Any:
    try:
        importlib.import_module("onnxscript")  # which PyTorch's exporter uses
        import torch
    except ImportError as error:
        raise RequestError(
            f"{name} is of PyTorch, and {error.name} is missing: pip install "
            f"'cdfkd_tf[torch]', or export it where PyTorch is: {_EXPORT}."
        ) from None
    return torch


@contextlib.contextmanager
def without_triton() -> Iterator[None]:
    """PyTorch does without its compiler, which beside TensorFlow ends the process."""
    is_there = "triton" in sys.modules
    if not is_there:
        sys.modules["triton"] = None  # as if it were not installed
    try:
        yield
    finally:
        if not is_there:
            del sys.modules["triton"]


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """The same without what PyTorch prints, logs and warns of meanwhile."""
    level = logging.root.manager.disable
    logging.disable(logging.CRITICAL)
    with (
        without_triton(),
        warnings.catch_warnings(action="ignore"),
        contextlib.redirect_stdout(io.StringIO()),
        contextlib.redirect_stderr(io.StringIO()),
    ):
        try:
            yield
        finally:
            logging.disable(level)


@contextlib.contextmanager
def _inference(module: Any) -> Iterator[None]:
    modes = [(part, part.training) for part in module.modules()]
    module.eval()
    try:
        yield
    finally:
        for part, mode in modes:
            part.training = mode


def _check_program(torch: Any, path: pathlib.Path) -> None:
    """Refuses a program that would run more than PyTorch's arithmetic.

    Raises:
        RequestError: naming what it brings.
    """
    with zipfile.ZipFile(path) as archive:
        names = archive.namelist()
        if len(set(names)) < len(names):
            _refuse("two files of one name")
        for name in names:
            inside = name.partition("/")[2]
            if inside.startswith("data/sample_inputs/"):
                content = io.BytesIO(archive.read(name))
                try:  # PyTorch itself would then read it in another way
                    torch.load(content, weights_only=True)
                except Exception:
                    _refuse(f"the pickle {inside}")
            elif inside.endswith(".json"):
                _check_entry(json.loads(archive.read(name)))
            elif inside.startswith("data/") and not re.search(
                r"/(weight|tensor)_\d+$|serialization_id$", inside
            ):
                _refuse(inside)


def _check_entry(value: Any) -> None:
    if isinstance(value, list):
        for item in value:
            _check_entry(item)
    elif isinstance(value, dict):
        checks = [
            ("target", _CALLED, "inputs" in value),
            ("expr_str", _FORMULA, True),
        ]
        for key, allowed, applies in checks:
            text = str(value.get(key) or "")
            if applies and key in value and not allowed.fullmatch(text):
                _refuse(text[:80])
        for text in value.get("guards_code") or ():
            if not _GUARD.fullmatch(text):
                _refuse(text[:80])
        if value.get("use_pickle"):
            _refuse("a pickle")
        _check_entry(list(value.values()))


def _refuse(what: str) -> None:
    raise RequestError(
        f"It brings {what}, which would be run. Export its model: {_EXPORT}."
    )
