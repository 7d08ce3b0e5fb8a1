"""Aggregators merge the logits of several headers; the predictor is what is shipped.

Every aggregator is a small functional model of plain Keras layers from a student's
`{"logits": (B, H, C), "features": (B, H, W)}` to logits `(B, C)`. Untrained it is a
way to join headers that needs no data: the plain mean, or where teachers differ the
teachers' own rule (the published attention: CDFKD-MFS, attention-based aggregation).

Importable without Keras: the functions import it when they build.
"""

import dataclasses
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np

from cdfkd_tf.errors import lookup

if TYPE_CHECKING:
    import keras
    from keras import KerasTensor


@dataclasses.dataclass(frozen=True)
class Aggregator:
    """One way to merge headers.

    Attributes:
        build: symbolic `(logits (B, H, C), features (B, H, W), join, shares) ->
            (B, C)`. `join(change=None)` is the way that needs no data, `(B, C)`, of the
            logits plus `change`; `shares` `(H, C)` how much each header has to say of
            each class.
        learned: whether it has weights, to be fitted on labelled images.
        penalised: whether these are added to what that way gives, and held near 0 by
            a penalty that cross-validation chooses.
        by_teacher: whether each header must stand for one teacher.
    """

    build: "Callable[[KerasTensor, KerasTensor, Callable, np.ndarray], KerasTensor]"
    learned: bool = True
    penalised: bool = False
    by_teacher: bool = False


def aggregator_kind(kind: str, student: "keras.Model", rule: Any) -> str:
    """What `kind` means for this student: `auto` becomes `mean` or `competence`.

    Args:
        kind: a key of `AGGREGATORS`, `auto` or `best`.
        student: a stack of headers; one leaves nothing to weigh, and headers that do
            not stand for one teacher each have no competence.
        rule: of the teachers, a `teachers.rules.Rule`.
    """
    headers = student.output["logits"].shape[1]
    each = headers > 1 and headers == len(rule.competence)
    if headers == 1 or kind == "auto":
        return "competence" if each and rule.weights is not None else "mean"
    row = AGGREGATORS.get(kind)
    return "mean" if row and row.by_teacher and not each else kind


def build_aggregator(
    kind: str, student: "keras.Model", rule: Any = None
) -> "keras.Model":
    """An aggregator for `student`'s headers.

    Args:
        kind: a key of `AGGREGATORS`.
        student: a stack of headers, see `build_student`.
        rule: of the teachers, one per header, a `teachers.rules.Rule`: which classes
            each header knows, and how well; None: all know all alike. A class is
            merged from the headers that know it. One header alone knows every class:
            for it nothing changes.

    Returns:
        A functional model from the student's output to logits `(B, C)`.

    Raises:
        RequestError: unknown kind.
        ValueError: a rule of other headers or classes.
    """
    import keras
    from keras import layers

    row = lookup(AGGREGATORS, kind, "aggregator")
    inputs = {
        name: keras.Input(tensor.shape[1:], name=name)
        for name, tensor in student.output.items()
    }
    logits = known = inputs["logits"]
    mask = rule.mask if rule is not None and logits.shape[1] > 1 else None
    scale = None
    if mask is not None:
        scale = _scale_of_known(mask, logits.shape[1:]).tolist()
        scale = layers.Rescaling(scale, name="known_classes")
        known = scale(logits)
    by_rule = rule is not None and (
        "competence" in (kind, aggregator_kind("auto", student, rule))
    )

    def join(change=None):
        given, seen = logits, known
        if change is not None:
            given = layers.Add(name="changed")([logits, change])
            seen = given if scale is None else scale(given)
        if not by_rule:
            return _mean(seen)
        from cdfkd_tf.networks.layers import log_of_mixture, log_shares

        parts = log_shares(given, *rule.mixture, mask)
        return log_of_mixture(layers.Identity(name="header_shares")(parts))

    count, num_classes = logits.shape[1:]
    shares = np.full((count, num_classes), 1 / count)
    if rule is not None and len(rule.competence) == count:
        shares, _ = rule.mixture
    merged = row.build(known, inputs["features"], join, shares)
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
        `(B, H)`, float32; of rules by class, those for the class that is answered.
        Rows sum to 1 except with the kind `weights`.
    """
    from keras import Model, layers

    models = [layer for layer in predictor.layers if isinstance(layer, Model)]
    (aggregator,) = (m for m in models if m.name.endswith("_aggregator"))
    (student,) = (m for m in models if m is not aggregator)
    named = {layer.name: layer for layer in aggregator.layers}
    layer = named.get("header_weights") or named.get("header_shares")
    if layer is None:
        num_headers = student.output["logits"].shape[1]
        return np.full((len(images), num_headers), 1 / num_headers, "float32")
    if isinstance(layer, layers.Dense):  # the same for every image
        return np.tile(np.array(layer.kernel)[:, 0], (len(images), 1))
    normalised = predictor.get_layer("normalisation")(images)
    outputs = student(normalised, training=False)
    found, merged = Model(aggregator.input, [layer.output, aggregator.output])(outputs)
    found = np.array(found)
    if layer.name == "header_weights":
        return found[..., 0]
    answered = np.array(merged).argmax(-1)[:, None, None]
    shares = np.take_along_axis(found, answered, axis=2)[..., 0]
    shares = np.exp(shares - shares.max(axis=1, keepdims=True))
    return shares / shares.sum(axis=1, keepdims=True)


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


def _mean(logits):
    from keras import layers

    return layers.GlobalAveragePooling1D(name="mean")(logits)


def _weights(logits, *_):
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


def _per_class(logits, _, join, __):
    """One learned weight per header and class, and an offset per class."""
    from keras import layers

    num_headers, num_classes = logits.shape[1:]
    columns = layers.Reshape((num_headers, 1, num_classes), name="as_map")(logits)
    learned = layers.DepthwiseConv2D(
        (num_headers, 1), depthwise_initializer="zeros", name="learned"
    )(columns)
    learned = layers.Reshape((num_classes,), name="row")(learned)
    return layers.Add(name="aggregated")([join(), learned])


def _stack(logits, _, join, __):
    """A Dense over all headers' logits."""
    from keras import layers

    flat = layers.Flatten(name="all_headers")(logits)
    learned = layers.Dense(logits.shape[-1], kernel_initializer="zeros", name="learned")
    return layers.Add(name="aggregated")([join(), learned(flat)])


