"""How the answers of several headers become one, and the network that is shipped.

Every aggregator is a small functional model of plain Keras layers from a student's
`{"logits": (B, H, C), "features": (B, H, W)}` to logits `(B, C)`, and starts as the
plain mean (the published attention: CDFKD-MFS, attention-based aggregation).
"""

from collections.abc import Callable

import keras
import numpy as np
from keras import KerasTensor, layers

from cdfkd_tf.errors import RequestError


def build_aggregator(kind: str, student: keras.Model) -> keras.Model:
    """An aggregator for `student`'s headers.

    Args:
        kind: a key of `AGGREGATORS`.
        student: a stack of headers, see `build_student`.

    Raises:
        RequestError: unknown kind.
    """
    if kind not in AGGREGATORS:
        raise RequestError(
            f"Unknown aggregator {kind!r}. Known: {', '.join(sorted(AGGREGATORS))}."
        )
    inputs = {
        name: keras.Input(tensor.shape[1:], name=name)
        for name, tensor in student.output.items()
    }
    logits = AGGREGATORS[kind](inputs["logits"], inputs["features"])
    return keras.Model(inputs, logits, name=f"{kind}_aggregator")


def build_predictor(
    student: keras.Model,
    aggregator: keras.Model,
    mean: tuple[float, ...],
    std: tuple[float, ...],
) -> keras.Model:
    """What is evaluated, exported and shipped: image in [0, 1] to probabilities.

    Args:
        student: on normalised images.
        aggregator: from `build_aggregator`.
        mean: per channel, of the data set's images in [0, 1].
        std: likewise.

    Returns:
        A functional model `(B, height, width, channels)` to `(B, C)`.
    """
    pixels = keras.Input(student.input_shape[1:], name="image")
    variance = [value**2 for value in std]
    images = layers.Normalization(
        mean=list(mean), variance=variance, name="normalisation"
    )(pixels)
    logits = aggregator(student(images))
    probabilities = layers.Softmax(name="probabilities", dtype=keras.config.floatx())
    return keras.Model(pixels, probabilities(logits), name="predictor")


def header_weights(predictor: keras.Model, pixels: np.ndarray) -> np.ndarray:
    """How much each header counts for each image, `(B, H)`; rows need not sum to 1.

    Args:
        predictor: from `build_predictor`.
        pixels: images in [0, 1], `(B, height, width, channels)`.
    """
    normalisation, student, aggregator = predictor.layers[1:4]
    num_headers = student.output["logits"].shape[1]
    names = {layer.name for layer in aggregator.layers}
    if "header_weights" not in names:
        return np.full((len(pixels), num_headers), 1 / num_headers, "float32")
    layer = aggregator.get_layer("header_weights")
    if isinstance(layer, layers.Dense):  # the same for every image
        return np.tile(np.array(layer.kernel)[:, 0], (len(pixels), 1))
    answers = student(normalisation(pixels), training=False)
    weights = keras.Model(aggregator.input, layer.output)(answers)
    return np.array(weights)[..., 0]


def _mean(logits: KerasTensor, features: KerasTensor) -> KerasTensor:
    return layers.GlobalAveragePooling1D(name="mean")(logits)


def _weights(logits: KerasTensor, features: KerasTensor) -> KerasTensor:
    """One learned weight per header, the same for every image."""
    num_headers, num_classes = logits.shape[1:]
    by_class = layers.Permute((2, 1), name="headers_last")(logits)
    merged = layers.Dense(
        1,
        use_bias=False,
        kernel_initializer=keras.initializers.Constant(1 / num_headers),
        name="header_weights",
    )(by_class)
    return layers.Reshape((num_classes,), name="weighted_sum")(merged)


def _attention(logits: KerasTensor, features: KerasTensor) -> KerasTensor:
    """Weights per image, scored from the headers' logits."""
    return _attend(logits, scored=logits)


def _feature_attention(logits: KerasTensor, features: KerasTensor) -> KerasTensor:
    """Weights per image, scored from the headers' features."""
    return _attend(logits, scored=features)


def _attend(logits: KerasTensor, scored: KerasTensor) -> KerasTensor:
    num_classes = logits.shape[-1]
    # One linear scorer for all headers, without bias: softmax would cancel it.
    scores = layers.Dense(1, use_bias=False, kernel_initializer="zeros", name="scorer")(
        scored
    )
    weights = layers.Softmax(axis=1, name="header_weights")(scores)  # (B, H, 1)
    merged = layers.Dot(axes=1, name="weighted_sum")([weights, logits])  # (B, 1, C)
    return layers.Reshape((num_classes,), name="aggregated")(merged)


AGGREGATORS: dict[str, Callable[[KerasTensor, KerasTensor], KerasTensor]] = {
    "mean": _mean,
    "weights": _weights,
    "attention": _attention,
    "feature_attention": _feature_attention,
}
