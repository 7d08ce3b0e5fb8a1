"""A plain trunk of few, dense operations: fast on CPUs and on small devices."""

import math

from keras import KerasTensor

from cdfkd_tf.networks.layers import Trunk, batch_norm, conv, relu, scale_width

# The smallest map's block, and the two behind it, are the last three.
_WIDTHS = (16, 32, 64, 64)
_SMALLEST_MAP = 7  # pixels of the last map's shorter side, about


def compact(image: KerasTensor, width: float) -> Trunk:
    """Convolution, BatchNormalization and ReLU, three times or more.

    Images are halved by each of the first blocks, those of 28 to 32 pixels by two: at
    full size a convolution of few channels takes as long as several at a quarter. The
    first one sees 5x5 pixels, the others 3x3.

    Args:
        image: `(B, height, width, channels)`, normalised, any size.
        width: factor on all channel counts.
    """
    halvings = max(0, round(math.log2(min(image.shape[1:3]) / _SMALLEST_MAP)))
    strides = [2] * halvings + [1] * (2 if halvings else 3)
    widths = (_WIDTHS[0],) * (len(strides) - len(_WIDTHS)) + _WIDTHS[-len(strides) :]

    def block(tensor: KerasTensor, index: int, prefix: str = "") -> KerasTensor:
        name = f"{prefix}block{index + 1}"
        filters, kernel = scale_width(widths[index], width), 3 if index else 5
        options = {"kernel": kernel, "stride": strides[index], "name": f"{name}_conv"}
        tensor = conv(tensor, filters, **options)
        return relu(batch_norm(tensor, name=f"{name}_bn"))

    tensor, maps, last = image, [], len(strides) - 1
    for index in range(last):
        if strides[index] == 2 and index:
            maps.append(tensor)
        tensor = block(tensor, index)
    return Trunk(
        [*maps, block(tensor, last)],
        before_last_block=tensor,
        last_block=lambda tensor, prefix: block(tensor, last, prefix),
    )
