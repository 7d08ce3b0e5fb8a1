"""Finds out which pixel values a teacher expects, and tells how it is known.

In this order: what the request says; what the network itself does with pixels before
its first weights; with which values it is right about real labelled images; which
values give its first BatchNormalization the statistics that it stored in training;
whose published network it is. The last two are guesses.
"""

import dataclasses
import math
from collections.abc import Callable, Mapping
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from cdfkd_tf.networks.pixel_ranges import KNOWN, NORMALISED
from cdfkd_tf.networks.preprocessing import FoundValues
from cdfkd_tf.runtime.keras_internals import all_layers
from cdfkd_tf.teachers.input_adapter import InputAdapter

_AT_ONCE = 32
_CHANCE = 1e-3  # how likely chance may be where it is ruled out
_NO_GAP = 0.15  # smaller differences of gaps tell nothing
_FITS = 0.4  # larger gaps are of another kind of images; the right values' are 0.1
_FORMULA_IMAGES, _FEW, _LARGE = 32, 8, 64 * 64  # for large images few are enough
_USUAL_SPREAD = 2.0  # deviation of a trained network's logits between images
# Tried on images, too: half a range around 0, and bytes less the mean of ImageNet.
_MORE = ("mean=0.5;std=1", "mean=0.485,0.456,0.406;std=0.00392157")
# A layer by which a network of `keras.applications` is known, its name, and the values
# that its published weights expect. (The others bring their preprocessing along.)
_PUBLISHED = (
    ("conv2_block1_preact_bn", "ResNetV2", "-1..1"),
    ("conv2_block1_concat", "DenseNet", "imagenet"),
    ("conv2_block1_3_conv", "ResNet", "caffe"),
    ("block2_sepconv1", "Xception", "-1..1"),
    ("block5_conv3", "VGG", "caffe"),
    ("block35_1_mixed", "InceptionResNetV2", "-1..1"),
    ("mixed10", "InceptionV3", "-1..1"),
    ("conv_dw_1", "MobileNet", "-1..1"),
    ("expanded_conv_depthwise", "MobileNetV2", "-1..1"),
    ("stem_conv1", "NASNet", "-1..1"),
)


@dataclasses.dataclass(frozen=True)
class Reading:
    """What is known of the pixel values that a teacher expects.

    Attributes:
        values: as `--teacher_input` names them.
        evidence: how they were found.
        guessed: whether that is a guess.
    """

    values: str
    evidence: str
    guessed: bool = False

    @classmethod
    def guess(cls, values: str, why: str) -> "Reading":
        """One that is called a guess, with the option that settles it."""
        return cls(values, f"guessed: {why}; --teacher_input=... settles it", True)

    def __str__(self) -> str:
        return f"{self.values} ({self.evidence})"


@dataclasses.dataclass(frozen=True)
class LabelledImages:
    """Real images to find out on which values a teacher is right.

    Attributes:
        normalised: `(n, height, width, channels)`, mixed.
        labels: `(n,)`.
        what: they are, for evidence, as "training images".
    """

    normalised: np.ndarray
    labels: np.ndarray
    what: str = "labelled images"


def find_reading(
    model: keras.Model,
    found: FoundValues | None,
    adapter: InputAdapter,
    answer: Callable[[Any], np.ndarray],
    bn_inputs: Callable[[Any], tuple | None],
    labelled: LabelledImages | None,
) -> Reading:
    """Which values a model expects.

    Args:
        model: any.
        found: what its own preprocessing tells.
        adapter: of any values, for the shape of its images.
        answer: images as the model takes them, to `(B, C)`.
        bn_inputs: likewise, to the first trained BatchNormalization's input, moving
            mean and variance, channels last; None where it has none.
        labelled: None: there are none, or they are not to be read.
    """
    default = adapter.spec.foreign_values
    first = found.values if found else default
    more = [NORMALISED] if adapter.spec.standardised else []
    more += _MORE if labelled else []
    names = dict.fromkeys([first, default, *KNOWN, *more])  # each once, in order
    adapters = {n: dataclasses.replace(adapter, values=n) for n in names}
    prefix = ""
    if labelled:
        rivals, prefix = _measure(adapters, answer, labelled, found)
        if len(rivals) == 1:
            return Reading(*rivals, prefix)
        adapters = {name: adapters[name] for name in rivals}
        prefix = f"{prefix}; "
    if found and found.values in adapters:
        if found.is_certain:
            return Reading(found.values, found.evidence)
        return Reading.guess(found.values, prefix + found.evidence)
    values, evidence = _guess(model, adapters, answer, bn_inputs, default)
    return Reading.guess(values, prefix + evidence)


