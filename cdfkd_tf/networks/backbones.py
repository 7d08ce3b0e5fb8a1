"""The table of backbones: name -> `builder(image, width) -> Trunk`."""

import functools

from cdfkd_tf.networks.compact import compact
from cdfkd_tf.networks.lenet import lenet
from cdfkd_tf.networks.resnet import resnet
from cdfkd_tf.networks.wide_resnet import wide_resnet

AUTOMATIC_BACKBONE = "compact"  # of --student=auto
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
