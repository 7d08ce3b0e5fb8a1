"""The export formats: one object each. No other module knows their names.

A new format is a module that writes and loads its file, and a row here.
"""

import dataclasses
import functools
import importlib.util
import pathlib
from collections.abc import Callable
from typing import Any

import numpy as np

from cdfkd_tf.errors import RequestError
from cdfkd_tf.export import c_array, onnx, saved_model, tflite
from cdfkd_tf.export.runner import Runner


@dataclasses.dataclass(frozen=True)
class Format:
    """One way to write the predictor.

    Attributes:
        name: its key in `FORMATS` and on the command line.
        file: name of the file or folder.
        write: `(model, calibration, description, path)`: writes the file, the
            description in it; `calibration` is None or, for a `calibrated` format,
            images `(n, height, width, channels)` in [0, 1].
        load: path of the file to a `Runner`.
        tolerance: largest difference of a probability from Keras's; what differs more
            is broken, not rounded. 1: any, its arithmetic is coarse.
        input_type: of the image that the file takes.
        input_range: of the image's values.
        calibrated: whether images fix value ranges, so that it computes with integers;
            only then are the weights fine-tuned for its arithmetic.
        remedy: what to do if it disagrees with Keras, for the warning.
        extra: name of the package's extra that it needs, if any.
        packages: modules of that extra.
    """

    name: str
    file: str
    write: Callable[[Any, np.ndarray | None, dict[str, Any], pathlib.Path], None]
    load: Callable[[pathlib.Path], Runner]
    tolerance: float
    input_type: str = "float32"
    input_range: tuple[float, float] = (0.0, 1.0)
    calibrated: bool = False
    remedy: str = ""
    extra: str = ""
    packages: tuple[str, ...] = ()

    def check_installed(self) -> None:
        """Raises RequestError if a package that the format needs is missing."""
        missing = [p for p in self.packages if not importlib.util.find_spec(p)]
        if missing:
            raise RequestError(
                f"The format {self.name} needs {', '.join(missing)}: "
                f"pip install 'cdfkd_tf[{self.extra}]'."
            )


def _tflite(arithmetic: str, tolerance: float, how: dict, **more: Any) -> Format:
    return Format(
        f"tflite_{arithmetic}",
        f"student_{arithmetic}.tflite",
        functools.partial(tflite.write_tflite, **how),
        tflite.TfliteRunner,
        tolerance,
        **more,
    )


_INT8: dict[str, Any] = {
    "input_type": "uint8",
    "input_range": (0, 255),
    "calibrated": True,
    "remedy": "--int8_finetune_steps=200 may help, or tflite_dynamic.",
}
_ROWS = (
    Format(
        "c_array",
        "c_array",
        c_array.write_c_array,
        c_array.CArrayRunner,
        tolerance=1.0,
        **_INT8,
    ),
    Format(
        "saved_model",
        "saved_model",
        saved_model.write_saved_model,
        saved_model.SavedModelRunner,
        tolerance=1e-4,
    ),
    Format(
        "onnx",
        "student.onnx",
        onnx.write_onnx,
        onnx.OnnxRunner,
        tolerance=1e-4,
        extra="onnx",
        packages=("tf2onnx", "onnx", "onnxruntime"),
    ),
    _tflite("float32", 1e-4, {"quantised": False}),
    _tflite("float16", 0.05, {"half": True}),
    _tflite("dynamic", 1.0, {}),
    _tflite("int8", 1.0, {}, **_INT8),
)
# `predict` prefers the last one that is there: C source comes first, then from the
# largest file to the smallest.
FORMATS = {row.name: row for row in _ROWS}


def format_of(path: pathlib.Path) -> Format:
    """The format that an exported file, or a folder, is loaded as.

    By its name, else by its ending; an unknown one is taken for the smallest format's.
    """
    if (path / "student_int8.c").is_file():
        return FORMATS["c_array"]
    ending = "" if path.is_dir() else path.suffix
    known = [r for r in FORMATS.values() if pathlib.Path(r.file).suffix == ending]
    return (known or list(FORMATS.values()))[-1]
