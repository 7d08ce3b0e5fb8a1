"""Images made of any pictures: whole, in pieces, their mixtures and level lines.

The pictures need nothing to do with the task; what is made of them is varied so
strongly that a few of them are enough (Asano and Saeed, ICLR 2023). Without TensorFlow.
"""

from collections.abc import Sequence

import numpy as np
from PIL import Image

from cdfkd_tf.data.procedural import blobs, stretched, to_bytes, traced

KINDS = ("patches", "patch_lines", "whole")
_AT_ONCE = 128  # images made together
_SMALLEST_SIDE = 20  # pixels of a patch in its picture
_LARGEST_PICTURE = 512  # pixels of a picture's shorter side that are worth keeping


def cut(
    kind: str,
    pictures: Sequence[Image.Image],
    count: int,
    shape: tuple[int, int, int],
    seed: int,
) -> np.ndarray:
    """Images of one kind; the first ones do not depend on how many are made.

    Args:
        kind: one of `KINDS`.
        pictures: RGB or grey, of any sizes.
        count: n.
        shape: `(height, width, channels)`, channels 1 or 3.
        seed: of all that is random.

    Returns:
        `(n, height, width, channels)`, uint8, 0 to 255.
    """
    mode = "L" if shape[2] == 1 else "RGB"
    pictures = [_shrunk(picture).convert(mode) for picture in pictures]
    parts = []
    for start in range(0, count, _AT_ONCE):
        rng = np.random.default_rng([seed, 100 + KINDS.index(kind), start])
        if kind == "patches":
            images = _compositions(pictures, _AT_ONCE, shape, rng)
        elif kind == "whole":
            images = _whole(pictures, _AT_ONCE, shape, rng)
        else:
            grey = _patches(pictures, _AT_ONCE, shape, rng).mean(axis=-1)
            images = traced(grey, shape, rng)
        parts.append(to_bytes(images))
    return np.concatenate(parts)[:count]


def _shrunk(picture: Image.Image) -> Image.Image:
    factor = min(picture.size) / _LARGEST_PICTURE
    if factor <= 1:
        return picture
    return picture.resize([max(1, round(side / factor)) for side in picture.size])


def _whole(pictures, count, shape, rng) -> np.ndarray:
    """Pictures as they are, some mirrored, up to a tenth of their sides cut away."""
    found = np.empty((count, *shape), "float32")
    for index in range(count):
        picture = pictures[rng.integers(len(pictures))]
        size = np.array(picture.size)
        start, end = rng.uniform(0, 0.1, 2) * size, size - rng.uniform(0, 0.1, 2) * size
        piece = picture.resize(
            (shape[1], shape[0]), Image.Resampling.BILINEAR, box=(*start, *end)
        )
        found[index] = np.asarray(piece, "float32").reshape(shape) / 255
    mirrored = rng.random(count) < 0.5
    found[mirrored] = found[mirrored, :, ::-1]
    return found


def _patches(pictures, count, shape, rng) -> np.ndarray:
    """Random pieces, turned, flipped, stretched, brightened: `(n, ...)` in [0, 1]."""
    height, width, _ = shape
    found = np.empty((count, *shape), "float32")
    for index in range(count):
        picture = pictures[rng.integers(len(pictures))]
        # Sides log-uniform, of the images' form, up to the whole picture.
        largest = min(picture.width / width, picture.height / height)
        smallest = min(_SMALLEST_SIDE / max(height, width), largest)
        scale = np.exp(rng.uniform(np.log(smallest), np.log(largest)))
        size = np.array([width, height]) * scale
        left, top = rng.uniform(0, 1, 2) * (np.array(picture.size) - size)
        piece = picture.resize(
            (width, height),
            Image.Resampling.BILINEAR,  # widened where it shrinks: no aliasing
            box=(left, top, *np.minimum((left, top) + size, picture.size)),
        )
        found[index] = np.asarray(piece, "float32").reshape(shape) / 255
    flipped, turned = rng.random((2, count)) < 0.5
    found[flipped] = found[flipped, :, ::-1]
    found[turned] = found[turned, ::-1]
    if height == width:
        turned = rng.random(count) < 0.5
        found[turned] = found[turned].transpose(0, 2, 1, 3)
    each = (count, 1, 1, 1)
    found = np.where(rng.random(each) < 0.7, stretched(found), found)
    found = found ** np.exp(0.7 * rng.standard_normal(each))
    return np.where(rng.random(each) < 0.5, 1 - found, found)


def _compositions(pictures, count, shape, rng) -> np.ndarray:
    """A shape filled with one patch, before black or another; some are mixed."""
    front, back = (_patches(pictures, count, shape, rng) for _ in range(2))
    back = np.where(rng.random((count, 1, 1, 1)) < 0.5, 0, back)
    mask = blobs(count, shape, rng)
    images = front * mask + back * (1 - mask)
    mixed = rng.random((count, 1, 1, 1)) < 0.3
    share = rng.uniform(0, 1, (count, 1, 1, 1))
    return np.where(mixed, share * images + (1 - share) * images[::-1], images)
