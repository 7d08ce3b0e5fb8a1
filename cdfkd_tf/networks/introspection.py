"""Multiply-adds of a network, counted from its layers."""

import keras
import numpy as np
from keras import layers

from cdfkd_tf.runtime.keras_internals import leaf_layers


def multiply_adds(model: keras.Model) -> int:
    """Multiply-adds of one forward pass for one image, as papers count them.

    Of convolutions and Dense layers; work done once per value (BatchNormalization,
    rectifiers, additions) is left out.

    Args:
        model: functional, its image size known.
    """
    return sum(_of_layer(layer) for layer in leaf_layers(model))


def _of_layer(layer: keras.layers.Layer) -> int:
    if isinstance(layer, layers.Conv2DTranspose):  # each input pixel is spread
        positions = layer.input.shape[1:3]
    elif isinstance(layer, (layers.Dense, layers.Conv2D, layers.DepthwiseConv2D)):
        positions = layer.output.shape[1:-1]
    else:
        return 0
    return int(np.prod(positions, dtype=int) * np.prod(layer.kernel.shape))
