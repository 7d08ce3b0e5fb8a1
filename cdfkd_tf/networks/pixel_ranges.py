"""Which pixel values a network may expect, as text and as arithmetic.

Importable without TensorFlow.
"""

import dataclasses
import re
from typing import Any

from cdfkd_tf.errors import RequestError

NORMALISED = "normalised"  # as the data set's normalisation makes them
INPUT_NAME = "normalised_image"  # an input called so wants normalised images
LUMINANCE = (0.2989, 0.587, 0.114)  # ITU-R BT.601, as tf.image
_NUMBERS = r"\s*([-+.\deE]+(?:\s*[,/]\s*[-+.\deE]+)*)\s*"
_MEAN_AND_STD = re.compile(rf"mean={_NUMBERS}[;,]\s*std={_NUMBERS}")
_LARGEST = 1.5  # of mean and std; larger ones were measured on other values
_FORMS = (
    "0..1, 0..255, -1..1, imagenet, caffe, normalised, or mean=M;std=S of pixels in "
    "[0, 1], each one number or one per channel"
)


@dataclasses.dataclass(frozen=True)
class PixelValues:
    """What is made of pixels in [0, 1] for a network: `pixels * scale + offset`.

    Attributes:
        text: as `--teacher_input` names it.
        scale: per channel, or one for all.
        offset: likewise.
        reverses: whether channels stand in the order blue, green, red.
    """

    text: str
    scale: tuple[float, ...] = (1.0,)
    offset: tuple[float, ...] = (0.0,)
    reverses: bool = False

    def of_pixels(self, pixels: Any) -> Any:
        """The values of images `(..., channels)` in [0, 1]."""
        pixels = pixels[..., ::-1] if self.reverses else pixels
        return pixels * list(self.scale) + list(self.offset)

    def for_channels(self, channels: int) -> "PixelValues":
        """The same for images of so many channels; grey ones get the luminance's.

        Raises:
            RequestError: numbers for another number of channels.
        """
        if channels in (len(self.scale), None) or len(self.scale) == 1:
            return self
        if channels != 1:
            raise RequestError(
                f"--teacher_input={self.text} has {len(self.scale)} numbers, and the "
                f"teacher's images have {channels} channels. Give one number, or one "
                "per channel."
            )
        weights = LUMINANCE[::-1] if self.reverses else LUMINANCE

        def grey(values):
            whole = sum(weights)
            return (sum(w * v for w, v in zip(weights, values)) / whole,)

        return PixelValues(self.text, grey(self.scale), grey(self.offset))


def of_mean_and_std(text: str, mean: tuple, std: tuple) -> PixelValues:
    """Pixels in [0, 1] less `mean`, divided by `std`; one number each per channel."""
    scale = tuple(1 / value for value in std)
    return PixelValues(text, scale, tuple(-m * s for m, s in zip(mean, scale)))


KNOWN = {
    values.text: values
    for values in (
        PixelValues("0..1"),
        PixelValues("0..255", (255.0,)),
        PixelValues("-1..1", (2.0,), (-1.0,)),
        # Of the images of ImageNet: as PyTorch's networks take them ...
        of_mean_and_std("imagenet", (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
        # ... and Caffe's.
        PixelValues("caffe", (255.0,) * 3, (-103.939, -116.779, -123.68), True),
    )
}


def pixel_values(text: str) -> PixelValues:
    """The values that a text names, any but `NORMALISED`, which a data set defines.

    Args:
        text: a key of `KNOWN`, or `mean=0.5;std=0.25` in units of pixels in [0, 1],
            each one number or one per channel with commas between.

    Raises:
        RequestError: another text.
    """
    if text in KNOWN:
        return KNOWN[text]
    try:
        found = _MEAN_AND_STD.fullmatch(text)
        mean, std = (
            [float(number) for number in re.split("[,/]", numbers)]
            for numbers in found.groups()
        )
        count = max(len(mean), len(std))
        mean, std = (v * count if len(v) == 1 else v for v in (mean, std))
        if len(mean) != len(std) or min(std) <= 0:
            raise ValueError
    except (AttributeError, ValueError):
        raise RequestError(
            f"--teacher_input must be one of auto, {_FORMS}; got {text!r}."
        ) from None
    if max(map(abs, (*mean, *std))) > _LARGEST:
        raise RequestError(
            f"--teacher_input={text}: mean and std are those of pixels in [0, 1]. "
            "Divide them by 255."
        )
    return of_mean_and_std(text, tuple(mean), tuple(std))
