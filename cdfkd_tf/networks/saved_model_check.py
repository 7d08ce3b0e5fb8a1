"""Which SavedModels are loaded: those whose operations only compute.

A SavedModel is a program. TensorFlow runs parts of it while it loads it, and the rest
when it is called. A classifier has no reason to call Python, to open files or sockets,
or to load code; all of these need a string (a path, an address, code) or a state.

Importable without TensorFlow.
"""

import pathlib
from collections.abc import Iterator
from typing import Any

from cdfkd_tf.errors import RequestError

# With a state or a string, and yet only computation: variables, calls, random numbers,
# pictures decoded from bytes.
_HARMLESS = """
    VarHandleOp ReadVariableOp AssignVariableOp AssignAddVariableOp AssignSubVariableOp
    VarIsInitializedOp ResourceGather ResourceGatherNd DisableCopyOnRead VariableV2
    Assign AssignAdd AssignSub PartitionedCall StatefulPartitionedCall If StatelessIf
    While StatelessWhile Case StatelessCase Enter RefEnter Assert RandomUniform
    RandomUniformInt RandomStandardNormal TruncatedNormal RandomShuffle Multinomial
    StatefulUniform StatefulStandardNormalV2 StatefulTruncatedNormal RngReadAndSkip
    Einsum ScaleAndTranslate ImageProjectiveTransformV2 ImageProjectiveTransformV3
    TensorArrayV3 TensorArrayReadV3 TensorArrayWriteV3 TensorArrayGatherV3
    TensorArrayScatterV3 TensorArraySizeV3 DecodeJpeg DecodePng DecodeBmp DecodeImage
"""
# Every SavedModel holds these, to be saved again; nothing else may call them.
_OF_THE_SAVER = """
    SaveV2 RestoreV2 MergeV2Checkpoints ShardedFilename StringJoin StaticRegexFullMatch
"""


def check_saved_model(folder: pathlib.Path) -> None:
    """Refuses a SavedModel that could do more than compute.

    Args:
        folder: of the SavedModel; nothing of it is run.

    Raises:
        RequestError: naming the operations.
    """
    from tensorflow.core.protobuf import saved_model_pb2

    content = (folder / "saved_model.pb").read_bytes()
    found = set()
    for graph in saved_model_pb2.SavedModel.FromString(content).meta_graphs:
        library = graph.graph_def.library.function
        bodies = {f.signature.name: f.node_def for f in library}
        called = _called(graph, bodies)
        for name, nodes in {"": graph.graph_def.node, **bodies}.items():
            allowed = bodies.keys() | (() if name in called else _OF_THE_SAVER.split())
            operations = {node.op for node in nodes} - allowed
            found |= {name for name in operations if not _computes(name)}
    if found:
        raise RequestError(
            f"SavedModel {folder} holds {', '.join(sorted(found))}, which could run "
            "code or touch files; it is not loaded. Save the bare classifier."
        )


def _computes(name: str) -> bool:
    """Whether an operation is known, and is harmless or has no state and no string."""
    from tensorflow.core.framework.types_pb2 import DT_STRING

    from cdfkd_tf.runtime.keras_internals import operation_definition

    operation = operation_definition(name)
    if operation is None or name in _HARMLESS.split():
        return operation is not None
    strings = [
        attribute
        for attribute in operation.attr
        if attribute.type in ("string", "list(string)", "func", "list(func)")
        and not attribute.allowed_values.list.s  # such as "SAME" and "VALID"
    ]
    strings += [a for a in operation.input_arg if a.type == DT_STRING]
    return not (operation.is_stateful or strings)


def _called(graph: Any, bodies: dict[str, Any]) -> set[str]:
    """Functions that run on loading or in a call: all but the saver's own."""
    waiting = list(graph.object_graph_def.concrete_functions)
    outputs = {
        tensor.name.split(":")[0]
        for signature in graph.signature_def.values()
        for tensor in signature.outputs.values()
    }
    for node in _upstream(outputs, graph.graph_def.node):
        waiting += _functions_of(node)
    called: set[str] = set()
    while waiting:
        name = waiting.pop()
        if name in bodies and name not in called:
            called.add(name)
            for node in bodies[name]:
                waiting += _functions_of(node)
    return called


def _upstream(names: set[str], nodes: Any) -> Iterator[Any]:
    """The nodes with these names and all that they read."""
    waiting, by_name = list(names), {node.name: node for node in nodes}
    while waiting:
        node = by_name.pop(waiting.pop().lstrip("^").split(":")[0], None)
        if node is not None:
            yield node
            waiting += node.input


def _functions_of(node: Any) -> list[str]:
    """The functions that a node calls, by any of its attributes or as its operation."""
    found = [node.op]
    for value in node.attr.values():
        found += [value.func.name, *(item.name for item in value.list.func)]
    return found
