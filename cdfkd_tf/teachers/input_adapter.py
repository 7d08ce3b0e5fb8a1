"""How images as a data set normalises them reach a teacher that expects others.

A teacher may expect other values, another size, another number or order of channels.
"""

import dataclasses
import functools

import numpy as np
import tensorflow as tf
from keras import KerasTensor, ops

from cdfkd_tf.data.images import resize
from cdfkd_tf.data.specs import DatasetSpec
from cdfkd_tf.networks.pixel_ranges import (
    LUMINANCE,
    NORMALISED,
    PixelValues,
    pixel_values,
)


@dataclasses.dataclass(frozen=True)
class InputAdapter:
    """Makes of normalised images what a teacher expects.

    Attributes:
        spec: of the images that come.
        values: what the teacher expects, as `pixel_values` reads it, or `NORMALISED`.
        shape: `(height, width, channels)`, `(height, width)`, `(channels, height,
            width)` or `(pixels,)` that it expects; None where any size will do.

    Raises:
        RequestError: values of another number of channels.
    """

    spec: DatasetSpec
    values: str
    shape: tuple[int | None, ...]

    def __post_init__(self):
        if self.values != NORMALISED:
            self._pixel_values  # noqa: B018  refuses

    def __call__(self, images: KerasTensor) -> KerasTensor:
        """`(B, *spec.image_shape)` normalised to `(B, *shape)`; gradients pass."""
        given = self.values == NORMALISED
        images = images if given else self.spec.denormalise(images)
        images = self._resized(self._recoloured(images))
        images = images if given else self._pixel_values.of_pixels(images)
        if len(self.shape) == 2:
            return images[..., 0]
        if len(self.shape) == 1:
            return ops.reshape(images, (-1, *self.shape))
        return ops.transpose(images, (0, 3, 1, 2)) if self._channels_first else images

    @functools.cached_property
    def _pixel_values(self) -> PixelValues:
        return pixel_values(self.values).for_channels(self._channels)

    @property
    def _channels_first(self) -> bool:
        return channels_first(self.shape)

    @property
    def _channels(self) -> int:
        if len(self.shape) == 2:
            return 1
        if len(self.shape) == 1:
            return self.spec.image_shape[2]
        axis = 0 if self._channels_first else 2
        return self.shape[axis] or self.spec.image_shape[2]

    def _recoloured(self, images: KerasTensor) -> KerasTensor:
        have, want = self.spec.image_shape[2], self._channels
        if have == want:
            return images
        if have == 1:
            return ops.repeat(images, want, axis=-1)
        weights = ops.convert_to_tensor(LUMINANCE, dtype=images.dtype)
        return ops.sum(images * weights, axis=-1, keepdims=True)

    def _resized(self, images: KerasTensor) -> KerasTensor:
        if self._resizing is None:
            return images
        rows, columns = (ops.cast(each, images.dtype) for each in self._resizing)
        images = ops.einsum("Hh,bhwc->bHwc", rows, images)
        return ops.einsum("Ww,bHwc->bHWc", columns, images)

    @functools.cached_property
    def _resizing(self) -> list[np.ndarray] | None:
        """What real images are resized by, as matrices for rows and for columns."""
        want = self.shape[1:] if self._channels_first else self.shape[:2]
        have = self.spec.image_shape[:2]
        if None in want or want == have or len(want) == 1:
            return None
        with tf.init_scope():
            return [
                resize(np.eye(n, dtype="float32")[..., None], (m, n)).numpy()[..., 0]
                for m, n in zip(want, have)
            ]

    def __str__(self) -> str:
        return "x".join("any" if side is None else str(side) for side in self.shape)


def channels_first(shape: tuple[int | None, ...]) -> bool:
    """Whether `(channels, height, width)` is the meaning of an image's shape."""
    if len(shape) != 3 or shape[0] not in (1, 3):
        return False
    return shape[2] not in (None, 1, 3) or shape[1:] == (None, None)