def _measure(
    adapters: Mapping[str, InputAdapter],
    answer: Callable[[Any], np.ndarray],
    labelled: LabelledImages,
    found: FoundValues | None,
) -> tuple[list[str], str]:
    """With which values the model is right most often.

    Looks at as many images as it takes to tell.

    Returns:
        The values that may be, the best one first, and the evidence.
    """
    labels, what = labelled.labels, labelled.what
    right = {name: np.zeros(0, bool) for name in adapters}
    rivals, share = list(adapters), np.bincount(labels).max() / len(labels)
    for start in range(0, len(labels), _AT_ONCE):
        part = slice(start, start + _AT_ONCE)
        for name in rivals:
            classes = answer(adapters[name](labelled.normalised[part])).argmax(-1)
            right[name] = np.append(right[name], classes == labels[part])
            sure = found and found.is_certain and name == found.values
            if sure and right[name].mean() > 0.5 and _above(right[name], share):
                rivals = [name]  # as its own layers say, and it is right
                break
        best = max(rivals, key=lambda name: right[name].sum())
        rivals = [n for n in rivals if not _clearly_less(right[n], right[best])]
        if len(rivals) == 1:
            break
    looked_at = len(right[best])
    if not _above(right[best], share):
        return list(adapters), f"no values make it right about {looked_at} {what}"
    others = [name for name in rivals if name != best]
    as_right = f"{right[best].mean():.0%} right"
    if found and best == found.values and not others:
        return [best], f"{found.evidence}; {as_right} on {looked_at} {what}"
    evidence = f"measured on {looked_at} {what}: {as_right}"
    second = max(
        others or [n for n in right if n not in rivals],
        key=lambda name: right[name].mean(),
        default=None,
    )
    if second:
        evidence += f", {right[second].mean():.0%} with {second}"
    if others:
        return [best, *others], f"{evidence}, no clear difference"
    if found and found.is_certain:
        evidence += f", although its own layers look like {found.values}"
    return [best], evidence


def _above(hits: np.ndarray, share: float) -> bool:
    """Whether more are right than chance would have with this share."""
    count, right = len(hits), int(hits.sum())
    tail = sum(
        math.comb(count, k) * share**k * (1 - share) ** (count - k)
        for k in range(right, count + 1)
    )
    return tail < _CHANCE


def _clearly_less(hits: np.ndarray, best: np.ndarray) -> bool:
    """Whether fewer are right than chance allows, image by image (sign test)."""
    lost, won = int((best & ~hits).sum()), int((hits & ~best).sum())
    tail = sum(math.comb(lost + won, k) for k in range(won + 1)) / 2 ** (lost + won)
    return lost > won and tail < _CHANCE


