"""Turns networks and weights of other frameworks into a Keras teacher.

cdfkd-tf import model.onnx teacher_0.keras

opens an ONNX file (or a program of torch.export, .pt2, where PyTorch is installed): its
layers, weights and BatchNormalizations.

cdfkd-tf import --checkpoint=resnet34.pt --network=resnet34 --dataset=cifar100 \
    --output=teacher_0.keras

reads, without PyTorch, a state dict (.pt .pth .ckpt .bin of torch.save, .safetensors,
.npz) of torchvision's ResNets of basic blocks (resnet18, resnet34) or of the common
wide ResNets (wrn16_2, wrn40_2, ...). For images of your own give
--image_shape=height,width,channels in place of --dataset.
"""

import argparse
import pathlib
import sys
import warnings

from cdfkd_tf.data.specs import plain_spec, spec_of
from cdfkd_tf.errors import DistillationWarning, RequestError
from cdfkd_tf.networks.pytorch_files import read_state_dict
from cdfkd_tf.runtime.files import replacing
from cdfkd_tf.runtime.silence_stderr import quiet_tensorflow
from cdfkd_tf.tools import Parser


def main(arguments: list[str] | None = None) -> int:
    """Runs the command line; returns the exit code."""
    given = sys.argv[1:] if arguments is None else arguments
    parser = Parser("import", __doc__)
    if given and not given[0].startswith("-"):
        parser.add_argument("source", help="an .onnx or .pt2 file")
        parser.add_argument("target", help="a .keras file")
        return parser.run(lambda paths: import_model(paths.source, paths.target), given)
    parser.add_argument("--checkpoint", required=True, help="file of the weights")
    parser.add_argument("--network", required=True, help="resnet34, wrn40_2, ...")
    images = parser.add_mutually_exclusive_group(required=True)
    images.add_argument("--dataset", help="a known one, for size and normalisation")
    images.add_argument("--image_shape", help="height,width,channels of others")
    parser.add_argument("--output", required=True, help="a .keras file")
    return parser.run(_convert, given)


def import_model(source: str | pathlib.Path, target: str | pathlib.Path) -> None:
    """Writes the network of a file of another framework as a Keras file.

    Args:
        source: whatever a teacher may be that shows its layers, an ONNX file say.
        target: ends in .keras; takes images `(B, height, width, channels)`.

    Raises:
        RequestError: the file cannot be read, or only answers: which operator of it
            has no counterpart in Keras.
    """
    output = _output(target, "The file to write")
    quiet_tensorflow()
    from cdfkd_tf.networks.loading import load_network

    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always", DistillationWarning)
        try:
            model = load_network(pathlib.Path(source), "model")
        except RequestError as error:
            notes = [str(note.message) for note in told]
            raise RequestError(" ".join([*notes, str(error)])) from error
    for note in told:
        print(f"note: {note.message}")
    with replacing(output) as temporary:
        model.save(temporary)
    kinds = [type(layer).__name__ for layer in model.layers]
    print(
        f"{output}: {len(kinds)} layers, {kinds.count('BatchNormalization')} of them "
        f"BatchNormalizations; images {model.input_shape[1:]}, answers "
        f"{model.output_shape[1:]}. Use --teachers."
    )


def _output(name: str | pathlib.Path, what: str) -> pathlib.Path:
    output = pathlib.Path(name).expanduser()
    if output.suffix != ".keras":
        raise RequestError(f"{what} must end in .keras; got {output}.")
    return output


def _convert(options: argparse.Namespace) -> None:
    output = _output(options.output, "--output")
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
