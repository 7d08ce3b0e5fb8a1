"""A converter's TFLite file, packed tighter: same operations and numbers, fewer bytes.

In files of small networks much is not weights: a name per tensor, and per channel eight
zero bytes of zero point, written for kernels and again for biases. Names of inner
tensors are left out, and equal vectors are written once; FlatBuffers allows both, so
every reader of TFLite files reads these. An int8 quickstart student loses a third.
"""

from collections.abc import Mapping, Sequence

import flatbuffers
import numpy as np
from ai_edge_litert import schema_py_generated as schema

_ALIGNMENT = 16  # as TFLite's schema demands of weights
_IDENTIFIER, _METADATA = b"TFL3", "TFLITE_METADATA"


def pack(
    content: bytes, shapes: Mapping[int, Sequence[int]], metadata: bytes = b""
) -> bytes:
    """The same network in fewer bytes.

    Args:
        content: of a TFLite file.
        shapes: of tensors, by index, for a batch of one. Converters write 1 for every
            length that depends on the batch; microcontrollers take it as it stands.
        metadata: to put in, from `standard_metadata`; empty: none.
    """
    model = schema.ModelT.InitFromPackedBuf(content)
    for index, shape in shapes.items():
        model.subgraphs[0].tensors[index].shape = np.array(shape, np.int32)
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
    if metadata:
        place = len(model.buffers)
        model.metadata.append(schema.MetadataT(name=_METADATA, buffer=place))
        model.buffers.append(schema.BufferT(data=np.frombuffer(metadata, np.uint8)))
    used = {tensor.buffer for graph in model.subgraphs for tensor in graph.tensors}
    used |= {entry.buffer for entry in model.metadata}
    for index, buffer in enumerate(model.buffers):
        if index not in used:
            buffer.data = None
    builder = _SharingBuilder(len(content))
    builder.Finish(model.Pack(builder), _IDENTIFIER)
    return bytes(builder.Output())


class _SharingBuilder(flatbuffers.Builder):
    """Writes equal vectors of numbers once, and aligns large ones."""

    def __init__(self, size: int):
        super().__init__(size)
        self._written: dict[tuple, int] = {}

    def CreateNumpyVector(self, x):
        key = (x.dtype.str, x.tobytes())
        if key not in self._written:
            self._written[key] = super().CreateNumpyVector(x)
        return self._written[key]

    def StartVector(self, elemSize, numElems, alignment):
        if elemSize * numElems >= _ALIGNMENT:
            alignment = max(alignment, _ALIGNMENT)
        return super().StartVector(elemSize, numElems, alignment)
