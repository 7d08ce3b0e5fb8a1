"""Layers that every network here is built of.

Convolutions pad as the published networks do: symmetrically by half the kernel, also
where the stride is 2 and Keras's "same" would pad one side only. Layer names are
paths (`stage1_block0_conv1`), so that stored tensors find their layer.
"""

import dataclasses
from collections.abc import Callable

import keras
import numpy as np
from keras import KerasTensor, layers, ops

_LEAST = -30.0  # logarithm of a probability that is as good as 0


@dataclasses.dataclass(frozen=True)
class Trunk:
    """What a backbone offers to the networks built on it.

    Attributes:
        maps: the output of each stage, `(B, height, width, channels)`, coarsest last.
        before_last_block: the input of the last residual block, or None if the
            backbone has no such block.
        last_block: builds one more copy of that block: `(tensor, prefix) -> map`,
            with `prefix` before the names of its layers.
        finish: what a plain classifier applies before pooling:
            `(map, prefix) -> map`.
    """

    maps: list[KerasTensor]
    before_last_block: KerasTensor | None = None
    last_block: Callable[[KerasTensor, str], KerasTensor] | None = None
    finish: Callable[[KerasTensor, str], KerasTensor] = lambda tensor, _: tensor


def scale_width(channels: int, width: float) -> int:
    """`channels * width` as the nearest multiple of 8, at least 8.

    Multiples of 8 fill the vector units of phones and microcontrollers. Width 1
    leaves any channel count as it is.
    """
    if width == 1:
        return channels
    return max(8, int(channels * width / 8 + 0.5) * 8)


def conv(
    tensor: KerasTensor,
    filters: int,
    *,
    name: str,
    kernel: int = 3,
    stride: int = 1,
    bias: bool = False,
) -> KerasTensor:
    """Convolution of `(B, height, width, channels)`, padded by `kernel // 2`.

    Weights begin normal of variance 2 / fan-out (He et al., ICCV 2015).

    A 1x1 convolution with a stride reads every `stride`-th pixel first: on CPUs the
    filter gradient of the strided one crashes TensorFlow 2.21 (at most 8 channels, 56
    pixels and more). Pooling over single pixels is that choice as a plain layer.
    """
    if kernel == 1 and stride > 1:
        every = layers.AveragePooling2D(1, strides=stride, name=f"{name}_stride")
        tensor, stride = every(tensor), 1
    tensor, padding = _pad(tensor, kernel, stride, name)
    return layers.Conv2D(
        filters,
        kernel,
        strides=stride,
        padding=padding,
        use_bias=bias,
        # A new one each time: an initializer object repeats its draw.
        kernel_initializer=keras.initializers.VarianceScaling(
            2.0, mode="fan_out", distribution="untruncated_normal"
        ),
        name=name,
    )(tensor)


def batch_norm(
    tensor: KerasTensor,
    *,
    name: str,
    epsilon: float = 1e-5,
    affine: bool = True,
    dtype: str | None = None,
) -> KerasTensor:
    """BatchNormalization of `(B, ..., channels)` with the published momentum, 0.9.

    Args:
        tensor: symbolic.
        name: of the layer.
        epsilon: added to the variance.
        affine: whether scale and shift are learned.
        dtype: policy of its arithmetic; None: Keras's.
    """
    options = {"momentum": 0.9, "epsilon": epsilon, "dtype": dtype, "name": name}
    return layers.BatchNormalization(center=affine, scale=affine, **options)(tensor)


