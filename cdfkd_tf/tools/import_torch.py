"""Turns a published PyTorch checkpoint into a Keras teacher.

python -m cdfkd_tf.tools.import_torch --checkpoint=resnet34.pt --network=resnet34 \
    --dataset=cifar100 --output=teacher_0.keras

Reads a state dict from `.pt`/`.pth` (needs PyTorch, never unpickles code),
`.safetensors` (needs safetensors) or `.npz`. PyTorch's names are those of torchvision's
ResNets and of the common wide ResNets.
"""

import argparse
import importlib
import pathlib
import sys
from collections.abc import Mapping

import numpy as np

from cdfkd_tf.data.specs import spec_of
from cdfkd_tf.errors import RequestError, one_line
from cdfkd_tf.runtime.files import replacing
from cdfkd_tf.runtime.silence_stderr import quiet_tensorflow
from cdfkd_tf.tools import exit_code

_WRAPPERS = ("state_dict", "model", "net", "model_state_dict")
_PREFIX = "module."  # left by PyTorch's data parallelism


def main(arguments: list[str] | None = None) -> int:
    """Runs the command line; returns the exit code."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--checkpoint", required=True)
    parser.add_argument("--network", required=True, help="resnet34, wrn40_2, ...")
    parser.add_argument("--dataset", required=True, help="size and class count")
    parser.add_argument("--output", required=True, help="a .keras file")
    options = parser.parse_args(arguments)
    return exit_code(lambda: _convert(options))


def _convert(options: argparse.Namespace) -> None:
    spec, output = spec_of(options.dataset), pathlib.Path(options.output)
    if output.suffix != ".keras":
        raise RequestError(f"--output must end in .keras; got {output}.")
    tensors = read_tensors(pathlib.Path(options.checkpoint))
    quiet_tensorflow()
    from cdfkd_tf.networks.classifiers import build_classifier
    from cdfkd_tf.networks.pytorch_weights import load_pytorch_tensors

    model = build_classifier(options.network, spec.image_shape, spec.num_classes)
    load_pytorch_tensors(model, tensors)
    with replacing(output) as temporary:
        model.save(temporary)
    print(f"{output}: {options.network} with {len(tensors)} tensors. Use --teachers.")


def read_tensors(file: pathlib.Path) -> dict[str, np.ndarray]:
    """The state dict in `file`, without wrappers and prefixes of training scripts.

    Raises:
        RequestError: missing or unreadable file, unknown ending, missing package.
    """
    readers = {
        ".pt": _read_torch,
        ".pth": _read_torch,
        ".safetensors": lambda file: _need("safetensors.numpy").load_file(file),
        ".npz": _read_npz,
    }
    if file.suffix not in readers:
        raise RequestError(
            f"--checkpoint must end in {', '.join(readers)}; got {file}."
        )
    if not file.is_file():
        raise RequestError(f"There is no checkpoint {file}. Check --checkpoint.")
    try:
        table = readers[file.suffix](file)
    except RequestError:
        raise
    except Exception as error:  # each format breaks in its own way
        raise RequestError(
            f"Cannot read {file}: expected a state dict of plain tensors "
            f"({file.suffix}). {type(error).__name__}: {one_line(error, 200)}"
        ) from error
    return {name.removeprefix(_PREFIX): value for name, value in table.items()}


def _read_torch(file: pathlib.Path) -> dict[str, np.ndarray]:
    torch = _need("torch")
    table = torch.load(file, map_location="cpu", weights_only=True)
    while isinstance(table, Mapping):
        inner = [name for name in _WRAPPERS if isinstance(table.get(name), Mapping)]
        if not inner:
            return {n: v.numpy() for n, v in table.items() if hasattr(v, "numpy")}
        table = table[inner[0]]
    raise RequestError(
        f"{file} holds a {type(table).__name__}, not a state dict. Save "
        "model.state_dict() instead."
    )


def _read_npz(file: pathlib.Path) -> dict[str, np.ndarray]:
    with np.load(file, allow_pickle=False) as table:
        return dict(table)


def _need(module: str):
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise RequestError(
            f"This file needs the package {module.split('.')[0]}: "
            "pip install 'cdfkd_tf[torch]'."
        ) from error


if __name__ == "__main__":
    sys.exit(main())
