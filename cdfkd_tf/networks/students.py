"""Students: a shared backbone with one header per teacher.

Every student is a stack of headers and answers
`{"logits": (B, H, C), "features": (B, H, W)}`; an ordinary network is a stack of one.
"""

from collections.abc import Callable

import keras
from keras import KerasTensor, layers

from cdfkd_tf.errors import RequestError
from cdfkd_tf.networks.backbones import BACKBONES
from cdfkd_tf.networks.layers import Trunk, separable_encoder


def build_student(
    backbone: str | Callable[[KerasTensor, float], Trunk],
    image_shape: tuple[int, int, int],
    num_classes: int,
    num_headers: int,
    *,
    sharing: str = "multi_level",
    width: float = 1.0,
) -> keras.Model:
    """A student of `num_headers` headers on one backbone.

    Args:
        backbone: a name in `BACKBONES`, or what `find_backbone` found.
        image_shape: `(height, width, channels)` of a normalised image.
        num_classes: C.
        num_headers: H.
        sharing: how the headers share layers, a key of `SHARING`.
        width: factor on the backbone's channels.

    Returns:
        A functional model of plain Keras layers: its file loads without this package.

    Raises:
        RequestError: unknown backbone or sharing; more than one header with `single`.
    """
    if sharing not in SHARING:
        raise RequestError(
            f"Unknown sharing {sharing!r}. Known: {', '.join(sorted(SHARING))}."
        )
    image = keras.Input(image_shape, name="image")
    build = backbone if callable(backbone) else BACKBONES[backbone]
    trunk = build(image, width)
    header_maps = SHARING[sharing](trunk, num_headers)
    logits, features = [], []
    for header, last_map in enumerate(header_maps):
        name = f"header{header}"
        feature = layers.GlobalAveragePooling2D(name=f"{name}_features")(last_map)
        answer = layers.Dense(
            num_classes, name=f"{name}_logits", dtype=keras.config.floatx()
        )
        logits.append(answer(feature))
        features.append(feature)
    outputs = {
        "logits": _stack(logits, "logits"),
        "features": _stack(features, "features"),
    }
    name = "student" if callable(backbone) else backbone
    return keras.Model(image, outputs, name=f"{sharing}_{name}")


def _single(trunk: Trunk, num_headers: int) -> list[KerasTensor]:
    """The backbone's own classifier."""
    if num_headers != 1:
        raise RequestError(
            f"Sharing 'single' has one header; got {num_headers}. Use 'split' or "
            "'multi_level' for several."
        )
    return [trunk.finish(trunk.maps[-1], "")]


def _split(trunk: Trunk, num_headers: int) -> list[KerasTensor]:
    """All shared up to the last residual block, which each header has to itself.

    The student of CDFKD, the predecessor of CDFKD-MFS.
    """
    if trunk.last_block is None:
        raise RequestError(
            "Sharing 'split' copies the backbone's last residual block, and this "
            "backbone has none. Use 'multi_level'."
        )
    prefixes = [f"header{header}_" for header in range(num_headers)]
    return [
        trunk.finish(trunk.last_block(trunk.before_last_block, prefix), prefix)
        for prefix in prefixes
    ]


def _multi_level(trunk: Trunk, num_headers: int) -> list[KerasTensor]:
    """Each header climbs all levels of the trunk with encoders of its own.

    `a_1 = E_1(u_1)`, `a_l = E_l(concat[u_l, a_(l-1)])` (CDFKD-MFS, multi-level
    feature sharing). An encoder ends with the next level's width, the last one
    keeps the last level's.
    """
    widths = [level.shape[-1] for level in trunk.maps]
    widths = [*widths[1:], widths[-1]]
    header_maps = []
    for header in range(num_headers):
        climbed = None
        for level, (u, width) in enumerate(zip(trunk.maps, widths), start=1):
            name = f"header{header}_encoder{level}"
            if climbed is not None:
                u = layers.Concatenate(name=f"{name}_input")([u, climbed])
            climbed = separable_encoder(u, width, name=name)
        header_maps.append(climbed)
    return header_maps


def _stack(tensors: list[KerasTensor], name: str) -> KerasTensor:
    """`H` tensors `(B, n)` as one `(B, H, n)`."""
    rows = [
        layers.Reshape((1, tensor.shape[-1]), name=f"header{header}_{name}_row")(tensor)
        for header, tensor in enumerate(tensors)
    ]
    if len(rows) == 1:
        return rows[0]
    return layers.Concatenate(axis=1, name=name)(rows)


SHARING = {"single": _single, "split": _split, "multi_level": _multi_level}
