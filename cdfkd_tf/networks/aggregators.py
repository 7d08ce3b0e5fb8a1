"""Aggregators merge the logits of several headers; the predictor is what is shipped.

Every aggregator is a small functional model of plain Keras layers from a student's
`{"logits": (B, H, C), "features": (B, H, W)}` to logits `(B, C)`, and starts as the
plain mean (the published attention: CDFKD-MFS, attention-based aggregation).

Importable without Keras: the functions import it when they build.
"""

import dataclasses
from collections.abc import Callable
from typing import TYPE_CHECKING

import numpy as np

from cdfkd_tf.errors import lookup

if TYPE_CHECKING:
    import keras
    from keras import KerasTensor


@dataclasses.dataclass(frozen=True)
class Aggregator:
    """One way to merge headers.

    Attributes:
        build: symbolic `(logits (B, H, C), features (B, H, W)) -> (B, C)`.
        learned: whether it has weights, to be fitted on labelled images.
    """

    build: "Callable[[KerasTensor, KerasTensor], KerasTensor]"
    learned: bool = True


def build_aggregator(
    kind: str, student: "keras.Model", mask: np.ndarray | None = None
) -> "keras.Model":
    """An aggregator for `student`'s headers.

    Args:
        kind: a key of `AGGREGATORS`.
        student: a stack of headers, see `build_student`.
        mask: `(H, C)` bool, the classes that each header knows; None: all. A class is
            then merged from the headers that know it: untrained, their plain mean.
            One header alone knows every class: its mask changes nothing.

    Returns:
        A functional model from the student's output to logits `(B, C)`.

    Raises:
        RequestError: unknown kind.
        ValueError: a mask of another shape, or a class that no header knows.
    """
    import keras
    from keras import layers

    row = lookup(AGGREGATORS, kind, "aggregator")
    inputs = {
        name: keras.Input(tensor.shape[1:], name=name)
        for name, tensor in student.output.items()
    }
    logits = inputs["logits"]
    if mask is not None and logits.shape[1] > 1 and not np.all(mask):
        scale = _scale_of_known(mask, logits.shape[1:])
        logits = layers.Rescaling(scale.tolist(), name="known_classes")(logits)
    merged = row.build(logits, inputs["features"])
    return keras.Model(inputs, merged, name=f"{kind}_aggregator")


def build_predictor(
    student: "keras.Model",
    aggregator: "keras.Model",
    mean: tuple[float, ...],
    std: tuple[float, ...],
) -> "keras.Model":
    """The network that is evaluated, exported and shipped.

    Args:
        student: on normalised images.
        aggregator: from `build_aggregator`.
        mean: per channel, of the data set's images in [0, 1].
        std: likewise.

    Returns:
        A functional model from images `(B, height, width, channels)` in [0, 1] to
        class probabilities `(B, C)`.
    """
    import keras
    from keras import layers

    image = keras.Input(student.input_shape[1:], name="image")
    statistics = {"mean": list(mean), "variance": [value**2 for value in std]}
    normalise = layers.Normalization(**statistics, name="normalisation")
    logits = aggregator(student(normalise(image)))
    probabilities = layers.Softmax(name="probabilities", dtype=keras.config.floatx())
    return keras.Model(image, probabilities(logits), name="predictor")


def header_weights(predictor: "keras.Model", images: np.ndarray) -> np.ndarray:
    """The weight of each header for each image.

    Args:
        predictor: from `build_predictor`.
        images: in [0, 1], `(B, height, width, channels)`.

    Returns:
        `(B, H)`, float32. Rows sum to 1 except with the kind `weights`.
    """
    from keras import Model, layers

    models = [layer for layer in predictor.layers if isinstance(layer, Model)]
    (aggregator,) = (m for m in models if m.name.endswith("_aggregator"))
    (student,) = (m for m in models if m is not aggregator)
    if "header_weights" not in {layer.name for layer in aggregator.layers}:
        num_headers = student.output["logits"].shape[1]
        return np.full((len(images), num_headers), 1 / num_headers, "float32")
    layer = aggregator.get_layer("header_weights")
    if isinstance(layer, layers.Dense):  # the same for every image
        return np.tile(np.array(layer.kernel)[:, 0], (len(images), 1))
    normalised = predictor.get_layer("normalisation")(images)
    outputs = student(normalised, training=False)
    return np.array(Model(aggregator.input, layer.output)(outputs))[..., 0]


def _scale_of_known(mask: np.ndarray, shape: tuple[int, int]) -> np.ndarray:
    """What turns a mean over all headers into one over those that know a class.

    0 where a header does not know a class, else H over the number that do.
    """
    mask = np.asarray(mask, bool)
    if mask.shape != shape or not mask.any(axis=0).all():
        raise ValueError(
            f"Expected a mask (headers, classes) of shape {shape} in which some header "
            f"knows each class; got shape {mask.shape}, known by {mask.sum(0)} headers."
        )
    return mask * (len(mask) / mask.sum(axis=0))


def _mean(logits, features):
    from keras import layers

    return layers.GlobalAveragePooling1D(name="mean")(logits)


def _weights(logits, features):
    """One learned weight per header, the same for every image."""
    from keras import initializers, layers

    num_headers, num_classes = logits.shape[1:]
    by_class = layers.Permute((2, 1), name="headers_last")(logits)
    merged = layers.Dense(
        1,
        use_bias=False,
        kernel_initializer=initializers.Constant(1 / num_headers),
        name="header_weights",
    )(by_class)
    return layers.Reshape((num_classes,), name="weighted_sum")(merged)


def _attend(logits, scored):
    """Weights per image, from scores of the headers' logits or features."""
    from keras import layers

    # One linear scorer for all headers, without bias: softmax would cancel it.
    scorer = layers.Dense(1, use_bias=False, kernel_initializer="zeros", name="scorer")
    softmax = layers.Softmax(axis=1, name="header_weights")
    weights = softmax(scorer(scored))  # (B, H, 1)
    merged = layers.Dot(axes=1, name="weighted_sum")([weights, logits])  # (B, 1, C)
    return layers.Reshape((logits.shape[-1],), name="aggregated")(merged)


AGGREGATORS = {
    "mean": Aggregator(_mean, learned=False),
    "weights": Aggregator(_weights),
    "attention": Aggregator(lambda logits, features: _attend(logits, logits)),
    "feature_attention": Aggregator(_attend),
}
