"""What a file or folder is, by its content, and the way in for what is not read here.

Importable without TensorFlow.
"""

import pathlib
import re
import tarfile
import zipfile
from collections.abc import Iterable

import h5py

from cdfkd_tf.errors import RequestError

KERAS, HDF5, SAVED_MODEL = "a Keras archive", "a Keras HDF5 file", "a SavedModel"
ONNX, TFLITE = "an ONNX file", "a TFLite file"
PROGRAM = "a PyTorch program"  # of torch.export.save
_HEAD = 1024  # bytes that tell what a file is
_ENDINGS = (".keras", ".h5", ".hdf5")
_WEIGHTS_ONLY = (
    "weights without their network. Build it in Python, call "
    "model.load_weights(...), and save the whole with model.save('model.keras')"
)
_TORCH = (
    "weights of PyTorch. python -m cdfkd_tf.tools.import_torch --help says how those "
    "of ResNets and wide ResNets become a .keras file; export other networks, with "
    "torch.onnx.export(model, (image,), 'model.onnx', optimize=False)"
)
_SAVE_AGAIN = "Fetch or save it again"


def recognise(path: pathlib.Path, role: str) -> tuple[str, pathlib.Path]:
    """What to load, `KERAS` to `TFLITE`, and the file or folder of it.

    Args:
        path: a file, or a folder with one model; of the numbered versions of a
            SavedModel the newest is taken.
        role: what messages call it.

    Raises:
        RequestError: nothing there, or no model that is read here: what it is, and
            what to do with it.
    """
    try:
        if path.is_dir():
            return _in_folder(path, role)
        if not path.exists():
            raise RequestError(f"There is no {role} file {path}. Check the name.")
        if path.name == "saved_model.pb":
            return SAVED_MODEL, path.parent
        kind = _of_file(path)
    except PermissionError:
        kind = "closed: you may not read it"
    if kind in (KERAS, HDF5, ONNX, TFLITE, PROGRAM):
        return kind, path
    raise RequestError(f"Cannot read {role} {path}: it is {kind}.")


def _in_folder(folder: pathlib.Path, role: str) -> tuple[str, pathlib.Path]:
    inside = sorted(item.name for item in folder.iterdir())
    if "saved_model.pb" in inside:
        return SAVED_MODEL, folder
    if "config.json" in inside and "model.weights.h5" in inside:
        return KERAS, folder
    saved = [name for name in inside if (folder / name / "saved_model.pb").is_file()]
    if saved and all(name.isdigit() for name in saved):
        return SAVED_MODEL, folder / max(saved, key=int)
    models = saved + [name for name in inside if name.endswith(_ENDINGS)]
    if models:
        names = ",".join(str(folder / name) for name in models[:4])
        more = ",..." if len(models) > 4 else ""
        what = f"it is a folder around {len(models)} model(s). Name them: {names}{more}"
    elif any(name.endswith(".index") for name in inside):
        what = f"it is a folder of TensorFlow checkpoints, {_WEIGHTS_ONLY}"
    else:
        holds = f"it holds {_some(inside)}" if inside else "it is empty"
        what = (
            "it is a folder: expected a .keras file, or a SavedModel with "
            f"saved_model.pb inside; {holds}"
        )
    raise RequestError(f"Cannot read {role} {folder}: {what}.")


def _of_file(path: pathlib.Path) -> str:
    """`KERAS` to `TFLITE`, or what else it is and the way in; stands after "it is"."""
    with path.open("rb") as file:
        head = file.read(_HEAD)
    if not head:
        return f"empty. {_SAVE_AGAIN}"
    if head.startswith(b"PK"):
        return _of_zip(path)
    if head.startswith(b"\x89HDF\r\n\x1a\n"):
        return _of_hdf5(path)
    if head[4:8] == b"TFL3":
        return TFLITE
    if head.startswith(b"\x80") and b"\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19" in head[:16]:
        return _TORCH
    if head[:1] == b"\x80" and head[1:2] in b"\x02\x03\x04\x05":
        return (
            "a Python pickle, a program that is not run. Save a Keras model with "
            "model.save('model.keras')"
        )
    if re.match(rb"[\s\S]{3}\0{5}\{\s*\"", head):
        return f"a safetensors file, {_TORCH}"
    if re.match(rb"\x08\x01\x12[\x80-\xff]", head):
        return (
            "the saved_model.pb of a SavedModel under another name. Name the folder "
            "that holds it together with variables/"
        )
    if re.match(rb"\x08[\x03-\x20][\x12\x1a\x22\x2a\x32\x3a\x42\x72]", head):
        return ONNX
    if re.match(rb"\x0a[\x00-\xff]{1,3}\x0a.[\w./-]+\x12.[A-Z]\w+", head):
        return (
            "a frozen graph of TensorFlow 1, without signature. Save it as a "
            "SavedModel with tf.compat.v1.saved_model.simple_save"
        )
    if head.startswith((b"\x1f\x8b", b"BZh", b"\xfd7zXZ", b"7z\xbc\xaf")):
        return _packed(path)
    if head[257:262] == b"ustar":
        return _packed(path)
    return _of_text(head)


