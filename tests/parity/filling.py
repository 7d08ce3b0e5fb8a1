"""The filling rule of the recorded networks: every tensor drawn from its name."""

import json
import pathlib
import zlib

import numpy as np

FOLDER = pathlib.Path(__file__).parent
RECORDED = json.loads((FOLDER / "parity.json").read_text())


def draw(salt: str, name: str, shape) -> np.ndarray:
    """Standard normal numbers that depend on the two names only."""
    seed = zlib.crc32(f"{salt}/{name}".encode())
    return np.random.default_rng(seed).standard_normal(shape).astype("float32")


def fill(salt: str, specification) -> dict[str, np.ndarray]:
    """PyTorch-layout tensors for a list of `[name, shape]`."""
    return {name: _tensor(salt, name, shape) for name, shape in specification}


def load(name: str) -> dict[str, np.ndarray]:
    """The recorded numbers of one file."""
    with np.load(FOLDER / f"{name}.npz") as arrays:
        return dict(arrays)


def _tensor(salt, name, shape):
    seed = zlib.crc32(f"{salt}/{name}".encode())
    n = np.random.default_rng(seed).standard_normal(shape)
    kind = name.rpartition(".")[2]
    if kind == "running_var":
        n = np.exp(0.2 * n)
    elif kind == "running_mean":
        n = 0.2 * n
    elif kind == "bias":
        n = 0.1 * n
    elif len(shape) == 1:
        n = 1 + 0.1 * n
    else:
        n = n * np.sqrt(2 / np.prod(shape[1:]))
    return n.astype("float32")
