"""A converter's TFLite file, packed tighter: same operations and numbers, fewer bytes.

Small networks pay for what large ones hide: a name per tensor, eight zero bytes of zero
point per channel, written out for weights and again for biases. Here names of inner
tensors go, and equal lists are written once; FlatBuffers allows both, so every reader
of TFLite files reads these.
"""

import flatbuffers
from ai_edge_litert import schema_py_generated as schema

_ALIGNMENT = 16  # as TFLite's schema demands of weights
_IDENTIFIER = b"TFL3"


def pack(content: bytes) -> bytes:
    """The same network in fewer bytes.

    Args:
        content: a TFLite file.
    """
    model = schema.ModelT.InitFromPackedBuf(content)
    model.description = None
    for graph in model.subgraphs:
        kept = {*graph.inputs, *graph.outputs}
        for index, tensor in enumerate(graph.tensors):
            if index not in kept:
                tensor.name = None
    # What converters write for their own statistics.
    model.metadata = [
        entry for entry in model.metadata or () if entry.name == b"min_runtime_version"
    ]
    used = {tensor.buffer for graph in model.subgraphs for tensor in graph.tensors}
    used |= {entry.buffer for entry in model.metadata}
    for index, buffer in enumerate(model.buffers):
        if index not in used:
            buffer.data = None
    builder = _SharingBuilder(len(content))
    builder.Finish(model.Pack(builder), _IDENTIFIER)
    return bytes(builder.Output())


def has_floats(content: bytes) -> bool:
    """Whether any tensor of a TFLite file holds floating-point numbers."""
    model = schema.ModelT.InitFromPackedBuf(content)
    kinds = (schema.TensorType.FLOAT16, schema.TensorType.FLOAT32)
    return any(t.type in kinds for graph in model.subgraphs for t in graph.tensors)


class _SharingBuilder(flatbuffers.Builder):
    """Writes equal number lists and strings once, and aligns large ones."""

    def __init__(self, size: int):
        super().__init__(size)
        self._written: dict[tuple, int] = {}

    def CreateNumpyVector(self, x):
        key = (x.dtype.str, x.tobytes())
        if key not in self._written:
            self._written[key] = super().CreateNumpyVector(x)
        return self._written[key]

    def CreateString(self, s, *args, **kwargs):
        if s not in self._written:
            self._written[s] = super().CreateString(s, *args, **kwargs)
        return self._written[s]

    def StartVector(self, elemSize, numElems, alignment):
        if elemSize * numElems >= _ALIGNMENT:
            alignment = max(alignment, _ALIGNMENT)
        return super().StartVector(elemSize, numElems, alignment)
