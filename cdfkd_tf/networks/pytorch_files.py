"""Tensors in files of PyTorch, read without PyTorch and without running code.

A file of `torch.save` is a pickle, a small program, beside raw numbers. Only tensors
and plain containers are made of it; whatever else it would build stays an empty shell.

Importable without TensorFlow.
"""

import io
import json
import math
import pathlib
import pickle
import struct
import zipfile
from collections import OrderedDict
from collections.abc import Callable, Mapping
from typing import Any, BinaryIO

import numpy as np

from cdfkd_tf.errors import RequestError, reason

# PyTorch's and safetensors' names of types -> NumPy's; bfloat16 is made of its bits.
_TYPES = {
    **{"Float": "<f4", "Double": "<f8", "Half": "<f2", "BFloat16": "bfloat16"},
    **{"Long": "<i8", "Int": "<i4", "Short": "<i2", "Char": "i1", "Byte": "u1"},
    **{"Bool": "?", "F32": "<f4", "F64": "<f8", "F16": "<f2", "BF16": "bfloat16"},
    **{"I64": "<i8", "I32": "<i4", "I16": "<i2", "I8": "i1", "U8": "u1", "BOOL": "?"},
}
# What training scripts call the table of weights in a larger table, the plainest first.
_WRAPPERS = (
    *("state_dict", "model_state_dict", "model_state", "model", "net", "network"),
    *("module", "params", "weights", "ema", "params_ema", "state_dict_ema"),
    *("model_ema", "ema_state_dict"),
)
_OF_TOOLS = ("module.", "_orig_mod.")  # left by PyTorch's parallelism and compiler
_OF_SCRIPTS = ("model.", "net.", "network.", "backbone.", "encoder.", "student.")
_LEGACY_MAGIC = 0x1950A86A20F9469CFC6C


def read_state_dict(file: pathlib.Path) -> dict[str, np.ndarray]:
    """The weights in a file, without wrappers and prefixes of training scripts.

    Args:
        file: of `torch.save`, safetensors or NumPy's `.npz`, told by its content.

    Returns:
        Name -> array as PyTorch lays it out; half precision becomes float32.

    Raises:
        RequestError: missing or unreadable file, a whole pickled model, no table of
            tensors, a tensor with NaN or infinite values.
    """
    if not file.is_file():
        raise RequestError(f"There is no checkpoint {file}. Check --checkpoint.")
    try:
        table = _read(file)
    except RequestError as error:
        raise RequestError(f"Cannot read {file}: {error}") from error
    except Exception as error:  # each format breaks in its own way
        raise RequestError(
            f"Cannot read {file}: expected weights saved by torch.save, safetensors or "
            f"numpy.savez; it is cut off, damaged or another kind of file "
            f"({type(error).__name__}: {reason(error)})"
        ) from error
    for name, array in table.items():
        if array.dtype.kind == "f" and not np.isfinite(array).all():
            count = array.size - np.isfinite(array).sum()
            raise RequestError(
                f"Tensor {name} in {file} holds {count} NaN or infinite values of "
                f"{array.size}; training must have diverged. Give an earlier file."
            )
    return table


def _read(file: pathlib.Path) -> dict[str, np.ndarray]:
    with file.open("rb") as stream:
        head = stream.read(16)
        stream.seek(0)
        if head.startswith(b"PK"):
            with zipfile.ZipFile(stream) as archive:
                names = archive.namelist()
                if all(name.endswith(".npy") for name in names):
                    with np.load(file, allow_pickle=False) as arrays:
                        return _plain_names(dict(arrays))
                return _weights_in(_read_zip(archive, names))
        # In memory: there, nobody reads more than there is.
        content = io.BytesIO(stream.read())
    if head[8:9] == b"{":
        return _plain_names(_read_safetensors(content))
    return _weights_in(_read_legacy(content))


def _read_safetensors(stream: BinaryIO) -> dict[str, np.ndarray]:
    (length,) = struct.unpack("<Q", stream.read(8))
    header, data = json.loads(stream.read(length)), stream.read()
    header.pop("__metadata__", None)
    return {
        name: _numbers(data[slice(*row["data_offsets"])], row["dtype"]).reshape(
            row["shape"]
        )
        for name, row in header.items()
    }


def _read_zip(archive: zipfile.ZipFile, names: list[str]) -> Any:
    (pickled,) = (name for name in names if name.rpartition("/")[2] == "data.pkl")
    root = pickled.removesuffix("data.pkl")
    if f"{root}constants.pkl" in names:
        raise RequestError(f"it is a TorchScript program. {_SAVE}")

    def load(key: str) -> bytes:
        return archive.read(f"{root}data/{key}")

    return _Unpickler(io.BytesIO(archive.read(pickled)), load).load()


def _read_legacy(stream: BinaryIO) -> Any:
    """As before PyTorch 1.6: pickles one behind the other, the numbers at the end."""
    storages: dict[str, bytes] = {}
    first = _Unpickler(stream, storages.__getitem__)
    if first.load() != _LEGACY_MAGIC:
        raise RequestError(f"it is a pickle, but not of torch.save. {_SAVE}")
    for _ in ("version", "system"):
        _Unpickler(stream, storages.__getitem__).load()
    content = _Unpickler(stream, storages.__getitem__)
    table, keys = content.load(), _Unpickler(stream, storages.__getitem__).load()
    for key in keys:
        (count,) = struct.unpack("<q", stream.read(8))
        width = np.dtype(_TYPES[content.types[key]].replace("bfloat16", "<u2")).itemsize
        storages[key] = stream.read(count * width)
    return table


