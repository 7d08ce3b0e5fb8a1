"""Going through the layers of any Keras model."""

from collections.abc import Iterator
from typing import Any

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


def operator_names(interpreter: Any) -> list[str]:
    """Names of the operations in a TFLite file, in order.

    Args:
        interpreter: of `ai_edge_litert`, its tensors allocated.
    """
    names = [details["op_name"] for details in interpreter._get_ops_details()]
    return [name for name in names if name != "DELEGATE"]


def use_earlier_quantizer(converter: Any) -> None:
    """Lets a `tf.lite.TFLiteConverter` quantise as it did before TensorFlow 2.5."""
    converter.experimental_new_quantizer = False
