"""Which classes each given teacher knows, by their names; equal names are one class."""

import ast
import json
import pathlib
import warnings
import zipfile
from collections.abc import Callable, Sequence
from typing import Any

from cdfkd_tf.errors import DistillationWarning, RequestError
from cdfkd_tf.teachers.class_map import ClassMap

# Inside a model file that is an archive, or within a SavedModel's folder.
_LISTS, _METADATA = ("classes.txt", "labels.txt"), "metadata.json"
_ENTRIES = ("labels", "classes", "names")  # of an ONNX file's own metadata
_FOLDERS = ("", "assets", "assets.extra")


def told_classes(
    flag: str,
    names: Sequence[str | pathlib.Path],
    load: Callable[[], Sequence[Any] | None] = lambda: None,
) -> list[tuple[str, ...]] | None:
    """Names of the classes that each teacher knows, in the order of its columns.

    From `--teacher_classes`; else from inside the model files (of ONNX: its metadata's
    `labels`, `classes` or `names`) or beside them:
    `MODEL.classes.txt` (for MODEL.keras) or `classes.txt`, a name per line.

    Args:
        flag: `--teacher_classes`: teachers between semicolons, of each the names
            between commas, or a file with a name per line.
        names: the teachers' files, or what they are called.
        load: the models; called where a file tells names.

    Returns:
        None if not all tell any.

    Raises:
        RequestError: a flag for other teachers, or a name that stands twice.
    """
    if flag:
        told = [_listed(item.strip()) for item in flag.split(";")]
        if len(told) != len(names):
            raise RequestError(
                f"--teacher_classes names the classes of {len(told)} teachers, between "
                f"semicolons; there are {len(names)}."
            )
    else:
        told = [
            _found(pathlib.Path(name), lambda i=i: (load() or [None] * (i + 1))[i])
            for i, name in enumerate(names)
        ]
        if not all(told):
            return None
    for name, classes in zip(names, told):
        repeated = sorted({c for c in classes if classes.count(c) > 1})
        if repeated or len(classes) < 2:
            raise RequestError(
                f"The classes of teacher {name} must be two different names or more; "
                f"got {', '.join(classes[:20]) or 'none'}. Check --teacher_classes or "
                "the list beside the model."
            )
    return told


def union_of(told: Sequence[Sequence[str]]) -> tuple[str, ...]:
    """All names, each once, in the order in which the teachers tell them."""
    return tuple(dict.fromkeys(name for classes in told for name in classes))


def map_of(told: Sequence[Sequence[str]], whole: Sequence[str]) -> ClassMap:
    """Which class of the whole each teacher's columns stand for.

    Args:
        told: from `told_classes`.
        whole: names of the C classes.

    Raises:
        RequestError: a name that is not among them, or a class that no teacher knows.
    """
    known, union = set(whole), union_of(told)
    foreign = [name for name in union if name not in known]
    unknown = [name for name in whole if name not in set(union)]
    for wrong, what in (
        (foreign, "teachers know classes that the data set lacks"),
        (unknown, "no teacher knows classes of the data set"),
    ):
        if wrong:
            raise RequestError(
                f"{what[0].upper()}{what[1:]}: {', '.join(wrong[:10])}. It has "
                f"{', '.join(whole[:20])}; the teachers {', '.join(union[:20])}. Equal "
                "names are one class: check --teacher_classes."
            )
    places = {name: place for place, name in enumerate(whole)}
    return ClassMap([[places[n] for n in classes] for classes in told], len(whole))


def _listed(item: str) -> tuple[str, ...]:
    file = pathlib.Path(item)
    try:
        text = file.read_text() if item and file.is_file() else item.replace(",", "\n")
    except (OSError, ValueError) as error:
        raise RequestError(f"Cannot read the class names in {item}: {error}") from None
    return _lines(text)


def _lines(text: str) -> tuple[str, ...]:
    return tuple(line.strip() for line in text.splitlines() if line.strip())


def _found(file: pathlib.Path, load: Callable[[], Any]) -> tuple[str, ...]:
    """What a file says of its own, or what stands beside it; empty: nothing."""
    if not file.exists():
        return ()
    beside = [file.with_name(f"{file.stem}.classes.txt"), file.with_name(_LISTS[0])]
    for place, classes in [
        (f"inside {file}", _inside(file)),
        *((str(path), _listed(str(path))) for path in beside if path.is_file()),
    ]:
        if not classes or classes == tuple(map(str, range(len(classes)))):
            continue  # numbers tell nothing
        shape = getattr(load(), "output_shape", None)
        columns = shape[-1] if isinstance(shape, tuple) else None
        if isinstance(columns, int) and columns != len(classes):
            warnings.warn(
                f"The {len(classes)} class names {place} are not used: teacher {file} "
                f"answers {columns} classes. --teacher_classes names them.",
                DistillationWarning,
                stacklevel=2,
            )
            continue
        return classes
    return ()


def _inside(file: pathlib.Path) -> tuple[str, ...]:
    if file.suffix == ".onnx":
        texts = _onnx_metadata(file)
    elif file.is_dir():
        parts = {
            name: (file / folder / name)
            for folder in _FOLDERS
            for name in (*_LISTS, _METADATA)
            if (file / folder / name).is_file()
        }
        texts = {name: path.read_text(errors="replace") for name, path in parts.items()}
    elif zipfile.is_zipfile(file):
        with zipfile.ZipFile(file) as archive:
            present = [n for n in (*_LISTS, _METADATA) if n in archive.namelist()]
            texts = {
                name: archive.read(name).decode(errors="replace") for name in present
            }
    else:
        return ()
    for name in (*_LISTS, *_ENTRIES):
        if name in texts:
            return _entry(texts[name])
    try:
        classes = json.loads(texts.get(_METADATA, "{}")).get("classes", ())
    except (ValueError, AttributeError):
        return ()
    return tuple(map(str, classes)) if isinstance(classes, list) else ()


def _entry(text: str) -> tuple[str, ...]:
    """A list or a table of places as JSON or Python writes them, or a name per line."""
    try:
        value = ast.literal_eval(text)
    except (ValueError, SyntaxError, MemoryError, RecursionError):
        return _lines(text)
    if isinstance(value, dict):  # of places, numbers or their text
        value = [value[key] for key in sorted(value, key=lambda key: str(key).rjust(9))]
    return tuple(map(str, value)) if isinstance(value, list) else _lines(text)


def _onnx_metadata(file: pathlib.Path) -> dict[str, str]:
    """Entry -> text; empty without the package, or of what is no such file."""
    try:
        import onnx

        proto = onnx.load(file, load_external_data=False)
    except Exception:  # whoever opens the network says what is wrong with it
        return {}
    return {entry.key: entry.value for entry in proto.metadata_props}
