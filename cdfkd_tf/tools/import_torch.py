"""Turns weights of PyTorch into a Keras teacher, without PyTorch.

cdfkd-tf import --checkpoint=resnet34.pt --network=resnet34 --dataset=cifar100 \
    --output=teacher_0.keras

Reads a state dict (.pt .pth .ckpt .bin of torch.save, .safetensors, .npz) of
torchvision's ResNets of basic blocks (resnet18, resnet34) or of the common wide ResNets
(wrn16_2, wrn40_2, ...). For images of your own give --image_shape=height,width,channels
in place of --dataset.
"""

import argparse
import pathlib
import sys

from cdfkd_tf.data.specs import plain_spec, spec_of
from cdfkd_tf.errors import RequestError
from cdfkd_tf.networks.pytorch_files import read_state_dict
from cdfkd_tf.runtime.files import replacing
from cdfkd_tf.runtime.silence_stderr import quiet_tensorflow
from cdfkd_tf.tools import Parser


def main(arguments: list[str] | None = None) -> int:
    """Runs the command line; returns the exit code."""
    parser = Parser("import", __doc__)
    parser.add_argument("--checkpoint", required=True, help="file of the weights")
    parser.add_argument("--network", required=True, help="resnet34, wrn40_2, ...")
    images = parser.add_mutually_exclusive_group(required=True)
    images.add_argument("--dataset", help="a known one, for size and normalisation")
    images.add_argument("--image_shape", help="height,width,channels of others")
    parser.add_argument("--output", required=True, help="a .keras file")
    return parser.run(_convert, arguments)


def _convert(options: argparse.Namespace) -> None:
    output = pathlib.Path(options.output).expanduser()
    if output.suffix != ".keras":
        raise RequestError(f"--output must end in .keras; got {output}.")
    tensors = read_state_dict(pathlib.Path(options.checkpoint).expanduser())
    if options.dataset:
        spec, hint = spec_of(options.dataset), ""
    else:
        matrices = [array for array in tensors.values() if array.ndim == 2]
        classes = len(matrices[-1]) if matrices else 0
        spec = plain_spec("none", _shape(options.image_shape), classes)
        hint = (
            " It takes pixels as its training did: say so with --teacher_input "
            "(imagenet for torchvision's)."
        )
    quiet_tensorflow()
    from cdfkd_tf.networks.classifiers import build_classifier
    from cdfkd_tf.networks.pytorch_weights import load_pytorch_tensors

    names = {} if options.dataset else {"input_name": "image"}
    model = build_classifier(
        options.network, spec.image_shape, spec.num_classes, **names
    )
    load_pytorch_tensors(model, tensors)
    with replacing(output) as temporary:
        model.save(temporary)
    print(
        f"{output}: {options.network} with {len(tensors)} tensors, {spec.num_classes} "
        f"classes. Use --teachers.{hint}"
    )


def _shape(text: str) -> tuple[int, ...]:
    sides = text.split(",")
    if len(sides) != 3 or not all(side.strip().isdigit() for side in sides):
        raise RequestError(
            f"--image_shape must be height,width,channels, such as 64,64,3; got {text}."
        )
    return tuple(map(int, sides))


if __name__ == "__main__":
    sys.exit(main())
