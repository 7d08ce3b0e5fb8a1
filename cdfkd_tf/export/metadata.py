"""What a shipped file says about itself: classes, input, origin.

A TFLite file carries it as TFLite's associated files are carried, as a ZIP archive
behind the network: `metadata.json` and `labels.txt`, read by
`zipfile.ZipFile("student_int8.tflite")` or `unzip`. In a SavedModel it is
`assets.extra/metadata.json`.
"""

import json
import pathlib
import zipfile
from collections.abc import Sequence
from typing import Any

import cdfkd_tf

NAME, LABELS = "metadata.json", "labels.txt"
LICENCE = (
    "Made with cdfkd_tf (Apache-2.0). The weights were learned from the teachers: "
    "their licences, and those of the images they were trained on, decide what the "
    "weights may be used for."
)


def describe(
    *,
    dataset: str,
    method: str,
    student: str,
    class_names: Sequence[str],
    image_shape: Sequence[int],
    shorter_side: int = 0,
) -> dict[str, Any]:
    """The description of a predictor, the same for all its files.

    Args:
        dataset: whose classes are known.
        method: how the student was taught.
        student: its backbone.
        class_names: one per class, in the order of the outputs.
        image_shape: `(height, width, channels)` of the input.
        shorter_side: images are scaled to it and cropped in the centre; 0: scaled to
            `image_shape` as they are.
    """
    height, width, channels = image_shape
    return {
        "made_by": "cdfkd_tf",
        "version": cdfkd_tf.__version__,
        "task": "image classification",
        "dataset": dataset,
        "method": method,
        "student": student,
        "classes": list(class_names),
        "input": {
            "height": height,
            "width": width,
            "channels": channels,
            "channel_order": "RGB" if channels == 3 else "grey",
            "shorter_side": shorter_side,
        },
        "output": "one probability per class",
        "licence": LICENCE,
    }


def of_format(description: dict[str, Any], name: str) -> dict[str, Any]:
    """`description` completed for one export format, a key of `FILES`."""
    values = (
        {"type": "uint8", "range": [0, 255]}
        if name == "tflite_int8"
        else {"type": "float32", "range": [0.0, 1.0]}
    )
    return {
        **description,
        "format": name,
        "input": {**description["input"], **values},
    }


def attach(path: pathlib.Path, description: dict[str, Any]) -> None:
    """Writes `description` into a TFLite file or a SavedModel folder."""
    text = json.dumps(description, indent=1, ensure_ascii=False) + "\n"
    if path.is_dir():
        extra = path / "assets.extra"
        extra.mkdir(exist_ok=True)
        (extra / NAME).write_text(text, encoding="utf-8")
        return
    labels = "".join(f"{name}\n" for name in description["classes"])
    with zipfile.ZipFile(path, "a", zipfile.ZIP_DEFLATED) as archive:
        for name, content in ((NAME, text), (LABELS, labels)):
            # ZipInfo's own date: the same run writes the same bytes.
            entry = zipfile.ZipInfo(name)
            entry.compress_type = zipfile.ZIP_DEFLATED
            archive.writestr(entry, content)


def read(path: pathlib.Path) -> dict[str, Any]:
    """The description in an exported file or folder; empty if it holds none."""
    if path.is_dir():
        file = path / "assets.extra" / NAME
        return json.loads(file.read_text(encoding="utf-8")) if file.exists() else {}
    if not zipfile.is_zipfile(path):
        return {}
    with zipfile.ZipFile(path) as archive:
        known = NAME in archive.namelist()
        return json.loads(archive.read(NAME)) if known else {}
