"""Classifies image files with an exported model: `--action=predict`, `classify`.

A TFLite or ONNX file is run without TensorFlow.
"""

import collections
import contextlib
import csv
import os
import pathlib
from collections.abc import Callable, Sequence

import numpy as np

from cdfkd_tf.data.image_files import IMAGE_SUFFIXES, find_images, read_image
from cdfkd_tf.errors import RequestError, RunError, reason
from cdfkd_tf.export.format import FORMATS, format_of
from cdfkd_tf.export.runner import Runner
from cdfkd_tf.report.tables import aligned
from cdfkd_tf.runtime.files import replacing
from cdfkd_tf.runtime.silence_stderr import quiet_tensorflow

_SHOWN = 40  # rows of the printed table; the CSV file holds all
_NAMED = 20  # unreadable files named in the message


def predict(
    images: Sequence[str],
    *,
    model: str,
    directory: pathlib.Path,
    output: pathlib.Path | None = None,
    predictor: pathlib.Path | None = None,
) -> None:
    """Prints a table of classes and writes it as a CSV file.

    Args:
        images: image files, or folders that are searched for them.
        model: an exported file or folder; empty: the smallest in `directory`.
        directory: of exported files.
        output: the CSV file; None: only printed.
        predictor: Keras file of the predictor, to show how much each header counts for
            each image; None: not shown.

    Raises:
        RequestError: no model, no readable image, or no predictor.
        RunError: some images could not be read; the others' rows are written.
    """
    files = [file for given in images for file in _image_files(given)]
    path = _model_path(model, directory)
    run = _load(path)
    weigh = _header_weights(predictor) if predictor else None
    shorter_side = run.description.get("input", {}).get("shorter_side", 0)
    names = run.description.get("classes")
    shown, unreadable, count = [], [], 0
    notes: collections.Counter[str] = collections.Counter()
    how = {"mode": "w", "encoding": "utf-8", "newline": ""}
    nowhere = contextlib.nullcontext(pathlib.Path(os.devnull))
    written = replacing(output) if output else nowhere
    with written as temporary, temporary.open(**how) as text:
        for file in files:
            try:
                image = read_image(file, run.image_shape, shorter_side, notes)[None]
            except ValueError as error:
                unreadable.append(f"{file} ({str(error).rstrip('.')})")
                continue
            weights = weigh(image)[0] if weigh else ()
            row = _row(file, run(image)[0], names, weights)
            if not count:
                writer = csv.DictWriter(text, row, lineterminator="\n")
                writer.writeheader()
            writer.writerow(row)
            count += 1
            if count <= _SHOWN:
                shown.append([row[column] for column in row if column != "class"])
        if not count:
            raise RequestError(_complaint(unreadable, len(files)))
    print(aligned([[column for column in row if column != "class"], *shown]))
    if count > _SHOWN:
        print(f"... and {count - _SHOWN} more")
    print(f"{count} images, by {path}" + f"; all of it is in {output}" * bool(output))
    for note, number in notes.items():
        print(f"{number} of {len(files)} files {note}.")
    if unreadable:
        raise RunError(_complaint(unreadable, len(files)))


def _complaint(unreadable: Sequence[str], num_files: int) -> str:
    named = "; ".join(unreadable[:_NAMED])
    more = " ..." if len(unreadable) > _NAMED else ""
    return (
        f"{len(unreadable)} of {num_files} files could not be read as images: "
        f"{named}{more}. Save them as 8-bit PNG or JPEG, or leave them out."
    )


def _image_files(given: str) -> list[pathlib.Path]:
    if not given:
        raise RequestError(
            "--action=predict needs --predict_input: a file or a folder."
        )
    path = pathlib.Path(given)
    if path.is_file():
        return [path]
    if not path.is_dir():
        raise RequestError(f"There is no {path}. Check the path of the images.")
    files, others = find_images(path)
    if not files:
        raise RequestError(
            f"{path} holds no image file: expected {', '.join(IMAGE_SUFFIXES)}. Check "
            "the path."
        )
    if others:
        print(f"{len(others)} files are left out: their names do not end like images'.")
    return files


def _model_path(given: str, directory: pathlib.Path) -> pathlib.Path:
    if given:
        if not pathlib.Path(given).exists():
            raise RequestError(f"There is no model {given}. Check its path.")
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
            f"folder. {reason(error, 1000)}"
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


def _row(file, probabilities, names, weights) -> dict[str, str]:
    names = names or list(map(str, range(len(probabilities))))
    first, *others = np.argsort(-probabilities, kind="stable")
    row = {
        # Names that are no Unicode can neither be printed nor written.
        "file": str(file).encode("utf-8", "backslashreplace").decode(),
        "class": str(first),
        "name": str(names[first]),
        "probability": f"{probabilities[first]:.4f}",
        "second": str(names[others[0]]) if others else "",
        "second_probability": f"{probabilities[others[0]]:.4f}" if others else "",
    }
    return row | {f"header_{h}": f"{weight:.3f}" for h, weight in enumerate(weights)}
