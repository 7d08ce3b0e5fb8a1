"""TFLite's standard metadata, which MediaPipe and other readers of TFLite files know.

A FlatBuffer of its own (`TFLITE_METADATA`) within the file: pixel values, class names,
description, licence. Tables and slots: tensorflow/tflite-support, metadata_schema.fbs.
"""

from typing import Any

import flatbuffers
import numpy as np

LABELS = "labels.txt"  # within the ZIP archive at the file's end
_IDENTIFIER = b"M001"
_PARSER = "1.0.0"  # the oldest that knows these tables
_NORMALISATION, _IMAGE, _FEATURE = 1, 2, 1  # of unions: what the next slot holds
_AXIS_LABELS = 2  # a kind of file: a name per line, in the order of an axis
_COLOURS = {1: 2, 3: 1}  # channels -> greyscale, RGB


def standard_metadata(description: dict[str, Any]) -> bytes:
    """The FlatBuffer.

    Pixels 0..255 become the network's input by `(pixel - mean) / std`, for an int8 file
    then by its input's scale, which is 1/255.

    Args:
        description: from `describe`; what it lacks is left out.
    """
    image = description.get("input", {})
    labels = {
        0: LABELS,
        1: "One class per line, in the order of the outputs.",
        2: _AXIS_LABELS,
    }
    pixels = {
        0: "image",
        1: "Picture, scaled to height and width.",
        3: {0: _IMAGE, 1: {0: _COLOURS.get(image.get("channels"), 0)}},
        4: [{0: _NORMALISATION, 1: {0: [0.0], 1: [255.0]}}],
        5: {0: [1.0], 1: [0.0]},
    }
    classes = {
        0: "probability",
        1: "One probability per class.",
        3: {0: _FEATURE, 1: {}},
        5: {0: [1.0], 1: [0.0]},
        6: [labels],
    }
    about = {
        0: f"{description.get('student', 'student')}, {description.get('dataset', '')}",
        1: f"{description.get('task', '')}; one network distilled from several by "
        f"{description.get('method', '')}".strip("; "),
        2: description.get("version", ""),
        3: [{2: [pixels], 3: [classes]}],
        4: description.get("made_by", ""),
        5: description.get("licence", ""),
        7: _PARSER,
    }
    builder = flatbuffers.Builder(1024)
    builder.Finish(_written(builder, about), _IDENTIFIER)
    return bytes(builder.Output())


def _written(builder: flatbuffers.Builder, value: Any) -> int:
    """Offset of a text, a list (of floats or tables) or a table (slot -> value).

    A whole number stands in its table: a byte, as all enumerations here.
    """
    if isinstance(value, str):
        return builder.CreateString(value)
    if isinstance(value, list) and isinstance(value[0], float):
        return builder.CreateNumpyVector(np.array(value, "float32"))
    if isinstance(value, list):
        offsets = [_written(builder, item) for item in value]
        builder.StartVector(4, len(offsets), 4)
        for offset in reversed(offsets):
            builder.PrependUOffsetTRelative(offset)
        return builder.EndVector()
    slots = {
        slot: item if isinstance(item, int) else _written(builder, item)
        for slot, item in value.items()
    }
    builder.StartObject(max(slots, default=-1) + 1)
    for slot, item in slots.items():
        if isinstance(value[slot], int):
            builder.PrependUint8Slot(slot, item, 0)
        else:
            builder.PrependUOffsetTRelativeSlot(slot, item, 0)
    return builder.EndObject()
