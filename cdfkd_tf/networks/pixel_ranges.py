"""How one kind of image reaches networks that expect another.

Students and generators work on images as the data set normalises them. Anybody's
network may want other values, another size or another number of channels.
"""

import dataclasses
from collections.abc import Sequence

import keras
from keras import KerasTensor, layers, ops

from cdfkd_tf.data.specs import DatasetSpec
from cdfkd_tf.runtime.keras_internals import leaf_layers

# Name -> what pixels in [0, 1] are multiplied by, what is added then.
VALUES = {"0..1": (1.0, 0.0), "0..255": (255.0, 0.0), "-1..1": (2.0, -1.0)}
NORMALISED = "normalised"  # as the data set's normalisation makes them
INPUT_NAME = "normalised_image"  # an input called so wants normalised images
_LUMINANCE = (0.2989, 0.587, 0.114)  # ITU-R BT.601, as tf.image
_BYTES_FROM = 8.0  # an inner normalisation that takes more than this expects bytes


def expected_values(model: keras.Model, otherwise: str) -> str:
    """The values a network expects: a key of `VALUES`, or `NORMALISED`.

    Read off its input's name, or the first Rescaling or Normalization inside that
    stands before any other layer with weights.

    Args:
        model: any Keras model.
        otherwise: the answer if nothing inside tells.
    """
    if any(
        INPUT_NAME in tensor.name for tensor in getattr(model, "inputs", None) or ()
    ):
        return NORMALISED
    for layer in leaf_layers(model):
        if isinstance(layer, layers.Rescaling):
            scale = max(abs(value) for value in _flat(layer.scale))
            return "0..255" if 2 / scale > _BYTES_FROM else "0..1"
        if isinstance(layer, layers.Normalization):
            if layer.mean is None:
                continue
            reach = float(ops.max(ops.abs(layer.mean))) + 2 * float(
                ops.max(ops.sqrt(layer.variance))
            )
            return "0..255" if reach > _BYTES_FROM else "0..1"
        if layer.weights:
            break
    return otherwise


@dataclasses.dataclass(frozen=True)
class ImageView:
    """How a network sees the data set's normalised images.

    Attributes:
        spec: of the images that come.
        values: what the network expects, a key of `VALUES` or `NORMALISED`.
        shape: `(height, width, channels)` or `(height, width)` that it expects; None
            where any size will do.
    """

    spec: DatasetSpec
    values: str
    shape: tuple[int | None, ...]

    def __call__(self, images: KerasTensor) -> KerasTensor:
        """`(B, *spec.image_shape)` normalised as `(B, *shape)`; gradients pass."""
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

    @property
    def identity(self) -> bool:
        """Whether the network sees the images as they are."""
        fits = all(w in (None, h) for w, h in zip(self.shape, self.spec.image_shape))
        return self.values == NORMALISED and len(self.shape) == 3 and fits

    def __str__(self) -> str:
        size = "x".join("any" if side is None else str(side) for side in self.shape)
        return f"{size} {self.values}"


def rescaling_to(spec: DatasetSpec, values: str) -> keras.layers.Layer | None:
    """A plain layer from normalised images to `values`; None if they are the same.

    Args:
        spec: whose normalisation comes in.
        values: a key of `VALUES`, or `NORMALISED`.
    """
    if values == NORMALISED:
        return None
    scale, offset = VALUES[values]
    return layers.Rescaling(
        [std * scale for std in spec.std],
        [mean * scale + offset for mean in spec.mean],
        name="expected_values",
    )


def _flat(value: float | Sequence[float]) -> list[float]:
    return [float(item) for item in ops.reshape(ops.convert_to_tensor(value), (-1,))]
