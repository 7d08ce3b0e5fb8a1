"""How images as a data set normalises them reach a teacher that expects others.

A teacher may expect other values, another size or another number of channels.
"""

import dataclasses

from keras import KerasTensor, ops

from cdfkd_tf.data.specs import DatasetSpec
from cdfkd_tf.networks.pixel_ranges import NORMALISED, VALUES

_LUMINANCE = (0.2989, 0.587, 0.114)  # ITU-R BT.601, as tf.image


@dataclasses.dataclass(frozen=True)
class InputAdapter:
    """Makes of normalised images what a teacher expects.

    Attributes:
        spec: of the images that come.
        values: what the teacher expects, a key of `VALUES` or `NORMALISED`.
        shape: `(height, width, channels)` or `(height, width)` that it expects; None
            where any size will do.
    """

    spec: DatasetSpec
    values: str
    shape: tuple[int | None, ...]

    def __call__(self, images: KerasTensor) -> KerasTensor:
        """`(B, *spec.image_shape)` normalised to `(B, *shape)`; gradients pass."""
        if self.values != NORMALISED:
            scale, offset = VALUES[self.values]
            images = self.spec.denormalise(images) * scale + offset
        return self._resized(self._recoloured(images))

    def _recoloured(self, images: KerasTensor) -> KerasTensor:
        have = self.spec.image_shape[-1]
        want = self.shape[2] if len(self.shape) == 3 else 1
        if want in (None, have):
            return images
        if have == 1:
            return ops.repeat(images, want, axis=-1)
        weights = ops.convert_to_tensor(_LUMINANCE, dtype=images.dtype)
        return ops.sum(images * weights, axis=-1, keepdims=True)

    def _resized(self, images: KerasTensor) -> KerasTensor:
        want = self.shape[:2]
        if None not in want and want != self.spec.image_shape[:2]:
            images = ops.image.resize(images, want, interpolation="bilinear")
        return images[..., 0] if len(self.shape) == 2 else images

    def __str__(self) -> str:
        size = "x".join("any" if side is None else str(side) for side in self.shape)
        return f"{size} {self.values}"
