"""ResNet trunks of basic blocks (He et al., CVPR 2016).

Two stems: 3x3 for small images, the standard 7x7 with max pooling from 64 pixels on.
"""

from keras import KerasTensor, layers

from cdfkd_tf.networks.layers import Trunk, batch_norm, conv, relu, scale_width

STAGE_WIDTHS = (64, 128, 256, 512)
LARGE_IMAGE = 64


def resnet(image: KerasTensor, width: float, *, num_blocks: tuple[int, ...]) -> Trunk:
    """A ResNet trunk with one stage per entry of `num_blocks`, four as published.

    Args:
        image: `(B, height, width, channels)`, normalised, any size.
        width: factor on all channel counts.
        num_blocks: residual blocks in each stage.
    """
    is_large = min(image.shape[1:3]) >= LARGE_IMAGE
    kernel, stride = (7, 2) if is_large else (3, 1)
    filters = scale_width(STAGE_WIDTHS[0], width)
    tensor = conv(image, filters, kernel=kernel, stride=stride, name="stem_conv")
    tensor = relu(batch_norm(tensor, name="stem_bn"))
    if is_large:
        # Zeros are neutral here: nothing is negative after the rectifier.
        tensor = layers.ZeroPadding2D(1, name="stem_pool_pad")(tensor)
        tensor = layers.MaxPooling2D(3, strides=2, name="stem_pool")(tensor)
    maps = []
    for stage, (blocks, channels) in enumerate(zip(num_blocks, STAGE_WIDTHS), start=1):
        filters = scale_width(channels, width)
        for block in range(blocks):
            before_last_block = tensor
            stride = 2 if stage > 1 and block == 0 else 1
            name = f"stage{stage}_block{block}"
            tensor = _basic_block(tensor, filters, stride=stride, name=name)
        maps.append(tensor)

    def last_block(tensor: KerasTensor, prefix: str) -> KerasTensor:
        return _basic_block(tensor, filters, stride=stride, name=prefix + name)

    return Trunk(maps, before_last_block, last_block)


def _basic_block(
    tensor: KerasTensor, filters: int, *, stride: int, name: str
) -> KerasTensor:
    shortcut = tensor
    if stride != 1 or tensor.shape[-1] != filters:
        shortcut = conv(
            tensor, filters, kernel=1, stride=stride, name=f"{name}_shortcut_conv"
        )
        shortcut = batch_norm(shortcut, name=f"{name}_shortcut_bn")
    tensor = conv(tensor, filters, stride=stride, name=f"{name}_conv1")
    tensor = relu(batch_norm(tensor, name=f"{name}_bn1"))
    tensor = conv(tensor, filters, name=f"{name}_conv2")
    tensor = batch_norm(tensor, name=f"{name}_bn2")
    return relu(layers.Add(name=f"{name}_add")([tensor, shortcut]))
