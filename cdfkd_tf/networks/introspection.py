"""Operations counted from a network's layers: what a run will cost before it runs."""

import keras
import numpy as np
from keras import layers

from cdfkd_tf.runtime.keras_internals import leaf_layers


def multiply_adds(model: keras.Model) -> int:
    """Multiply-adds of one forward pass for one image, as papers count them.

    Convolutions and Dense layers; what is done once per value (BatchNormalization,
    rectifiers, additions) is left out.

    Args:
        model: functional, its image size known.
    """
    return sum(_of_layer(layer) for layer in leaf_layers(model))


def _of_layer(layer: keras.layers.Layer) -> int:
    if isinstance(layer, layers.Dense):
        positions = np.prod(layer.output.shape[1:-1], dtype=int)
        return int(positions * np.prod(layer.kernel.shape))
    if isinstance(layer, layers.Conv2DTranspose):  # each input pixel is spread
        height, width = layer.input.shape[1:3]
        return int(height * width * np.prod(layer.kernel.shape))
    if isinstance(layer, (layers.Conv2D, layers.DepthwiseConv2D)):
        height, width = layer.output.shape[1:3]
        return int(height * width * np.prod(layer.kernel.shape))
    return 0


def iteration_multiply_adds(
    student: int, teachers: int, generator: int, *, batch_size: int, student_rounds: int
) -> int:
    """Multiply-adds of one iteration of two players.

    A backward pass towards weights and inputs counts twice a forward pass, towards
    inputs alone once. A student round: generator and teachers forward, student forward
    and backward. The generator round: generator forward and backward, teachers and
    student forward and backward towards their inputs.

    Args:
        student: of one forward pass for one image, as the next two.
        teachers: of all of them together.
        generator: 0 if the images are real: there is no generator round then.
        batch_size: B.
        student_rounds: per iteration.
    """
    rounds = student_rounds * (generator + teachers + 3 * student)
    if generator:
        rounds += 3 * generator + 2 * teachers + 2 * student
    return batch_size * rounds
