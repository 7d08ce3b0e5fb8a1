"""Reads from a network which pixel values it expects.

What stands before the first layer that learns, layers and operations alike, is run on
black, grey and white images in each range that pixels may have. The right range is the
one of which it makes what networks are trained on: from 0 to 1, from -1 to 1, or of
mean 0 and deviation 1.
"""

import math
from typing import Any, NamedTuple

import keras
import numpy as np
from keras import layers

from cdfkd_tf.data.specs import DatasetSpec
from cdfkd_tf.networks.pixel_ranges import INPUT_NAME, KNOWN, NORMALISED, pixel_values
from cdfkd_tf.networks.saved_models import SavedModelClassifier
from cdfkd_tf.runtime.keras_internals import (
    leaf_layers,
    learns,
    override_call,
    restore_calls,
)

RANGES = ("0..1", "-1..1", "0..255")  # the likelier one first
_CERTAIN = 0.15  # how much less the right range costs than the next
# What preprocessing makes of black and white.
_USUAL = ((0, 1), (-1, 1), (-0.5, 0.5), (0, 255), (-128, 127))
_USUAL_CONTRAST = 0.6  # of data sets: 0.45 for photographs to 0.9 for drawn digits


class _Front(NamedTuple):
    """What the first layer that learns gets.

    Attributes:
        made: of images `(n, ...)`.
        where: it was seen.
        first: name of that layer.
        statistics: of a BatchNormalization, moving mean and variance.
    """

    made: Any
    where: str
    first: str
    statistics: tuple[Any, ...] = ()


class FoundValues(NamedTuple):
    """Which values a network expects, and why.

    Attributes:
        values: a key of `KNOWN`, or `NORMALISED`.
        evidence: for people.
        is_certain: read, not guessed.
    """

    values: str
    evidence: str
    is_certain: bool


def find_values(
    model: keras.Model | SavedModelClassifier, image_shape: tuple[int, ...]
) -> FoundValues | None:
    """The values that a network's input or its first layers tell; None if nothing does.

    Args:
        model: any that has been called once.
        image_shape: of one image that it takes.
    """
    inputs = getattr(model, "inputs", None) or ()
    if any(INPUT_NAME in tensor.name for tensor in inputs):
        return FoundValues(NORMALISED, f"read from its input {INPUT_NAME}", True)
    dtype = inputs[0].dtype if inputs else getattr(model, "input_dtype", "float32")
    if "int" in dtype:
        return FoundValues("0..255", f"read from its input of {dtype}", True)
    levels = [
        KNOWN[name].of_pixels(np.full(image_shape, level))
        for name in RANGES
        for level in (0.0, 0.5, 1.0)
    ]
    noise = np.random.default_rng(0).random(image_shape)
    noises = [KNOWN[name].of_pixels(noise) for name in RANGES]
    images = np.array(levels + noises, "float32")
    front = _front_of_saved if isinstance(model, SavedModelClassifier) else _front
    found = front(model, images)
    if found is None:
        return None
    made = np.asarray(found.made, "float64").reshape(len(images), -1)
    return _decide(made[:9].reshape(3, 3, -1), made[9:], found)


def _decide(made, noises, front) -> FoundValues | None:
    """The range that costs least.

    Args:
        made: of black, grey and white in each of the `RANGES`, `(3, 3, values)`.
        noises: of one image of noise in each, `(3, values)`.
        front: how they were made.
    """
    where, statistics = front.where, _mean_and_deviation(*front.statistics)
    changing = np.ptp(made, axis=(0, 1)) > 1e-6
    if not changing.any():
        alike = np.allclose(noises[0], noises[1:], atol=1e-2) and np.ptp(noises[0]) > 0
        # It standardises each image: all ranges are one to it.
        return FoundValues("0..1", where, True) if alike else None
    made = np.median(made[..., changing], axis=-1)
    if statistics:
        where = f"read from the statistics of {front.first}"
        costs = [_cost_of_statistics(*statistics, m[0], m[2]) for m in made]
    elif np.allclose(made[:, ::2], [[0, 1], [-1, 1], [0, 255]], rtol=1e-3, atol=1e-3):
        return None  # they go through as they are
    else:
        costs = [_cost_of_arithmetic(*levels) for levels in made]
    best, second = np.argsort(costs, kind="stable")[:2]
    certain = math.isfinite(costs[best]) and costs[second] - costs[best] > _CERTAIN
    if statistics and RANGES[best] == "-1..1":
        # Statistics that are not yet far from where they start look the same.
        certain = certain and statistics[0] < -0.02
    return FoundValues(RANGES[best], where, bool(certain))


