"""The export format of microcontrollers: the int8 network as C source.

A folder with a header and a source, for TensorFlow Lite Micro and any other runtime
that takes a TFLite file from memory.
"""

import json
import pathlib
import re
from typing import Any

import numpy as np

from cdfkd_tf.export.micro import FIGURES, estimated_arena, micro_figures
from cdfkd_tf.export.tflite import TfliteRunner, convert
from cdfkd_tf.workdir import read_json

_NAME, _DESCRIPTION = "student_int8", "metadata.json"
_PER_LINE = 16
_HEADER = """\
/* {title}

   {licence}

   Operations: {operations}. */
#ifndef STUDENT_INT8_H_
#define STUDENT_INT8_H_

#ifdef __cplusplus
extern "C" {{
#endif

/* The network, a TFLite file, aligned to 16 bytes. */
extern const unsigned char student_int8_tflite[];
extern const unsigned int student_int8_tflite_len;

/* Names of the classes, UTF-8, in the order of the outputs. */
extern const char* const student_int8_labels[];

/* Bytes for tensors ("arena"): {arena_evidence}. */
#define STUDENT_INT8_ARENA_BYTES {arena}

/* One image: bytes 0..255, row by row, the channels of a pixel together. */
#define STUDENT_INT8_HEIGHT {height}
#define STUDENT_INT8_WIDTH {width}
#define STUDENT_INT8_CHANNELS {channels}
#define STUDENT_INT8_CLASSES {classes}

/* probability = (output - ZERO_POINT) * SCALE; outputs are bytes. */
#define STUDENT_INT8_OUTPUT_SCALE {scale!r}f
#define STUDENT_INT8_OUTPUT_ZERO_POINT {zero}

#ifdef __cplusplus
}}
#endif

#endif
"""
_SOURCE = """\
#include "student_int8.h"

#ifdef __cplusplus
alignas(16)
#else
_Alignas(16)
#endif
const unsigned char student_int8_tflite[] = {{
{numbers}
}};
const unsigned int student_int8_tflite_len = {length};

const char* const student_int8_labels[] = {{
{labels}
}};
"""


def write_c_array(
    model: Any,
    calibration: np.ndarray | None,
    description: dict[str, Any],
    path: pathlib.Path,
) -> None:
    """Writes `student_int8.h`, `student_int8.c` and `metadata.json`.

    Args:
        model: Keras model, images in [0, 1] to probabilities.
        calibration: images `(n, height, width, channels)` in [0, 1] that fix value
            ranges.
        description: from `describe`.
        path: the folder to write.
    """
    content = convert(model, calibration)
    run = TfliteRunner(content)
    black = np.zeros((1, *run.image_shape), "float32")
    arena = micro_figures(content, black, run(black))[FIGURES[0]]
    measured = "measured with tflite-micro on x86-64; 32-bit devices take less"
    height, width, channels = run.image_shape
    scale, zero = run.output_quantisation
    names = [str(name) for name in description["classes"]]
    header = _HEADER.format(
        title="A student of several classifiers, made by cdfkd_tf.",
        licence=description.get("licence", ""),
        operations=", ".join(sorted(set(run.operators))),
        arena=arena or estimated_arena(content),
        arena_evidence=measured if arena else "estimated, not measured",
        height=height,
        width=width,
        channels=channels,
        classes=len(names),
        scale=scale,
        zero=zero,
    )
    lines = [content[i : i + _PER_LINE] for i in range(0, len(content), _PER_LINE)]
    source = _SOURCE.format(
        numbers="\n".join("".join(f"{byte:d}," for byte in line) for line in lines),
        length=len(content),
        labels="\n".join(f"{_quoted(name)}," for name in names) or "0",
    )
    path.mkdir()
    (path / f"{_NAME}.h").write_text(header, "utf-8")
    (path / f"{_NAME}.c").write_text(source, "ascii")
    text = json.dumps(description, indent=1, ensure_ascii=False)
    (path / _DESCRIPTION).write_text(f"{text}\n", "utf-8")


def _quoted(text: str) -> str:
    """A C string; what is no plain character as three octal digits."""
    encoded = text.encode("utf-8", "backslashreplace")
    safe = set(range(32, 127)) - set(b'"\\?')
    return '"' + "".join(chr(c) if c in safe else f"\\{c:03o}" for c in encoded) + '"'


class CArrayRunner(TfliteRunner):
    """The numbers of the source, in the LiteRT interpreter.

    Args:
        path: the folder.

    Raises:
        ValueError, RuntimeError: if they are no network.
    """

    def __init__(self, path: pathlib.Path):
        text = (path / f"{_NAME}.c").read_text("ascii")
        (numbers,) = re.findall(r"_tflite\[\] = \{([\d,\s]*)\}", text)
        super().__init__(bytes(map(int, numbers.split(",")[:-1])))
        self.description = read_json(path / _DESCRIPTION)
