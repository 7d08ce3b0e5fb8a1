"""Students: a shared backbone with one header per teacher.

Every student is a stack of headers: normalised images to
`{"logits": (B, H, C), "features": (B, H, W)}`; an ordinary network is a stack of one.
"""

from collections.abc import Callable

import keras
from keras import KerasTensor, layers

from cdfkd_tf.errors import RequestError, lookup
from cdfkd_tf.networks.backbones import BACKBONES
from cdfkd_tf.networks.layers import Trunk, cropped, separable_encoder


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
        backbone: a key of `BACKBONES`, or what `find_backbone` found.
        image_shape: `(height, width, channels)` of a normalised image.
        num_classes: C.
        num_headers: H.
        sharing: how the headers share layers, a key of `SHARING`.
        width: factor on the backbone's channels.

    Returns:
        A functional model of plain Keras layers: its file loads without this package.
        Its attribute `feature_maps`, which files do not keep, holds the backbone's
        symbolic maps for `feature_maps_model`.

    Raises:
        RequestError: unknown backbone or sharing; more than one header with `single`.
    """
    share = lookup(SHARING, sharing, "sharing")
    image = keras.Input(image_shape, name="image")
    known = not callable(backbone)
    build = lookup(BACKBONES, backbone, "network") if known else backbone
    trunk = build(image, width)
    logits, features, pooled = [], [], {}
    for header, last_map in enumerate(share(trunk, num_headers)):
        name = f"header{header}"
        if id(last_map) not in pooled:
            pool = layers.GlobalAveragePooling2D(name=f"{name}_features")
            pooled[id(last_map)] = pool(last_map)
        feature = pooled[id(last_map)]
        dense = layers.Dense(
            num_classes, name=f"{name}_logits", dtype=keras.config.floatx()
        )
        logits.append(dense(feature))
        features.append(feature)
    outputs = {
        "logits": _stack(logits, "logits"),
        "features": _stack(features, "features"),
    }
    name = f"{sharing}_{backbone if known else 'student'}"
    student = keras.Model(image, outputs, name=name)
    # Headers that split have a last block each: the trunk's own is not part of them.
    student.feature_maps = tuple(trunk.maps[:-1] if share is _split else trunk.maps)
    return student


def feature_maps_model(student: keras.Model) -> keras.Model:
    """A student that also returns its backbone's maps, for losses on them.

    Args:
        student: from `build_student`, in this process.

    Returns:
        A model on the student's own layers and weights, from normalised images to
        `{"logits": (B, H, C), "features": (B, H, W), "maps": [(B, h, w, c), ...]}`:
        one map per level, finest first; with `split`, without the last level.
    """
    outputs = {**student.output, "maps": list(student.feature_maps)}
    return keras.Model(student.input, outputs, name=student.name)


def _single(trunk: Trunk, num_headers: int) -> list[KerasTensor]:
    """The backbone's own classifier."""
    if num_headers != 1:
        raise RequestError(
            f"Sharing 'single' has one header; got {num_headers}. Use 'split' or "
            "'multi_level' for several."
        )
    return [trunk.finish(trunk.maps[-1], "")]


def _shared(trunk: Trunk, num_headers: int) -> list[KerasTensor]:
    """The whole backbone shared; each header has a classifier of its own.

    Hardly more work than a single header.
    """
    return [trunk.finish(trunk.maps[-1], "")] * num_headers


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
                climbed = cropped(climbed, u.shape[1:3], name=f"{name}_crop")
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


SHARING = {
    "single": _single,
    "shared": _shared,
    "split": _split,
    "multi_level": _multi_level,
}