def _none_of_mine(logits, features, join, shares):
    """One more logit per header, from its features: is the image one of its classes?

    What speaks for "one of mine" is added to the classes of that header, a class of
    several by what each has to say of it. (After FedOV, "Towards Addressing Label Skews
    in One-Shot Federated Learning", ICLR 2023, whose clients learn one more class, for
    images that are none of theirs; there it is learned before the models are given
    away, here afterwards, on images of the others.)
    """
    from keras import initializers, layers

    num_headers, width = features.shape[1:]
    columns = layers.Permute((2, 1), name="headers_last")(features)
    columns = layers.Reshape((width, 1, num_headers), name="as_map")(columns)
    mine = layers.DepthwiseConv2D(
        (width, 1), depthwise_initializer="zeros", name="learned"
    )(columns)
    mine = layers.Reshape((num_headers,), name="one_of_mine")(mine)
    spread = layers.Dense(
        logits.shape[-1],
        use_bias=False,
        trainable=False,
        kernel_initializer=initializers.Constant(np.asarray(shares).tolist()),
        name="spread",
    )
    return layers.Add(name="aggregated")([join(), spread(mine)])


def _tune_headers(logits, features, join, shares):
    """The headers' last layers learn on: each adds to its logits, from its features."""
    from keras import layers

    num_headers, num_classes = logits.shape[1:]
    changes = []
    for header in range(num_headers):
        beside = (header, num_headers - 1 - header)
        own = layers.Cropping1D(beside, name=f"features_{header}")(features)
        learn = layers.Dense(
            num_classes, kernel_initializer="zeros", name=f"header_{header}"
        )
        changes.append(learn(own))
    if num_headers > 1:
        changes = [layers.Concatenate(axis=1, name="changes")(changes)]
    return join(*changes)


def _attend(logits, scored):
    """Weights per image, from scores of the headers' logits or features."""
    from keras import layers

    # One linear scorer for all headers, without bias: softmax would cancel it.
    scorer = layers.Dense(1, use_bias=False, kernel_initializer="zeros", name="scorer")
    softmax = layers.Softmax(axis=1, name="header_weights")
    weights = softmax(scorer(scored))  # (B, H, 1)
    merged = layers.Dot(axes=1, name="weighted_sum")([weights, logits])  # (B, 1, C)
    return layers.Reshape((logits.shape[-1],), name="aggregated")(merged)


# In the order of what they can learn: `best` tries them so.
AGGREGATORS = {
    "mean": Aggregator(lambda logits, *_: _mean(logits), learned=False),
    "competence": Aggregator(
        lambda logits, _, join, __: join(), learned=False, by_teacher=True
    ),
    "weights": Aggregator(_weights),
    "none_of_mine": Aggregator(_none_of_mine, penalised=True, by_teacher=True),
    "header_tuning": Aggregator(_tune_headers),
    "per_class": Aggregator(_per_class, penalised=True),
    "stacking": Aggregator(_stack, penalised=True),
    "attention": Aggregator(lambda logits, *_: _attend(logits, logits)),
    "feature_attention": Aggregator(
        lambda logits, features, *_: _attend(logits, features)
    ),
}
