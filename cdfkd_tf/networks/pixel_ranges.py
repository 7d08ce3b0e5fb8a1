"""Which pixel values a network expects, and how they are made of normalised ones."""

from collections.abc import Sequence

import keras
from keras import layers, ops

from cdfkd_tf.data.specs import DatasetSpec
from cdfkd_tf.runtime.keras_internals import leaf_layers

# Name -> what pixels in [0, 1] are multiplied by, what is added then.
VALUES = {"0..1": (1.0, 0.0), "0..255": (255.0, 0.0), "-1..1": (2.0, -1.0)}
NORMALISED = "normalised"  # as the data set's normalisation makes them
INPUT_NAME = "normalised_image"  # an input called so wants normalised images
_BYTES_FROM = 8.0  # an inner normalisation that takes more than this expects bytes


def expected_values(model: keras.Model, otherwise: str) -> str:
    """The values a network expects: a key of `VALUES`, or `NORMALISED`.

    Read off its input's name, or the first Rescaling or Normalization inside that
    stands before any other layer with weights.

    Args:
        model: any Keras model.
        otherwise: the result if nothing inside tells.
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
