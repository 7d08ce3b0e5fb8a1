"""Image files of any common kind as 8-bit images. Without TensorFlow.

Read by content, whatever the name ends with: of several pictures in one file the
first, upright as EXIF says, transparent parts on white. Wider numbers are 0..65535, or
0..255 if none is larger; floats may be 0..1. Anything else is refused.
"""

import collections
import contextlib
import pathlib
from collections.abc import Sequence

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

IMAGE_SUFFIXES = (
    *(".png", ".jpg", ".jpeg", ".jfif", ".bmp", ".gif"),
    *(".tif", ".tiff", ".webp", ".ppm", ".pgm"),
)
# Not what Pillow would hand to other programs (EPS).
_KINDS = ("PNG", "JPEG", "GIF", "BMP", "TIFF", "WEBP", "PPM")
_GREY = ("1", "L", "LA", "F", "I", "I;16", "I;16B")
_TRANSPARENT = ("LA", "PA", "RGBA", "La", "RGBa")
_ORIENTATION, _BITS = 0x0112, 258  # tags of EXIF, of TIFF


def open_image(
    file: str | pathlib.Path,
    channels: int,
    notes: collections.Counter[str] | None = None,
) -> Image.Image:
    """The decoded image.

    Args:
        file: of any kind, see above.
        channels: 1: grey, luminance of coloured ones; 3: RGB.
        notes: counts what files hold beyond the picture that is returned.

    Raises:
        ValueError: if it is no such image or a damaged one; the reason is one sentence.
    """
    try:
        with Image.open(file, formats=_KINDS) as image:
            if notes is not None and getattr(image, "n_frames", 1) > 1:
                notes["hold several pictures: the first one counts"] += 1
            bits = getattr(image, "tag_v2", {}).get(_BITS, (8,))
            upright = image
            with contextlib.suppress(Exception):  # damaged EXIF data, or pixels: below
                upright = ImageOps.exif_transpose(image)
            picture = _eight_bits(upright)
            if picture.mode in _TRANSPARENT or "transparency" in picture.info:
                picture = picture.convert("RGBA")
                if notes is not None and picture.getextrema()[3][0] < 255:
                    notes["have transparent parts, which become white"] += 1
                white = Image.new("RGBA", picture.size, "white")
                picture = Image.alpha_composite(white, picture)
            picture = picture.convert("L" if channels == 1 else "RGB")
            if max(bits) > 8 and len(bits) > 1 and not picture.getbbox():
                raise ValueError(
                    f"it has {max(bits)} bits per colour, of which the upper 8 are 0"
                )
            return picture
    except UnidentifiedImageError as error:
        empty = pathlib.Path(file).stat().st_size == 0
        kinds = f"none of {', '.join(_KINDS)} of usual depth"
        raise ValueError("it is empty" if empty else f"it is {kinds}") from error
    except (ValueError, OSError) as error:
        raise ValueError(str(error)) from error
    except Exception as error:  # decoders raise many kinds for damaged files
        raise ValueError(f"{type(error).__name__}: {error}") from error


def read_image(
    file: str | pathlib.Path,
    image_shape: Sequence[int],
    shorter_side: int = 0,
    notes: collections.Counter[str] | None = None,
) -> np.ndarray:
    """An image file as a network takes it, in [0, 1].

    Resized bilinearly and, where it shrinks, with averaging, as for training.

    Args:
        file: see `open_image`.
        image_shape: `(height, width, channels)` of the result; 1 channel is grey.
        shorter_side: scale to it, then crop the centre; 0: scale as it is.
        notes: see `open_image`.

    Raises:
        ValueError: see `open_image`.
    """
    height, width, channels = image_shape
    image = open_image(file, channels, notes)
    if shorter_side:
        factor = shorter_side / min(image.size)
        size = [max(1, round(side * factor)) for side in image.size]
        image = image.resize(size, Image.Resampling.BILINEAR)
        left, top = (image.width - width) // 2, (image.height - height) // 2
        image = image.crop((left, top, left + width, top + height))
    elif image.size != (width, height):
        image = image.resize((width, height), Image.Resampling.BILINEAR)
    return np.asarray(image, "float32").reshape(height, width, channels) / 255


def image_form(file: str | pathlib.Path) -> tuple[int, int, int]:
    """Height, width and channels (1 or 3), upright, as the file's head says.

    Raises:
        Exception: of many kinds, if it is no image.
    """
    with Image.open(file, formats=_KINDS) as image:
        width, height = image.size
        with contextlib.suppress(Exception):  # damaged EXIF data
            if image.getexif().get(_ORIENTATION, 1) >= 5:  # lies on its side
                width, height = height, width
        return (height, width, 1 if image.mode in _GREY else 3)


def is_hidden(path: pathlib.PurePath) -> bool:
    """Whether programs put it there: a part of its path starts with "." or "@"."""
    return any(part.startswith((".", "@")) for part in path.parts)


def _eight_bits(image: Image.Image) -> Image.Image:
    """Numbers wider than a byte as bytes: Pillow would make white of most of them."""
    if image.mode[0] not in "IF":
        return image
    values = np.asarray(image).astype("float64")
    low, high = values.min(), values.max()
    if not (low >= 0 and high <= 65535):  # not <: also where they are no numbers
        raise ValueError(
            f"its values are {low:g} to {high:g}, expected 0..255, 0..65535, or 0..1"
        )
    unit = 1 if image.mode == "F" and high <= 1 else 255 if high <= 255 else 65535
    return Image.fromarray(np.rint(values * (255 / unit)).astype("uint8"))