def _of_text(head: bytes) -> str:
    if head.startswith(b"version https://git-lfs"):
        return "a pointer of Git LFS, not the model. Fetch that with: git lfs pull"
    try:
        text = head.decode("utf-8", "strict" if len(head) < _HEAD else "ignore")
    except UnicodeDecodeError:
        text = ""
    text = text.strip()
    if not text.isprintable() and not re.fullmatch(r"[^\x00-\x08\x0e-\x1f]+", text):
        text = ""
    if text.lower().startswith(("<!doctype html", "<html", "<?xml")):
        return (
            "a web page, not the model: the address leads to a page about it. Fetch "
            "the file itself"
        )
    if text.startswith("{"):
        return (
            f"JSON text, at most the plan of a network. Save the network with its "
            f"weights: model.save('model.keras'); it begins {text[:40]!r}"
        )
    if text:
        return f"a text file that begins {text[:40]!r}. Check the name"
    return f"cut off, damaged, or another kind of file. {_SAVE_AGAIN}"


def _of_zip(path: pathlib.Path) -> str:
    try:
        with zipfile.ZipFile(path) as archive:
            names = archive.namelist()
    except (zipfile.BadZipFile, EOFError):
        return (
            f"cut off or damaged, and was a .keras file or another zip. {_SAVE_AGAIN}"
        )
    last = {name.rpartition("/")[2] for name in names}
    if "config.json" in names and any("model.weights" in name for name in names):
        return KERAS
    if any(name.endswith("models/model.json") for name in names):
        return PROGRAM
    if "constants.pkl" in last and "data.pkl" in last:
        return (
            "a TorchScript program of PyTorch. Export the model itself, with "
            "torch.onnx.export(model, (image,), 'model.onnx', optimize=False)"
        )
    if "data.pkl" in last:
        return _TORCH
    if last and all(name.endswith(".npy") for name in last):
        return f"a table of NumPy arrays (.npz), {_WEIGHTS_ONLY}"
    return _around(names)


def _of_hdf5(path: pathlib.Path) -> str:
    try:
        with h5py.File(path, "r") as file:
            if "model_config" in file.attrs:
                return HDF5
            known = {"layers", "_layer_checkpoint_dependencies", "model_weights"}
            if "layer_names" in file.attrs or known & set(file):
                return _WEIGHTS_ONLY
            return (
                f"an HDF5 file without a Keras model; it holds {_some(sorted(file))}. "
                "Check the name"
            )
    except (OSError, RuntimeError):
        return f"a cut off or damaged HDF5 file. {_SAVE_AGAIN}"


def _packed(path: pathlib.Path) -> str:
    try:
        with tarfile.open(path) as archive:
            return _around(archive.getnames())
    except (tarfile.TarError, EOFError, OSError):
        return "a packed file. Unpack it and name what is inside"


def _around(names: Iterable[str]) -> str:
    names = list(names)
    for name in names:
        folder, _, file = name.rpartition("/")
        if file == "saved_model.pb":
            inside = f"its folder {folder}" if folder else "the new folder"
            return f"an archive of a SavedModel. Unpack it and name {inside}"
    models = [name for name in names if name.endswith(_ENDINGS)]
    inside = f"{models[0]} inside" if models else "the model inside"
    return f"an archive of {_some(names)}. Unpack it and name {inside}"


def _some(names: list[str]) -> str:
    return ", ".join(names[:4]) + (", ..." if len(names) > 4 else "")
