"""SavedModels are programs: what they would do is read off the file before it runs.

TensorFlow runs parts of a SavedModel while it loads it, and the rest when it is asked.
A classifier has no reason to call Python, to open files or sockets, or to load code.
"""

import pathlib
import re
from collections.abc import Iterator
from typing import Any

from cdfkd_tf.errors import RequestError

_FORBIDDEN = re.compile(
    "PyFunc|File|Dataset|Reader|Rpc|Summary|Debug|Save|Restore|Checkpoint|Remote|"
    "CustomCall|TPU|Print|DumpTensor|Calibration|Skipgram|RecordInput|Unigram|Vocab|"
    "RemapMatrix|ImmutableConst|LMDB|Sql"
)
# Every SavedModel holds these, to be saved again; nobody may call them.
_OF_THE_SAVER = {"SaveV2", "RestoreV2", "MergeV2Checkpoints", "ShardedFilename"}


def check_saved_model(folder: pathlib.Path) -> None:
    """Refuses a SavedModel that could do more than compute.

    Args:
        folder: of the SavedModel; nothing of it is run.

    Raises:
        RequestError: naming the operations.
    """
    from tensorflow.core.protobuf import saved_model_pb2  # takes seconds

    content = (folder / "saved_model.pb").read_bytes()
    found = set()
    for graph in saved_model_pb2.SavedModel.FromString(content).meta_graphs:
        called = set(_called(graph))
        for name, node in _nodes(graph):
            bad = _FORBIDDEN.search(node.op)
            if bad and (name in called or node.op not in _OF_THE_SAVER):
                found.add(node.op)
    if found:
        raise RequestError(
            f"SavedModel {folder} holds {', '.join(sorted(found))}, which could run "
            "code or touch files; it is not loaded. Save the bare classifier."
        )


def _nodes(graph: Any) -> Iterator[tuple[str, Any]]:
    """Every node with the function it stands in; "" for the graph itself."""
    for node in graph.graph_def.node:
        yield "", node
    for function in graph.graph_def.library.function:
        for node in function.node_def:
            yield function.signature.name, node


def _called(graph: Any) -> Iterator[str]:
    """Functions that run on loading or on asking: all but the saver's own."""
    objects = graph.object_graph_def
    waiting = list(objects.concrete_functions)
    outputs = {
        tensor.name.split(":")[0]
        for signature in graph.signature_def.values()
        for tensor in signature.outputs.values()
    }
    by_name = {node.name: node for node in graph.graph_def.node}
    waiting += [f for node in _upstream(outputs, by_name) for f in _functions_of(node)]
    bodies = {f.signature.name: f for f in graph.graph_def.library.function}
    seen = set()
    while waiting:
        name = waiting.pop()
        if name in seen or name not in bodies:
            continue
        seen.add(name)
        yield name
        for node in bodies[name].node_def:
            waiting += _functions_of(node)


def _upstream(names: set[str], by_name: dict[str, Any]) -> Iterator[Any]:
    """The nodes with these names and all that they read."""
    waiting, seen = list(names), set()
    while waiting:
        name = waiting.pop().lstrip("^").split(":")[0]
        if name in seen or name not in by_name:
            continue
        seen.add(name)
        yield by_name[name]
        waiting += by_name[name].input


def _functions_of(node: Any) -> list[str]:
    """The functions that a node calls, by any of its attributes or as its operation."""
    found = [node.op]
    for value in node.attr.values():
        found += [value.func.name, *(item.name for item in value.list.func)]
    return [name for name in found if name]