def cropped(tensor: KerasTensor, sides: tuple[int, int], *, name: str) -> KerasTensor:
    """The middle `(B, *sides, channels)` of larger maps; others as they are.

    Args:
        tensor: symbolic, `(B, height, width, channels)`, at least as large.
        sides: height and width that stay; an odd rest goes below and to the right.
        name: of the layer.
    """
    extra = [have - want for have, want in zip(tensor.shape[1:3], sides)]
    if not any(extra):
        return tensor
    margins = [(side // 2, side - side // 2) for side in extra]
    return layers.Cropping2D(margins, name=name)(tensor)


def relu(tensor: KerasTensor) -> KerasTensor:
    """`max(x, 0)` of a tensor of any shape, as a layer."""
    return layers.ReLU()(tensor)


def separable_encoder(tensor: KerasTensor, filters: int, *, name: str) -> KerasTensor:
    """The header's encoder: halves `(B, height, width, channels)`, rounding up.

    Ends with `filters` channels.

    Two pairs of a depthwise 3x3 and a pointwise convolution; the first keeps the
    input's width and has stride 2 (CDFKD-MFS, the header encoders of the multi-level
    student). The depthwise ones are in full precision under any policy: on CPUs their
    gradient takes ten times as long in bfloat16, and they have few multiplications.
    """
    for index, (channels, stride) in enumerate(
        zip((tensor.shape[-1], filters), (2, 1)), start=1
    ):
        depthwise = f"{name}_depthwise{index}"
        tensor, padding = _pad(tensor, 3, stride, depthwise)
        tensor = layers.DepthwiseConv2D(
            3,
            strides=stride,
            padding=padding,
            use_bias=False,
            # Fan-in: the 9 taps of one channel; Keras's fan-out counts none.
            depthwise_initializer=keras.initializers.RandomNormal(
                stddev=(2 / 9) ** 0.5
            ),
            dtype=keras.config.floatx(),
            name=depthwise,
        )(tensor)
        tensor = conv(tensor, channels, kernel=1, name=f"{name}_pointwise{index}")
        tensor = relu(batch_norm(tensor, name=f"{name}_bn{index}"))
    return tensor


def _pad(
    tensor: KerasTensor, kernel: int, stride: int, name: str
) -> tuple[KerasTensor, str]:
    if kernel == 1:
        return tensor, "valid"
    if stride == 1:
        return tensor, "same"
    return layers.ZeroPadding2D(kernel // 2, name=f"{name}_pad")(tensor), "valid"


def log_shares(
    logits: KerasTensor,
    weights: np.ndarray,
    sharpness: float,
    mask: np.ndarray | None = None,
) -> KerasTensor:
    """What each row of logits brings into a mixture that weighs sure rows more.

    Logarithm of `w_kc exp(-b H_k) p_kc`, with `p_k` the softmax of row k over the
    classes that it knows, and `H_k` its entropy in nats.

    Args:
        logits: `(B, T, C)`.
        weights: w, `(T, C)`, at least 0; some weight above 0 for each class.
        sharpness: b.
        mask: `(T, C)` bool, the classes that each row knows; None: all.

    Returns:
        `(B, T, C)`.
    """
    logits = ops.cast(logits, keras.config.floatx())
    known = np.ones(weights.shape, bool) if mask is None else np.asarray(mask, bool)
    seen = logits if known.all() else ops.where(known, logits, _LEAST)
    # Bounded on both sides, so that eight bits can hold it.
    rows = ops.clip(logits - ops.max(seen, axis=-1, keepdims=True), _LEAST, 0.0)
    powers = ops.exp(rows)
    if not known.all():
        powers = powers * known.astype(keras.config.floatx())
    total = ops.sum(powers, axis=-1, keepdims=True)
    rows = rows - ops.log(total)
    with np.errstate(divide="ignore"):
        offsets = np.maximum(np.log(np.asarray(weights, "float64")), _LEAST)
    shares = rows + offsets.astype(keras.config.floatx())
    if sharpness:
        sureness = ops.sum(powers * rows, axis=-1, keepdims=True) / total  # -entropy
        shares = shares + sharpness * sureness
    return shares


def log_of_mixture(shares: KerasTensor) -> KerasTensor:
    """Logits `(B, C)`, centred, of a mixture of `log_shares` `(B, T, C)`."""
    # Not ops.logsumexp, whose check for infinities devices cannot run.
    largest = ops.max(shares, axis=1, keepdims=True)
    mixed = ops.log(ops.sum(ops.exp(shares - largest), axis=1)) + largest[:, 0]
    return mixed - ops.mean(mixed, axis=-1, keepdims=True)
