"""Going through the layers of any Keras model."""

from collections.abc import Iterator

import keras


def leaf_layers(model: keras.Model) -> Iterator[keras.layers.Layer]:
    """Every layer that holds no other layers, at any depth, in order.

    Layers that contain layers (nested models, wrappers, one's own blocks) are gone
    through in turn.
    """
    for layer in getattr(model, "layers", None) or getattr(model, "_layers", []):
        inner = list(leaf_layers(layer))
        if inner:
            yield from inner
        else:
            yield layer
