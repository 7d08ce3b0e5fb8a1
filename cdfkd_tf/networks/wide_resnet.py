"""Wide residual trunks with pre-activation (Zagoruyko and Komodakis, BMVC 2016)."""

from keras import KerasTensor, layers

from cdfkd_tf.networks.layers import Trunk, batch_norm, conv, relu, scale_width

GROUP_WIDTHS = (16, 32, 64)


def wide_resnet(image: KerasTensor, width: float, *, depth: int, widen: int) -> Trunk:
    """WRN-`depth`-`widen`, three stages.

    The maps are the block groups' outputs, without the final BN-ReLU: so the
    published multi-level student reads them. `finish` is that BN-ReLU.

    Args:
        image: `(B, height, width, channels)`, normalised, any size.
        width: factor on all channel counts.
        depth: 6n + 4.
        widen: k, factor on the channels of the three groups.

    Raises:
        ValueError: another depth.
    """
    num_blocks, remainder = divmod(depth - 4, 6)
    if remainder or num_blocks < 1:
        raise ValueError(f"A wide ResNet's depth is 6n + 4; got {depth}.")
    tensor = conv(image, scale_width(GROUP_WIDTHS[0], width), name="stem_conv")
    maps = []
    for stage, channels in enumerate(GROUP_WIDTHS, start=1):
        filters = scale_width(channels * widen, width)
        for block in range(num_blocks):
            before_last_block = tensor
            stride = 2 if stage > 1 and block == 0 else 1
            name = f"stage{stage}_block{block}"
            tensor = _pre_activation_block(tensor, filters, stride=stride, name=name)
        maps.append(tensor)

    def last_block(tensor: KerasTensor, prefix: str) -> KerasTensor:
        return _pre_activation_block(tensor, filters, stride=stride, name=prefix + name)

    def finish(tensor: KerasTensor, prefix: str) -> KerasTensor:
        return relu(batch_norm(tensor, name=f"{prefix}final_bn"))

    return Trunk(maps, before_last_block, last_block, finish)


def _pre_activation_block(
    tensor: KerasTensor, filters: int, *, stride: int, name: str
) -> KerasTensor:
    activated = relu(batch_norm(tensor, name=f"{name}_bn1"))
    shortcut = tensor
    if stride != 1 or tensor.shape[-1] != filters:
        # Where the shape changes, the shortcut starts behind the activation.
        shortcut = conv(
            activated, filters, kernel=1, stride=stride, name=f"{name}_shortcut"
        )
    tensor = conv(activated, filters, stride=stride, name=f"{name}_conv1")
    tensor = relu(batch_norm(tensor, name=f"{name}_bn2"))
    tensor = conv(tensor, filters, name=f"{name}_conv2")
    return layers.Add(name=f"{name}_add")([tensor, shortcut])
