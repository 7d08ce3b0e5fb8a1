"""BatchNormalization statistics of a trained network, taken anew from other images.

A student's statistics are those of the images that it learned from; a few unlabelled
images of the task give those that it will meet.
"""

import keras
import numpy as np

from cdfkd_tf.runtime.keras_internals import (
    leaf_layers,
    override_call,
    restore_calls,
)

_KEY = "statistics"


def reestimate(network: keras.Model, images: np.ndarray, batch_size: int) -> int:
    """Sets each BatchNormalization's mean and variance to those of its inputs.

    One after the other in forward order, each with all earlier ones set already.

    Args:
        network: built; changed in place.
        images: as the network takes them, `(n, ...)`, without labels.
        batch_size: images at once.

    Returns:
        How many BatchNormalizations were set.
    """
    norms = [
        layer
        for layer in leaf_layers(network)
        if isinstance(layer, keras.layers.BatchNormalization)
    ]
    met: list[tuple[keras.layers.Layer, np.ndarray]] = []

    def noting(layer, call):
        def noted(inputs, *args, **kwargs):
            met.append((layer, inputs))
            return call(inputs, *args, **kwargs)

        return noted

    for layer in norms:
        override_call(layer, _KEY, noting)
    try:
        network(images[:batch_size], training=False)
        order = list(dict.fromkeys(layer for layer, _ in met))
        for norm in order:
            count, total, squares = 0, 0.0, 0.0
            for start in range(0, len(images), batch_size):
                met.clear()
                network(images[start:][:batch_size], training=False)
                for inputs in (inputs for layer, inputs in met if layer is norm):
                    rows = np.moveaxis(np.asarray(inputs, "float64"), norm.axis, -1)
                    rows = rows.reshape(-1, rows.shape[-1])
                    count, total = count + len(rows), total + rows.sum(0)
                    squares = squares + (rows**2).sum(0)
            mean = total / count
            norm.moving_mean.assign(mean)
            norm.moving_variance.assign(np.maximum(squares / count - mean**2, 0))
    finally:
        restore_calls(norms, _KEY)
    return len(order)