def _guess(
    model: keras.Model,
    adapters: Mapping[str, InputAdapter],
    answer: Callable[[Any], np.ndarray],
    bn_inputs: Callable[[Any], tuple | None],
    default: str,
) -> tuple[str, str]:
    """Values and evidence without an image to look at."""
    spec = next(iter(adapters.values())).spec
    height, width, _ = spec.image_shape
    count = _FORMULA_IMAGES if height * width <= _LARGE else _FEW
    normalised = spec.normalise(formula_images(count, spec.image_shape))
    normalised = tf.constant(normalised, keras.config.floatx())
    images = {name: adapter(normalised) for name, adapter in adapters.items()}
    memories = {name: bn_inputs(values) for name, values in images.items()}
    if None in memories.values():
        why = "only with such do its answers differ as those of trained networks do"
        gaps = {name: _spread_gap(answer(values)) for name, values in images.items()}
        nearest, tells_all = min(gaps, key=gaps.get), False
        bound = gaps[nearest] + 1
        nearest = "0..255" if gaps.get("0..255", bound) < bound else nearest
    else:
        why = "its BatchNormalization's stored statistics fit these best"
        gaps = {
            name: statistics_gap(*(np.asarray(value) for value in memory))
            for name, memory in memories.items()
        }
        nearest = min(gaps, key=gaps.get)
        # What fits badly tells 0..255 from the rest alone.
        tells_all = gaps[nearest] <= _FITS
        bound = gaps[nearest] + _NO_GAP if tells_all else 10 * gaps[nearest]
    names = {getattr(layer, "name", "") for layer in all_layers(model)}
    published = next(((n, v) for layer, n, v in _PUBLISHED if layer in names), None)
    likely = [published[1], default] if published else [default]
    fit = [values for values in likely if gaps.get(values, math.inf) <= bound]
    values = (fit or [nearest])[0]
    if tells_all or not fit:
        return values, why
    if published and values == published[1]:
        return values, f"as keras.applications' {published[0]} was published"
    return values, "nothing inside it tells"


def _spread_gap(logits: np.ndarray) -> float:
    """By how many powers of ten logits differ too much, or too little, between images.

    A network's answers to images in another range than its own are nearly the same,
    or a hundred times as far apart.
    """
    centred = logits - logits.mean(-1, keepdims=True)
    return abs(math.log10(max(float(centred.std(0).mean()), 1e-9) / _USUAL_SPREAD))


def statistics_gap(inputs: Any, mean: np.ndarray, variance: np.ndarray) -> float:
    """How far a layer's inputs are from those it was trained on.

    The divergence of one normal distribution from another, of the median channel.

    Args:
        inputs: `(B, ..., channels)`.
        mean: `(channels,)`, as stored.
        variance: likewise.
    """
    inputs = np.asarray(inputs, "float64")
    axes = tuple(range(inputs.ndim - 1))
    alive = variance > 1e-6 * variance.max()
    ratio = (inputs.var(axes)[alive] + 1e-12) / variance[alive]
    shift = (inputs.mean(axes) - mean)[alive] ** 2 / variance[alive]
    return float(np.median(ratio + shift - 1 - np.log(ratio))) / 2


def formula_images(
    count: int, image_shape: tuple[int, int, int], seed: int = 0
) -> np.ndarray:
    """Images with the statistics of photographs, made of numbers alone.

    Amplitudes fall with frequency, colours are alike, light and contrast differ from
    image to image.

    Args:
        count: how many.
        image_shape: `(height, width, channels)`.
        seed: of the draws.

    Returns:
        `(count, *image_shape)` in [0, 1].
    """
    height, width, channels = image_shape
    rng = np.random.default_rng(seed)
    frequency = np.hypot(np.fft.fftfreq(height)[:, None], np.fft.fftfreq(width))
    amplitude = np.divide(1, frequency, where=frequency > 0, out=0 * frequency)

    def field(last):
        waves = np.fft.fft2(rng.normal(size=(count, height, width, last)), axes=(1, 2))
        drawn = np.fft.ifft2(waves * amplitude[..., None], axes=(1, 2)).real
        return drawn / (drawn.std((1, 2), keepdims=True) + 1e-12)

    drawn = field(1) + 0.35 * field(channels)
    drawn /= drawn.std((1, 2, 3), keepdims=True) + 1e-12
    light = rng.normal(0.45, 0.15, (count, 1, 1, 1)).clip(0.1, 0.9)
    contrast = rng.uniform(0.1, 0.3, (count, 1, 1, 1))
    return (light + contrast * drawn).clip(0, 1).astype("float32")
