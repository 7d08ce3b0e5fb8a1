"""Opens ONNX files: their networks as Keras models through which gradients pass.

A file is read, never run: its operators are names, each with a row in `OPERATORS`.
Shapes and weights that the file computes from constants are computed by NumPy.
"""

import collections
import contextlib
import pathlib
import re
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import keras
import numpy as np

from cdfkd_tf.errors import RequestError
from cdfkd_tf.imported.operators import OPERATORS, Node, constant
from cdfkd_tf.imported.tensors import Symbol, Unsupported

_LARGEST = 2**28  # numbers in a constant that a file asks to be made
_FLOAT, _HALF = 1, (10, 16)  # ONNX's numbers for types
_INPUTS = {_FLOAT: "float32", 2: "uint8", 3: "int8", 6: "int32", 7: "int64"}
_INPUTS |= dict.fromkeys((*_HALF, 11), "float32")


def open_onnx(content: pathlib.Path | Any, name: str) -> keras.Model:
    """The network of an ONNX file as a functional Keras model.

    Images come channels last, whatever the file takes, and any count of them at once.
    BatchNormalizations, convolutions and products with weights are Keras's layers, with
    the file's weights.

    Args:
        content: a file, with its external data beside it, or an `onnx.ModelProto`.
        name: of the model.

    Raises:
        Unsupported: naming the operator that has no counterpart here.
        RequestError: the package onnx is missing.
    """
    onnx = _library()
    is_file = isinstance(content, pathlib.Path)
    proto = onnx.load(content) if is_file else content
    if proto.functions:
        proto = onnx.inliner.inline_local_functions(proto)
    with _float32():
        return _Graph(onnx, proto).model(re.sub(r"\W", "_", name) or "network")


def num_images(shape: Sequence[Any]) -> tuple[int | None, bool, tuple]:
    """What the sides of a file's input mean.

    Args:
        shape: with the images first; whole numbers where they are fixed.

    Returns:
        The count of images, None for any; whether channels come first; and one image,
        channels last, None for what is open.
    """
    batch, *sides = (side if isinstance(side, int) else None for side in shape)
    first = len(sides) == 3 and sides[0] in (1, 3) and sides[2] not in (1, 3)
    return batch, first, (*sides[1:], sides[0]) if first else tuple(sides)


def _library() -> Any:
    try:
        import onnx
        import onnx.inliner
        import onnx.reference
    except ImportError:
        raise RequestError(
            "ONNX files are read by the package onnx: pip install 'cdfkd_tf[onnx]'."
        ) from None
    return onnx


@contextlib.contextmanager
def _float32() -> Iterator[None]:
    """Layers made in the block compute in float32, whatever a run asks for."""
    policy = keras.config.dtype_policy()
    keras.config.set_dtype_policy("float32")
    try:
        yield
    finally:
        keras.config.set_dtype_policy(policy)


