"""Tensors in PyTorch's names and layouts into our networks.

Published checkpoints are tables `name -> array`. Rules turn a module's name into one
of our layers; the layer's type tells how the array is laid out.
"""

import re
from collections.abc import Mapping

import keras
import numpy as np

from cdfkd_tf.errors import RequestError

_STAGE = r"(?:layer|block|shared_layer)(\d)(?:_1|_b)?(?:\.layer)?"
# A stage's last block, whose index depends on the depth: up to 5 in a ResNet-34.
_LAST_BLOCK = "|".join(rf"{{0}}_block{index}_\2" for index in range(1, 6))
_ENCODER_PARTS = {
    "0": "depthwise1",
    "1": "pointwise1",
    "2": "bn1",
    "4": "depthwise2",
    "5": "pointwise2",
    "6": "bn2",
}

_WEIGHTS = {"weight": "kernel", "bias": "bias"}
_NORM_WEIGHTS = {
    **{"weight": "gamma", "bias": "beta"},
    **{"running_mean": "moving_mean", "running_var": "moving_variance"},
}

# Pattern of a PyTorch module -> our layer; the first that matches whole is taken. A
# replacement may leave a choice of names behind "|": the one the model has is meant.
_RULES = (
    # Trunks of ResNets and wide ResNets, alone and inside multi-header students.
    (r"(?:conv1|shared_conv|shared_conv\.0)", "stem_conv"),
    (r"bn1", "stem_bn|final_bn"),
    (r"shared_conv\.1", "stem_bn"),
    (_STAGE + r"\.(\d+)\.convShortcut", r"stage\1_block\2_shortcut"),
    (_STAGE + r"\.(\d+)\.(?:shortcut|downsample)\.0", r"stage\1_block\2_shortcut_conv"),
    (_STAGE + r"\.(\d+)\.(?:shortcut|downsample)\.1", r"stage\1_block\2_shortcut_bn"),
    (_STAGE + r"\.(\d+)\.((?:conv|bn)\d)", r"stage\1_block\2_\3"),
    (r"shared_layer(\d)_t\.(\w+)", _LAST_BLOCK.format(r"stage\1")),
    (r"layer4_2\.(\d)\.(\w+)", _LAST_BLOCK.format(r"header\1_stage4")),
    # Headers.
    (
        r"encoder(\d)\.(\d)\.op\.(\d)",
        lambda match: f"header{match[2]}_encoder{match[1]}_{_ENCODER_PARTS[match[3]]}",
    ),
    (r"linear\.(\d)", r"header\1_logits"),
    (r"(?:fc|linear|classifier|head)", "logits|header0_logits"),
    # Generators.
    (r"(?:l1\.0|project\.1)", "latent_dense"),
    (r"(?:conv_blocks0|main)\.0", "latent_bn"),
    (r"conv_blocks(\d)\.0", r"up\1_conv"),
    (r"conv_blocks(\d)\.1", r"up\1_bn"),
    (r"main\.(?:1|4|7|10)", lambda match: f"up{_index(match) // 3 + 1}_conv"),
    (r"main\.(?:2|5|8|11)", lambda match: f"up{_index(match) // 3 + 1}_bn"),
    (r"(?:out_block\.0|main\.13)", "image_conv"),
    (r"(?:out_block\.2|main\.15)", "image_bn"),
)


def load_pytorch_tensors(model: keras.Model, tensors: Mapping[str, np.ndarray]) -> None:
    """Fills every weight of `model` from a PyTorch state dict.

    Args:
        model: one of this package's classifiers, students or generators.
        tensors: PyTorch's names and layouts: convolutions OIHW, depthwise O1HW,
            transposed IOHW, linear OI. Counters (`num_batches_tracked`) are ignored.

    Raises:
        RequestError: a tensor fits no layer or has the wrong shape, or a weight of
            the model is left unfilled. The model may then be partly filled.
    """
    unfilled = {weight.path for weight in model.weights}
    for name, array in tensors.items():
        module, _, kind = name.rpartition(".")
        if kind == "num_batches_tracked":
            continue
        layer = _find_layer(model, module, name)
        weight = _find_weight(layer, kind, name)
        value = _to_keras_layout(layer, weight, np.asarray(array))
        if value.shape != tuple(weight.shape):
            raise RequestError(
                f"Tensor {name} should become shape {tuple(weight.shape)} in layer "
                f"{layer.name}; it has {value.shape}. Is it the same architecture, "
                "with the same class count and width?"
            )
        weight.assign(value)
        unfilled.discard(weight.path)
    if unfilled:
        raise RequestError(
            f"The tensors leave {len(unfilled)} weights of {model.name} unfilled, for "
            f"example {min(unfilled)}. Is it the same architecture?"
        )


def _index(match: re.Match) -> int:
    return int(match[0].rpartition(".")[2])


def _find_layer(model: keras.Model, module: str, name: str) -> keras.layers.Layer:
    for pattern, replacement in _RULES:
        match = re.fullmatch(pattern, module)
        if not match:
            continue
        known = {layer.name: layer for layer in model.layers}
        target = replacement(match) if callable(replacement) else None
        candidates = (target or match.expand(replacement)).split("|")
        # From the last on: the deepest block that the stage has.
        for candidate in reversed(candidates):
            if candidate in known:
                return known[candidate]
    raise RequestError(
        f"Tensor {name} fits no layer of {model.name}. Is it the same architecture?"
    )


def _find_weight(layer: keras.layers.Layer, kind: str, name: str) -> keras.Variable:
    is_norm = isinstance(layer, keras.layers.BatchNormalization)
    names = _NORM_WEIGHTS if is_norm else _WEIGHTS
    for weight in layer.weights:
        if weight.name == names.get(kind):
            return weight
    raise RequestError(
        f"Tensor {name} has no counterpart in layer {layer.name}, which holds "
        f"{', '.join(weight.name for weight in layer.weights)}."
    )


def _to_keras_layout(
    layer: keras.layers.Layer, weight: keras.Variable, array: np.ndarray
) -> np.ndarray:
    if weight.name != "kernel" or array.ndim != len(weight.shape):
        return array
    if isinstance(layer, keras.layers.Dense):
        return array.T
    # OIHW -> HWIO, depthwise O1HW -> HWO1, transposed IOHW -> HWOI.
    is_depthwise = isinstance(layer, keras.layers.DepthwiseConv2D)
    return array.transpose(2, 3, 0, 1) if is_depthwise else array.transpose(2, 3, 1, 0)
