"""Classifies image files with an exported model: `--action=predict`.

A TFLite or ONNX file is run without TensorFlow.
"""

import csv
import io
import pathlib
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from PIL import Image

from cdfkd_tf.data.image_files import IMAGE_SUFFIXES, open_image
from cdfkd_tf.errors import RequestError, RunError, reason
from cdfkd_tf.export.format import FORMATS, format_of
from cdfkd_tf.export.runner import Runner
from cdfkd_tf.runtime.silence_stderr import quiet_tensorflow
from cdfkd_tf.workdir import write_text

_SHOWN = 40  # rows of the printed table; the CSV file holds all


def predict(
    images: str,
    *,
    model: str,
    directory: pathlib.Path,
    output: pathlib.Path,
    predictor: pathlib.Path | None = None,
) -> None:
    """Prints a table of classes and writes it as a CSV file.

    Args:
        images: an image file, or a folder that is searched for them.
        model: an exported file or folder; empty: the smallest in `directory`.
        directory: of exported files.
        output: the CSV file.
        predictor: Keras file of the predictor, to show how much each header counts for
            each image; None: not shown.

    Raises:
        RequestError: no model, no readable image, or no predictor.
        RunError: some images could not be read; the others' rows are written.
    """
    files = _image_files(images)
    path = _model_path(model, directory)
    run = _load(path)
    weigh = _header_weights(predictor) if predictor else None
    shorter_side = run.description.get("input", {}).get("shorter_side", 0)
    rows, unreadable = [], []
    for file in files:
        try:
            image = read_image(file, run.image_shape, shorter_side)[None]
        except (OSError, ValueError) as error:
            why = "no image" if "identify" in str(error) else str(error)
            unreadable.append(f"{file} ({why})")
            continue
        probabilities = run(image)[0]
        names = run.description.get("classes") or list(
            map(str, range(len(probabilities)))
        )
        rows.append(_row(file, probabilities, names, weigh(image)[0] if weigh else ()))
    if rows:
        text = io.StringIO()
        writer = csv.DictWriter(text, list(rows[0]), lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
        write_text(output, text.getvalue())
        print(_as_table(rows))
        print(f"{len(rows)} images, by {path}; all of it is in {output}")
    if unreadable:
        kind = RunError if rows else RequestError
        raise kind(
            f"{len(unreadable)} of {len(files)} files could not be read as images: "
            f"{'; '.join(unreadable[:5])}{' ...' if len(unreadable) > 5 else ''}. "
            f"Give image files ({', '.join(IMAGE_SUFFIXES)}) or a folder of them."
        )


def read_image(
    file: pathlib.Path, image_shape: Sequence[int], shorter_side: int = 0
) -> np.ndarray:
    """An image file as a network takes it, in [0, 1].

    Args:
        file: anything that Pillow reads.
        image_shape: `(height, width, channels)` of the result; 1 channel is grey.
        shorter_side: scale to it, then crop the centre; 0: scale as it is.

    Raises:
        OSError, ValueError: if it is no readable image.
    """
    height, width, channels = image_shape
    image = open_image(file, channels)
    if shorter_side:
        factor = shorter_side / min(image.size)
        size = [max(1, round(side * factor)) for side in image.size]
        image = image.resize(size, Image.Resampling.BILINEAR)
        left, top = (image.width - width) // 2, (image.height - height) // 2
        image = image.crop((left, top, left + width, top + height))
    elif image.size != (width, height):
        image = image.resize((width, height), Image.Resampling.BILINEAR)
    return np.asarray(image, "float32").reshape(height, width, channels) / 255


def _image_files(given: str) -> list[pathlib.Path]:
    if not given:
        raise RequestError(
            "--action=predict needs --predict_input: a file or a folder."
        )
    path = pathlib.Path(given)
    if path.is_file():
        return [path]
    if not path.is_dir():
        raise RequestError(f"There is no {path}. Check --predict_input.")
    files = sorted(f for f in path.rglob("*") if f.suffix.lower() in IMAGE_SUFFIXES)
    if not files:
        raise RequestError(
            f"{path} holds no image file: expected {', '.join(IMAGE_SUFFIXES)}. Check "
            "--predict_input."
        )
    return files


def _model_path(given: str, directory: pathlib.Path) -> pathlib.Path:
    if given:
        if not pathlib.Path(given).exists():
            raise RequestError(f"There is no model {given}. Check --predict_model.")
        return pathlib.Path(given)
    for row in reversed(FORMATS.values()):
        if (directory / row.file).exists():
            return directory / row.file
    raise RequestError(
        f"{directory} holds no exported model. Run --action=export first, check "
        "--workdir, or name a file with --predict_model."
    )


def _load(path: pathlib.Path) -> Runner:
    row = format_of(path)
    try:
        return row.load(path)
    except Exception as error:  # readers raise many kinds for a bad file
        if isinstance(error, ImportError):
            row.check_installed()
        raise RequestError(
            f"Cannot read the model {path}: expected an exported file or SavedModel "
            f"folder. {reason(error)}"
        ) from error


def _header_weights(predictor: pathlib.Path) -> Callable[[np.ndarray], np.ndarray]:
    """`(B, ...)` images to the weights of the headers `(B, H)`."""
    if not predictor.is_file():
        raise RequestError(
            f"--show_header_weights reads {predictor}, which does not exist. Check "
            "--workdir."
        )
    quiet_tensorflow()
    from keras.saving import load_model

    from cdfkd_tf.networks.aggregators import header_weights

    model = load_model(predictor, compile=False, safe_mode=True)
    return lambda images: header_weights(model, images)


def _row(file, probabilities, names, weights) -> dict[str, Any]:
    first, *others = np.argsort(-probabilities, kind="stable")
    row = {
        "file": str(file),
        "class": int(first),
        "name": str(names[first]),
        "probability": f"{probabilities[first]:.4f}",
        "second": str(names[others[0]]) if others else "",
        "second_probability": f"{probabilities[others[0]]:.4f}" if others else "",
    }
    for header, weight in enumerate(weights):
        row[f"header_{header}"] = f"{weight:.3f}"
    return row


def _as_table(rows: list[dict[str, Any]]) -> str:
    columns = [column for column in rows[0] if column != "class"]
    cells = [columns] + [[str(r[c]) for c in columns] for r in rows[:_SHOWN]]
    widths = [max(map(len, column)) for column in zip(*cells)]
    lines = ["  ".join(c.ljust(w) for c, w in zip(line, widths)) for line in cells]
    if len(rows) > _SHOWN:
        lines.append(f"... and {len(rows) - _SHOWN} more")
    return "\n".join(line.rstrip() for line in lines)
