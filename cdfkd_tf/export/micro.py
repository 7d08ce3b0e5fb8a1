"""An int8 file in the interpreter of microcontrollers, and the memory it takes there.

Measured where the package `tflite-micro` is installed (Linux, x86-64), else estimated
from the graph.
"""

import importlib.util
import math
import re
import tempfile
from typing import Any

import numpy as np

from cdfkd_tf.runtime.child_process import in_child
from cdfkd_tf.runtime.silence_stderr import quiet_stderr

PACKAGE = "tflite_micro"
FIGURES = ("arena_bytes", "micro_unsupported", "micro_max_difference")
_ALIGNMENT = 16
_PER_OPERATION, _PER_SCALE = 350, 5  # bytes, see `estimated_arena`
_TOTAL = re.compile(r"Arena allocation total (\d+) bytes")
_LACKS = re.compile(r"op for \w+ opcode '(\w+)'")


def micro_figures(content: bytes, images: np.ndarray, expected: np.ndarray) -> dict:
    """How the file does in that interpreter; all None where it is not installed.

    Args:
        content: of a TFLite file that takes bytes.
        images: `(n, height, width, channels)` in [0, 1].
        expected: probabilities `(n, C)` of the same file in LiteRT.

    Returns:
        `arena_bytes`: the least memory for tensors that it starts with, a multiple of
        16 (pointers have 64 bits here: 32-bit devices take less). None if it does not
        start; then `micro_unsupported`, else empty, names what it lacks.
        `micro_max_difference`: of a probability.
    """
    if not importlib.util.find_spec(PACKAGE):
        return dict.fromkeys(FIGURES)
    # This interpreter aborts on what it does not like.
    figures = in_child(lambda: _measured(content, images, expected))
    broken = {**dict.fromkeys(FIGURES), "micro_unsupported": ["its process died"]}
    return figures or broken


def _measured(content: bytes, images: np.ndarray, expected: np.ndarray) -> dict:
    figures: dict[str, Any] = dict.fromkeys(FIGURES)
    with tempfile.TemporaryFile() as log:
        try:
            with quiet_stderr(log):
                run = _MicroRunner(content)
                outputs = np.stack([run(image) for image in images])
                run.interpreter.print_allocations()
        except RuntimeError as error:  # its words are on standard error alone
            words = _text(log).splitlines() or [str(error)]
            lacks = _LACKS.findall(words[0])
            return {**figures, "micro_unsupported": lacks or words[:1]}
        recorded = int(_TOTAL.search(_text(log))[1])
    figures["arena_bytes"] = _least_arena(content, recorded)
    figures["micro_unsupported"] = []
    figures["micro_max_difference"] = float(np.abs(outputs - expected).max())
    return figures


def _text(log) -> str:
    log.seek(0)
    return log.read().decode("utf-8", "replace")


def _least_arena(content: bytes, recorded: int) -> int:
    """By halving: what was recorded is not enough, as it has no room for planning."""
    low, high = recorded // _ALIGNMENT, 4 * recorded // _ALIGNMENT + 256
    with quiet_stderr():
        while high - low > 1:
            middle = (low + high) // 2
            try:
                _MicroRunner(content, middle * _ALIGNMENT)
                high = middle
            except RuntimeError:
                low = middle
    return high * _ALIGNMENT


class _MicroRunner:
    """The file in tflite-micro's interpreter; an image `(height, width, channels)`.

    Raises:
        RuntimeError: an operation that it lacks, or too small an arena.
    """

    def __init__(self, content: bytes, arena_bytes: int | None = None):
        from tflite_micro.python.tflite_micro import runtime

        size = arena_bytes or 2**22 + 16 * len(content)
        self.interpreter = runtime.Interpreter.from_bytes(content, arena_size=size)

    def __call__(self, image: np.ndarray) -> np.ndarray:
        pixels = np.rint(image[None] * 255).clip(0, 255).astype("uint8")
        self.interpreter.set_input(pixels, 0)
        self.interpreter.invoke()
        quantised = self.interpreter.get_output_details(0)["quantization_parameters"]
        output = self.interpreter.get_output(0)[0].astype("float32")
        return (output - quantised["zero_points"]) * quantised["scales"]


def estimated_arena(content: bytes) -> int:
    """About how many bytes the arena takes, rather too many than too few.

    What lives at once of the tensors, and a share per operation and per scale, which
    fits students of 6 to 97 operations in tflite-micro on x86-64: 3% to 25% too many.

    Args:
        content: of a TFLite file.
    """
    from ai_edge_litert import schema_py_generated as schema

    model = schema.ModelT.InitFromPackedBuf(content)
    graph = model.subgraphs[0]
    born = dict.fromkeys(graph.inputs, 0)
    dies = dict.fromkeys(graph.outputs, len(graph.operators))
    for step, operation in enumerate(graph.operators):
        born |= dict.fromkeys(operation.outputs, step)
        dies |= dict.fromkeys(set(operation.inputs) - set(graph.outputs), step)
    lives = {i: (born[i], dies.get(i, born[i])) for i in born}
    sizes = {i: _bytes_of(graph.tensors[i]) for i in born}
    peak = max(
        sum(sizes[i] for i, (first, last) in lives.items() if first <= step <= last)
        for step in range(len(graph.operators))
    )
    scales = sum(len(t.quantization.scale) for t in graph.tensors if _scaled(t))
    total = peak + _PER_OPERATION * len(graph.operators) + _PER_SCALE * scales
    return -(-total // _ALIGNMENT) * _ALIGNMENT


def _bytes_of(tensor) -> int:
    count = math.prod(map(int, () if tensor.shape is None else tensor.shape))
    size = 4 if tensor.type in (0, 2) else 1  # float32 and int32, or bytes
    return -(-count * size // _ALIGNMENT) * _ALIGNMENT


def _scaled(tensor) -> bool:
    return tensor.quantization is not None and tensor.quantization.scale is not None
