"""A LeNet-5 trunk for handwriting (LeCun et al., 1998), for any image size.

As in the original, three 5x5 convolutions of 6, 16 and 120 channels without
BatchNormalization. Other than there, rectifiers and maxima, padding that keeps the
stages at half, a quarter and an eighth of the image, and global pooling at the end.
"""

from keras import KerasTensor, layers

from cdfkd_tf.networks.layers import Trunk, conv, relu, scale_width

STAGE_WIDTHS = (6, 16, 120)


def lenet(image: KerasTensor, width: float) -> Trunk:
    """Three stages of one convolution each.

    Args:
        image: `(B, height, width, channels)`, normalised, at least 8 pixels a side.
        width: factor on all channel counts.
    """
    tensor, maps = image, []
    for stage, channels in enumerate(STAGE_WIDTHS, start=1):
        before_last_block = tensor
        filters = scale_width(channels, width)
        tensor = _stage(tensor, filters, f"stage{stage}")
        maps.append(tensor)

    def last_block(tensor: KerasTensor, prefix: str) -> KerasTensor:
        return _stage(tensor, filters, f"{prefix}stage{len(STAGE_WIDTHS)}")

    return Trunk(maps, before_last_block, last_block)


def _stage(tensor: KerasTensor, filters: int, name: str) -> KerasTensor:
    tensor = relu(conv(tensor, filters, kernel=5, bias=True, name=f"{name}_conv"))
    # "same" rounds odd sides up, as the headers' encoders do.
    return layers.MaxPooling2D(2, padding="same", name=f"{name}_pool")(tensor)
