"""A plain trunk of few, dense operations: fast on CPUs and on small devices."""

import math

from keras import KerasTensor

from cdfkd_tf.networks.layers import Trunk, batch_norm, conv, relu, scale_width

_WIDTHS = (16, 24, 32, 48, 64)
_SMALLEST_MAP = 7  # pixels of the last map's shorter side, about


def compact(image: KerasTensor, width: float) -> Trunk:
    """Convolution, BatchNormalization and ReLU, five times or more.

    Images of 28 to 32 pixels are halved twice; larger ones once more for each doubling
    of their shorter side, by a first convolution of stride 2 and by further blocks.

    Args:
        image: `(B, height, width, channels)`, normalised, any size.
        width: factor on all channel counts.
    """
    shorter = min(image.shape[1:3])
    halvings = max(0, round(math.log2(shorter / _SMALLEST_MAP)))
    strides = [1] + [2, 1] * min(halvings, 2)
    strides = [2] * (halvings - 2) + strides
    widths = _WIDTHS[: len(strides)]
    widths = (widths[0],) * (len(strides) - len(widths)) + widths
    tensor, maps = image, []
    for index, (channels, stride) in enumerate(zip(widths, strides), start=1):
        if stride == 2 and index > 1:
            maps.append(tensor)
        name = f"block{index}"
        tensor = conv(
            tensor, scale_width(channels, width), stride=stride, name=f"{name}_conv"
        )
        tensor = relu(batch_norm(tensor, name=f"{name}_bn"))
    return Trunk([*maps, tensor])
