"""Backbones by name: built in, a model file's, or one of `keras.applications`."""

import functools
from collections.abc import Callable, Sequence

from keras import KerasTensor

from cdfkd_tf.data.specs import DatasetSpec
from cdfkd_tf.errors import RequestError
from cdfkd_tf.networks.compact import compact
from cdfkd_tf.networks.external_backbones import (
    applications,
    load_application,
    load_student,
    trunk_of,
)
from cdfkd_tf.networks.layers import Trunk
from cdfkd_tf.networks.lenet import lenet
from cdfkd_tf.networks.resnet import resnet
from cdfkd_tf.networks.wide_resnet import wide_resnet

AUTOMATIC_BACKBONE = "compact"  # of --student=auto
# Built in: name -> `builder(image, width) -> Trunk`.
BACKBONES = {
    "compact": compact,
    "lenet": lenet,
    "resnet18": functools.partial(resnet, num_blocks=(2, 2, 2, 2)),
    "resnet34": functools.partial(resnet, num_blocks=(3, 4, 6, 3)),
    "wrn10_1": functools.partial(wide_resnet, depth=10, widen=1),
    "wrn16_1": functools.partial(wide_resnet, depth=16, widen=1),
    "wrn16_2": functools.partial(wide_resnet, depth=16, widen=2),
    "wrn40_2": functools.partial(wide_resnet, depth=40, widen=2),
}


def find_backbone(
    name: str, spec: DatasetSpec, feature_layers: Sequence[str] = ()
) -> Callable[[KerasTensor, float], Trunk]:
    """The builder of the trunk called `name`: `(normalised image, width) -> Trunk`.

    Args:
        name: a key of `BACKBONES`; a function of `keras.applications`, without
            weights; or else a model file, whose weights the student starts from.
        spec: of the images.
        feature_layers: names of the layers whose maps the headers read, finest first;
            empty: found at each change of resolution. For files and applications.

    Raises:
        RequestError: unknown name, or layers named for a built-in network. The
            builder raises it for an unsuitable file, image size or width.
    """
    if name in BACKBONES:
        if feature_layers:
            raise RequestError(
                "--student_feature_layers names layers of a file or of "
                f"keras.applications; --student={name} brings its own. Leave it out."
            )
        return BACKBONES[name]
    is_file = any(mark in name for mark in "./\\")
    if not is_file and name not in applications():
        raise RequestError(
            f"Unknown network {name!r}. Known: {', '.join(BACKBONES)}; a model file; "
            f"or of keras.applications {', '.join(applications())}."
        )
    load = load_student if is_file else load_application

    def build(image: KerasTensor, width: float) -> Trunk:
        return trunk_of(load(name, width, spec), name, image, spec, feature_layers)

    return build
