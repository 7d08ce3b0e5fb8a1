"""Image files of any common kind as 8-bit images. Without TensorFlow."""

import pathlib

import numpy as np
from PIL import Image

IMAGE_SUFFIXES = (
    *(".png", ".jpg", ".jpeg", ".bmp", ".gif"),
    *(".tif", ".tiff", ".webp", ".ppm"),
)
_GREY = ("1", "L", "LA", "F", "I", "I;16", "I;16B")


def open_image(file: str | pathlib.Path, channels: int) -> Image.Image:
    """The decoded image.

    Args:
        file: any kind that Pillow reads; of an animation, the first frame.
        channels: 1: grey, luminance of coloured ones; 3: RGB.

    Raises:
        OSError, ValueError: if it is no image or a damaged one.
    """
    try:
        with Image.open(file) as image:
            return _eight_bits(image).convert("L" if channels == 1 else "RGB")
    except OSError:
        raise
    except Exception as error:  # decoders raise many kinds for damaged files
        raise ValueError(f"{type(error).__name__}: {error}") from error


def image_form(file: str | pathlib.Path) -> tuple[int, int, int]:
    """Height, width and channels (1 or 3) as the file's head says.

    Raises:
        Exception: of many kinds, if it is no image.
    """
    with Image.open(file) as image:
        return (image.height, image.width, 1 if image.mode in _GREY else 3)


def _eight_bits(image: Image.Image) -> Image.Image:
    """Whole numbers of 16 bits as bytes: Pillow would make white of most of them."""
    if not image.mode.startswith("I"):
        return image
    values = np.asarray(image).astype("float64") * (255 / 65535)
    return Image.fromarray(np.clip(np.rint(values), 0, 255).astype("uint8"))