class _Graph:
    """Goes through a file's operations in order."""

    def __init__(self, onnx: Any, proto: Any):
        self.onnx, self.graph = onnx, proto.graph
        self.opset = max(
            (s.version for s in proto.opset_import if s.domain in ("", "ai.onnx")),
            default=1,
        )
        self.values: dict[str, Any] = {"": None}
        self.names: collections.Counter = collections.Counter()
        self._add_constants(self.graph)

    def model(self, name: str) -> keras.Model:
        """The whole."""
        images = self._images()
        self._run(self.graph)
        outputs = [self.values[output.name] for output in self.graph.output]
        outputs = [o for o in outputs if isinstance(o, Symbol) and o.rank >= 2]
        if not outputs:
            raise Unsupported("it answers no row of numbers per image")
        return keras.Model(images, _rows(outputs[0]).tensor, name=name)

    def _images(self) -> Any:
        given = [i for i in self.graph.input if i.name not in self.values]
        if len(given) != 1:
            raise Unsupported(f"it takes {len(given)} tensors, no batch of images")
        kind = given[0].type.tensor_type
        shape = [d.dim_value or d.dim_param or None for d in kind.shape.dim]
        if not 2 <= len(shape) <= 4 or kind.elem_type not in _INPUTS:
            raise Unsupported(f"it takes {tuple(shape)}, no batch of images")
        self.batch, first, sides = num_images(shape)
        if len(sides) == 3 and sides[-1] is None:
            raise Unsupported("its input does not tell channels; export it with 3")
        images = keras.Input(
            sides, dtype=_INPUTS[kind.elem_type], name=self._name(given[0].name, "")
        )
        axes = (0, 3, 1, 2) if first else range(len(shape))
        self.values[given[0].name] = Symbol(images, tuple(axes))
        return images

    def _add_constants(self, graph: Any) -> None:
        for tensor in graph.initializer:
            array = self.onnx.numpy_helper.to_array(tensor)
            self.values[tensor.name] = _plain_numbers(array)
        if graph.sparse_initializer:
            raise Unsupported("sparse weights")

    def _run(self, graph: Any) -> None:
        needed = _needed(graph)
        readers: collections.Counter = collections.Counter()
        for node in needed:
            readers.update(node.input)
        readers.update(output.name for output in graph.output)
        following = {name: node for node in needed for name in node.input}
        for node in needed:
            if node.output[0] in self.values:
                continue  # taken along by the operation before
            bias = self._bias(node, readers, following)
            try:
                made = self._made(node, None if bias is None else bias[1])
            except Unsupported as error:
                place = f" ({node.name})" if node.name else ""
                raise Unsupported(f"operator {node.op_type}{place}: {error}") from error
            made = made if isinstance(made, list) else [made]
            self.values.update(zip(node.output, made))
            if bias:
                self.values[bias[0]] = made[0]

    def _made(self, node: Any, bias: np.ndarray | None) -> Any:
        if node.domain not in ("", "ai.onnx"):
            raise Unsupported(f"it is of {node.domain}, not of ONNX itself")
        inputs = [self.values[name] for name in node.input]
        operator = node.op_type
        if operator == "If":
            return self._branch(node, *inputs)
        if operator == "SequenceAt":
            return inputs[0][int(constant(inputs[1], "index"))]
        if not any(isinstance(value, Symbol | list) for value in inputs):
            return self._folded(node, inputs)
        attributes = {
            a.name: self._plain(self.onnx.helper.get_attribute_value(a))
            for a in node.attribute
        }
        if operator not in OPERATORS:
            raise Unsupported("it has no counterpart here")
        if operator == "CastLike" and not isinstance(inputs[0], Symbol):
            return inputs[0].astype("float32")
        name = self._name(node.name or node.output[0], operator)
        row = Node(operator, name, attributes, self.opset, self.batch, bias)
        made = OPERATORS[operator](row, *inputs)
        return [made] if operator == "SplitToSequence" else made

    def _branch(self, node: Any, condition: Any) -> list:
        taken = "then_branch" if constant(condition, "condition") else "else_branch"
        (graph,) = (a.g for a in node.attribute if a.name == taken)
        self._add_constants(graph)
        self._run(graph)
        return [self.values[output.name] for output in graph.output]

    def _folded(self, node: Any, inputs: list) -> Any:
        """What a constant operation makes."""
        if node.op_type in ("ConstantOfShape", "Expand", "Tile"):
            counts = np.asarray(inputs[-1], "float64")
            if np.prod(counts) * np.size(inputs[0]) > _LARGEST:
                raise Unsupported(f"a constant of {np.prod(counts):.0f} numbers")
        known = {n: v for n, v in zip(node.input, inputs) if n}
        evaluator = self.onnx.reference.ReferenceEvaluator(
            node, opsets={"": self.opset}
        )
        made = evaluator.run(None, known)
        return [_plain_numbers(np.asarray(value)) for value in made]

    def _bias(self, node, readers, following) -> tuple[str, np.ndarray] | None:
        """What is added to a product with weights, and the name of the sum."""
        if node.op_type != "MatMul" or readers[node.output[0]] != 1:
            return None
        after = following.get(node.output[0])
        left, kernel = (self.values.get(name) for name in node.input)
        if after is None or after.op_type != "Add" or not _is_array(kernel, 2):
            return None
        if not isinstance(left, Symbol):
            return None
        (other,) = [name for name in after.input if name != node.output[0]] or [""]
        added = self.values.get(other)
        fits = _is_array(added, 1) and len(added) == kernel.shape[1]
        return (after.output[0], added) if fits else None

    def _plain(self, value: Any) -> Any:
        if isinstance(value, bytes):
            return value.decode("utf-8", "replace")
        if isinstance(value, self.onnx.TensorProto):
            return self.onnx.numpy_helper.to_array(value)
        return value

    def _name(self, name: str, operator: str) -> str:
        name = re.sub(r"[^\w.-]+", "_", name).strip("_.") or "layer"
        if operator and re.fullmatch(r"[a-z0-9_]+", name):
            name = f"{name}.{operator}"  # Keras makes such names itself
        self.names[name] += 1
        count = self.names[name]
        return name if count == 1 else f"{name}.{count}"


def _needed(graph: Any) -> list:
    """The operations on which the outputs depend, in order."""
    wanted = {output.name for output in graph.output}
    kept = []
    for node in reversed(graph.node):
        if wanted & set(node.output):
            wanted.update(_names_read(node))
            kept.append(node)
    return kept[::-1]


def _names_read(node: Any) -> Iterable[str]:
    yield from node.input
    for attribute in node.attribute:
        for inner in attribute.g.node:
            yield from _names_read(inner)
        yield from (output.name for output in attribute.g.output)


def _is_array(value: Any, rank: int) -> bool:
    return isinstance(value, np.ndarray) and value.ndim == rank


def _plain_numbers(array: np.ndarray) -> np.ndarray:
    """Single precision in the place of half, which NumPy computes with as it can."""
    kind = array.dtype.name
    return array.astype("float32") if kind in ("float16", "bfloat16") else array


def _rows(symbol: Symbol) -> Symbol:
    """In the file's order; maps of one pixel without their sides."""
    if symbol.rank > 2 and all(side == 1 for side in symbol.shape[2:]):
        symbol = symbol.reshaped(symbol.shape[:2])
    return symbol.plain()