_SAVE = (
    "Save the weights where it was made: torch.save(model.state_dict(), 'weights.pt')"
)


class _Shell:
    """In the place of whatever a pickle would build: takes all, does nothing."""

    def __new__(cls, *args: Any, **keywords: Any) -> "_Shell":
        return super().__new__(cls)

    def __init__(self, *args: Any, **keywords: Any):
        pass

    def __setstate__(self, state: Any) -> None:
        pass

    def __setitem__(self, key: Any, value: Any) -> None:
        pass

    def append(self, item: Any) -> None:
        """Drops it, as pickles fill lists by this."""

    def extend(self, items: Any) -> None:
        """Likewise."""

    def __hash__(self) -> int:
        return id(self)


class _Tensor:
    """A view of numbers that may still have to be read.

    Args:
        storage: type and a function that reads the bytes.
        offset: of the first number.
        shape: of the tensor.
        strides: in numbers.
    """

    def __init__(self, storage, offset, shape, strides, *_):
        (self._type, self._load), self._offset = storage, offset
        self._shape, self._strides = tuple(shape), tuple(strides)

    def array(self) -> np.ndarray:
        """The numbers, `shape`."""
        numbers = _numbers(self._load(), self._type)
        steps = [s * (n - 1) for n, s in zip(self._shape, self._strides)]
        within = min(steps, default=0) >= 0 and self._offset >= 0
        if not math.prod(self._shape):
            return np.zeros(self._shape, numbers.dtype)
        if not within or self._offset + sum(steps) >= len(numbers):
            raise ValueError("a tensor reaches beyond its numbers")
        return np.lib.stride_tricks.as_strided(
            numbers[self._offset :],
            self._shape,
            [stride * numbers.itemsize for stride in self._strides],
        ).copy()


def _tensor_of_bytes(storage, offset, shape, strides, grad, hooks, dtype, *_):
    """As newer types are stored: the type stands beside the bytes."""
    names = {"bfloat16": "BF16", "float16": "F16", "float32": "F32", "float64": "F64"}
    kind = names[dtype.__name__]
    return _Tensor((kind, storage[1]), offset, shape, strides)


_MADE: dict[tuple[str, str], Callable] = {
    ("collections", "OrderedDict"): OrderedDict,
    ("torch", "Size"): tuple,
    ("torch._utils", "_rebuild_tensor"): _Tensor,
    ("torch._utils", "_rebuild_tensor_v2"): _Tensor,
    ("torch._utils", "_rebuild_tensor_v3"): _tensor_of_bytes,
    ("torch._utils", "_rebuild_parameter"): lambda data, *_: data,
    ("torch._utils", "_rebuild_parameter_with_state"): lambda data, *_: data,
    ("torch._tensor", "_rebuild_from_type_v2"): lambda make, _, args, __: make(*args),
}


# The one in Python: that in C makes as much room as a damaged file asks for.
class _Unpickler(pickle._Unpickler):
    """Makes tensors and plain containers, and shells of the rest.

    Args:
        stream: the pickle.
        load: key of a storage -> its bytes, called when all is read.
    """

    def __init__(self, stream: BinaryIO, load: Callable[[str], bytes]):
        super().__init__(stream, encoding="latin1")
        self._bytes, self.types = load, {}

    def find_class(self, module: str, name: str) -> Any:
        """Never imports."""
        made = _MADE.get((module, name))
        return made or type(name, (_Shell,), {"__module__": module})

    def persistent_load(self, pid: Any) -> Any:
        """A storage, as its type and what reads it; or a class beside its source."""
        place, kind, key, *_ = pid
        if place == "module":
            return kind
        self.types[key] = kind.__name__.removesuffix("Storage")
        return self.types[key], lambda: self._bytes(key)


def _numbers(data: bytes, kind: str) -> np.ndarray:
    dtype = _TYPES[kind]
    if dtype == "bfloat16":
        return (np.frombuffer(data, "<u2").astype("<u4") << 16).view("<f4")
    numbers = np.frombuffer(data, dtype)
    return numbers.astype("float32") if dtype == "<f2" else numbers


def _weights_in(content: Any) -> dict[str, np.ndarray]:
    """The table of tensors in what a file holds, however deep."""
    if isinstance(content, _Shell):
        kind = f"{type(content).__module__}.{type(content).__name__}"
        raise RequestError(
            f"it is a whole pickled object ({kind}), a program that is not run. {_SAVE}"
        )
    if not isinstance(content, Mapping):
        kind = type(content).__name__.strip("_").lower()
        raise RequestError(f"it holds a {kind}, no table of weights. {_SAVE}")
    inner = [content[name] for name in _WRAPPERS if name in content]
    inner = [item for item in inner if isinstance(item, (Mapping, _Shell))]
    if inner:
        return _weights_in(inner[0])
    tensors = {n: t.array() for n, t in content.items() if isinstance(t, _Tensor)}
    if tensors:
        return _plain_names(tensors)
    tables = [item for item in content.values() if isinstance(item, Mapping)]
    if len(tables) == 1:
        return _weights_in(tables[0])
    names = ", ".join(map(str, list(content)[:5])) or "nothing"
    raise RequestError(f"it holds {names}, and no weights among them. {_SAVE}")


def _plain_names(tensors: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    while True:
        prefixes = [p for p in _OF_TOOLS if any(n.startswith(p) for n in tensors)]
        prefixes += [p for p in _OF_SCRIPTS if all(n.startswith(p) for n in tensors)]
        if not prefixes or not tensors:
            return tensors
        tensors = {n.removeprefix(prefixes[0]): v for n, v in tensors.items()}