def _cost_of_arithmetic(black: float, grey: float, white: float) -> float:
    """How unusual it is that preprocessing ends with these values."""
    span = white - black
    if abs(span) < 1e-9:
        return math.inf
    bent = 9 * (abs(grey - (black + white) / 2) > 0.02 * abs(span))
    low, high = sorted((black, white))
    for least, most in _USUAL:
        if max(abs(low - least), abs(high - most)) <= 0.01 * (most - least):
            return bent
    zero = -black / span  # where it lies between black and white
    if abs(abs(span) / 255 - 1) < 0.01 and 0.2 < zero < 0.8:  # less a mean
        return bent + 0.1
    standardised = 0.2 + _cost_of_statistics(0, 1, black, white)
    outside = max(0, -zero, zero - 0.55)
    rest = 1 + math.log10(abs(span) / 2) ** 2 + 25 * outside**2
    return bent + min(standardised, rest)


def _cost_of_statistics(
    mean: float, deviation: float, black: float, white: float
) -> float:
    """How unusual a data set of this mean and deviation is between black and white."""
    if black == white:
        return math.inf
    share = (mean - black) / (white - black)
    if not 0 < share < 1:
        return math.inf
    # 1 if all pixels are black or white, which is the most that can be.
    contrast = deviation / abs(white - black) / math.sqrt(share * (1 - share))
    if not 0 < contrast < 1.05:
        return math.inf
    return abs(math.log(contrast / _USUAL_CONTRAST))


def _mean_and_deviation(mean=None, variance=None) -> tuple[float, float] | None:
    """Of what a BatchNormalization was trained on, if it was."""
    if mean is None:
        return None
    mean, variance = np.array(mean, "float64"), np.array(variance, "float64")
    if not mean.any() and (variance == 1).all():
        return None
    return float(np.median(mean)), float(np.median(variance)) ** 0.5


class _Reached(BaseException):
    """The first layer that learns is reached. No `Exception`: Keras rewrites these."""


def _front(model, images) -> _Front | None:
    calls: list[tuple[Any, Any, Any]] = []

    def watch(layer, call):
        def watched(*args, **kwargs):
            inputs = args[0] if args else next(iter(kwargs.values()), None)
            if learns(layer):
                calls.append((layer, inputs, None))
                raise _Reached
            outputs = call(*args, **kwargs)
            calls.append((layer, inputs, outputs))
            return outputs

        return watched

    watched_layers = list(leaf_layers(model))
    for layer in watched_layers:
        override_call(layer, "front", watch)
    try:
        model(images, training=False)
    except _Reached:
        pass
    finally:
        restore_calls(watched_layers, "front")
    if not calls:
        return None
    *before, (first, made, _) = calls
    changed = (f"layer {x.name}" for x, *values in before if not _same(*values))
    where = next(changed, f"the operations before layer {first.name}")
    is_norm = isinstance(first, layers.BatchNormalization)
    statistics = (first.moving_mean, first.moving_variance) if is_norm else ()
    return _Front(made, f"read from {where}", f"layer {first.name}", statistics)


def _same(inputs, outputs) -> bool:
    # Of several that are merged, the first.
    inputs, outputs = (np.asarray(keras.tree.flatten(x)[0]) for x in (inputs, outputs))
    # Resizing, padding and the like change no values.
    return bool(np.isclose(inputs[8].max(), outputs[8].max(), rtol=1e-3))


def _front_of_saved(model, images) -> _Front | None:
    found = model.front(images)
    first = "its first BatchNormalization"
    where = "read from the operations before its first weights"
    return found and _Front(found[0], where, first, found[1:])


def rescaling_to(spec: DatasetSpec, values: str) -> keras.layers.Layer | None:
    """A plain layer from normalised images to `values`; None if they are the same.

    Args:
        spec: whose normalisation comes in.
        values: one of `RANGES`, or `NORMALISED`.
    """
    if values == NORMALISED:
        return None
    wanted = pixel_values(values)
    return layers.Rescaling(
        [std * wanted.scale[0] for std in spec.std],
        [mean * wanted.scale[0] + wanted.offset[0] for mean in spec.mean],
        name="expected_values",
    )
