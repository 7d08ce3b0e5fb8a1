"""Weights are read out of PyTorch's files without PyTorch, and nothing else is.

They are written here with Python's pickle and modules that are called as PyTorch's.
"""

import collections
import io
import json
import pickle
import re
import struct
import sys
import types
import zipfile

import numpy as np
import pytest

from cdfkd_tf.errors import RequestError
from cdfkd_tf.networks.pytorch_files import read_state_dict
from tests.rows import rows
from tests.test_fuzzing import damaged

pytestmark = pytest.mark.faults

KINDS = {"f4": "Float", "f8": "Double", "f2": "Half", "i8": "Long", "u2": "BFloat16"}


class Stored:
    """An array to be stored as a tensor; unsigned 16 bits stand for bfloat16."""

    def __init__(self, array, strides=None, offset=0):
        self.array, self.offset = np.asarray(array), offset
        self.strides = strides or [s // self.array.itemsize for s in self.array.strides]

    def __reduce__(self):
        storage = Storage(self.array)
        shape, hooks = self.array.shape, collections.OrderedDict()
        place = (storage, self.offset, shape, tuple(self.strides), False, hooks)
        return sys.modules["torch._utils"]._rebuild_tensor_v2, place


class Storage:
    def __init__(self, array):
        self.content = array.ravel("K").tobytes()
        self.name = f"{KINDS[array.dtype.str[1:]]}Storage"


class Module:
    """Whatever a training script keeps beside its weights."""

    def __init__(self):
        self.a = [1]


Module.__module__, Module.__qualname__ = "torch.nn", "Module"


@pytest.fixture(autouse=True)
def pytorch(monkeypatch):
    """Modules as a pickle needs them to be written."""
    torch, utils, nn = map(types.ModuleType, ("torch", "torch._utils", "torch.nn"))
    for name in KINDS.values():
        storage = type(f"{name}Storage", (), {"__module__": "torch"})
        setattr(torch, storage.__name__, storage)

    def function(name):
        made = types.FunctionType((lambda *_: None).__code__, {}, name)
        made.__module__, made.__qualname__ = "torch._utils", name
        setattr(utils, name, made)

    function("_rebuild_tensor_v2")
    function("_rebuild_parameter")
    nn.Module = Module
    for module in (torch, utils, nn):
        monkeypatch.setitem(sys.modules, module.__name__, module)


class Parameter:
    def __init__(self, array):
        self.tensor = Stored(array)

    def __reduce__(self):
        make = sys.modules["torch._utils"]._rebuild_parameter
        return make, (self.tensor, True, collections.OrderedDict())


def pickled(content, more=()):
    """The pickle and, by key, the numbers of its storages."""
    stream, storages = io.BytesIO(), {}

    class Pickler(pickle.Pickler):
        def persistent_id(self, item):
            if not isinstance(item, Storage):
                return None
            key, kind = str(len(storages)), getattr(sys.modules["torch"], item.name)
            storages[key] = item.content
            return ("storage", kind, key, "cpu", 0, *more)

    Pickler(stream, 2).dump(content)
    return stream.getvalue(), storages


def write_zip(file, content):
    content, storages = pickled(content)
    with zipfile.ZipFile(file, "w") as archive:
        archive.writestr("net/data.pkl", content)
        for key, numbers in storages.items():
            archive.writestr(f"net/data/{key}", numbers)
    return file


def write_legacy(file, content):
    content, storages = pickled(content, more=(None,))
    parts = [pickle.dumps(0x1950A86A20F9469CFC6C, 2), pickle.dumps(1001, 2)]
    parts += [pickle.dumps({"little_endian": True}, 2), content]
    parts.append(pickle.dumps(list(storages), 2))
    for numbers in storages.values():
        width = 2 if file.name == "half" else 4
        parts += [struct.pack("<q", len(numbers) // width), numbers]
    file.write_bytes(b"".join(parts))
    return file


WRITERS = rows("write", [write_zip, write_legacy])
RNG = np.random.default_rng(0)
TABLE = {
    "conv1.weight": RNG.normal(size=(2, 3, 1, 1)).astype("float32"),
    "fc.weight": RNG.normal(size=(4, 2)).astype("float32").T,
}


def stored(table=TABLE, prefix=""):
    return {prefix + name: Stored(array) for name, array in table.items()}


def assert_table(found):
    assert list(found) == list(TABLE)
    for name, array in TABLE.items():
        np.testing.assert_array_equal(found[name], array)


@WRITERS
def test_tensors_are_read_in_their_strides(write, tmp_path):
    for _ in range(2):
        assert_table(read_state_dict(write(tmp_path / "any name", stored())))


WRAPPED = [
    *({name: stored()} for name in ("state_dict", "model", "model_state", "net")),
    *({name: stored()} for name in ("model_state_dict", "params", "ema", "weights")),
    {"epoch": Stored(np.float32(3)), "model": {"module": stored(prefix="module.")}},
    {"state_dict": stored(prefix="model._orig_mod."), "extra": Module(), "loss": 0.5},
    {"optimizer": 1, "mine": stored()},
    {name: Parameter(array) for name, array in TABLE.items()},
]


@rows("content", WRAPPED)
@WRITERS
def test_wrappers_prefixes_and_parameters_are_taken_off(write, content, tmp_path):
    assert_table(read_state_dict(write(tmp_path / "a.ckpt", content)))


@pytest.mark.slow
@WRITERS
def test_half_precisions_become_float32(write, tmp_path):
    half = np.array([0.5, -3.0, 65504.0], "float16")
    brain = np.array([1.5, -2.0, 3e38], "float32")
    bits = (brain.view("uint32") >> 16).astype("uint16")  # cuts the last places
    table = {"a": Stored(half), "b": Stored(bits)}
    found = read_state_dict(write(tmp_path / "half", table))
    np.testing.assert_array_equal(found["a"], half)
    np.testing.assert_allclose(found["b"], brain, rtol=2**-7)
    assert {array.dtype for array in found.values()} == {np.dtype("float32")}


def test_safetensors_and_npz_are_read_and_told_by_content(tmp_path):
    data = b"".join(array.tobytes() for array in TABLE.values())
    header, start = {"__metadata__": {"format": "pt"}}, 0
    for name, array in TABLE.items():
        ends = [start, start + array.nbytes]
        shape = list(array.shape)
        header[name] = {"dtype": "F32", "shape": shape, "data_offsets": ends}
        start += array.nbytes
    header = json.dumps(header).encode()
    file = tmp_path / "a.bin"
    file.write_bytes(struct.pack("<Q", len(header)) + header + data)
    assert_table(read_state_dict(file))
    with file.open("wb") as stream:
        np.savez(stream, **{f"module.{name}": array for name, array in TABLE.items()})
    assert_table(read_state_dict(file))


@pytest.mark.slow
@WRITERS
def test_whole_pickled_model_is_refused_with_the_way_out(write, tmp_path):
    for content in (Module(), {"model": Module(), "epoch": 1}):
        with pytest.raises(
            RequestError, match=r"whole .*torch\.nn\.Module.*torch\.save\(model\.state"
        ):
            read_state_dict(write(tmp_path / "a.pt", content))


@rows(
    "content, words",
    [
        ([1, 2], "it holds a list, no table of weights"),
        (Stored(TABLE["fc.weight"]), "it holds a tensor, no table"),
        ({"epoch": 3, "loss": 0.5}, "it holds epoch, loss, and no weights among them"),
        ({"a": Stored(np.ones(3, "f4"), strides=[9])}, "a tensor reaches beyond its"),
        ({"a": Stored(np.ones(3, "f4"), offset=-1)}, "a tensor reaches beyond its"),
        (
            {"a": Stored(np.array([1, np.nan], "f4"))},
            r"Tensor a in .* 1 NaN or inf.* 2",
        ),
    ],
)
def test_file_without_usable_weights_tells_what_it_holds(content, words, tmp_path):
    with pytest.raises(RequestError, match=words):
        read_state_dict(write_zip(tmp_path / "a.pt", content))


def test_damaged_and_other_files_are_refused_in_one_sentence(tmp_path):
    whole = [
        write_zip(tmp_path / "a", stored()),
        write_legacy(tmp_path / "b", stored()),
    ]
    contents = [file.read_bytes() for file in whole]
    cut = [content[: len(content) // share] for content in contents for share in (2, 9)]
    for content in (b"", b"text", b"\x80\x02.", pickle.dumps(3), *cut):
        (tmp_path / "c.pth").write_bytes(content)
        with pytest.raises(RequestError, match=r"Cannot read .*c\.pth: ") as info:
            read_state_dict(tmp_path / "c.pth")
        assert "\n" not in str(info.value)
    with pytest.raises(RequestError, match=r"no checkpoint .*absent\.pt"):
        read_state_dict(tmp_path / "absent.pt")


@pytest.mark.slow
def test_files_with_flipped_bits_are_refused_or_read_as_numbers(fuzz_seeds, tmp_path):
    content = write_legacy(tmp_path / "a.pt", stored()).read_bytes()
    outcomes = set()
    for seed in fuzz_seeds:
        (tmp_path / "a.pt").write_bytes(damaged(content, seed))
        try:
            outcomes.add(type(read_state_dict(tmp_path / "a.pt")))
        except RequestError as error:
            outcomes.add(type(error))
            assert "a.pt" in str(error) and "\n" not in str(error)
    assert RequestError in outcomes


@WRITERS
def test_code_in_a_pickle_is_not_run(write, tmp_path):
    mark = tmp_path / "mark"

    class Hostile:
        def __init__(self, function, *arguments):
            self.call = function, arguments

        def __reduce__(self):
            return self.call

    import os

    for function, *arguments in [
        (os.system, f"touch {mark}"),
        (eval, f"open({str(mark)!r}, 'w')"),
        (open, str(mark), "w"),
        (np.load, str(mark), "w+"),
        (re.compile, "("),
        (getattr, [], "append"),
    ]:
        table = {**stored(), "extra": Hostile(function, *arguments)}
        assert_table(read_state_dict(write(tmp_path / "a.pt", table)))
        assert not mark.exists()
