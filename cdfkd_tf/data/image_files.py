"""Image files of any common kind as 8-bit images, found and read alike everywhere.

Without TensorFlow. Read by content, whatever the name ends with: of several pictures
in one file the first, upright as EXIF says, transparent parts on white. Wider numbers
are 0..65535, or 0..255 if none is larger; floats may be 0..1. Anything else is refused.
"""

import collections
import contextlib
import os
import pathlib
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

IMAGE_SUFFIXES = (
    *(".png", ".jpg", ".jpeg", ".jfif", ".bmp", ".gif"),
    *(".tif", ".tiff", ".webp", ".ppm", ".pgm", ".pbm", ".pnm", ".jpe", ".avif"),
)
# Not what Pillow would hand to other programs (EPS).
_KINDS = ("PNG", "JPEG", "GIF", "BMP", "TIFF", "WEBP", "PPM", "AVIF")
_LEFT_BEHIND = ("__MACOSX", "Thumbs.db", "desktop.ini")  # by systems and programs
_GREY = ("1", "L", "LA", "F", "I", "I;16", "I;16B")
_TRANSPARENT = ("LA", "PA", "RGBA", "La", "RGBa")
_ORIENTATION, _BITS = 0x0112, 258  # tags of EXIF, of TIFF


def is_hidden(name: str) -> bool:
    """Whether a file or folder is a program's own: `.DS_Store`, `@eaDir` ..."""
    return name.startswith((".", "@")) or name in _LEFT_BEHIND


def find_images(folder: pathlib.Path) -> tuple[list[pathlib.Path], list[str]]:
    """All image files below a folder, and the names of its other files, sorted.

    Links are followed; hidden files and folders are skipped.
    """
    images, others, seen = [], [], set()
    for place, folders, names in os.walk(folder, followlinks=True):
        real = os.path.realpath(place)
        if real in seen:  # a link to a folder above
            folders.clear()
            continue
        seen.add(real)
        folders[:] = [name for name in folders if not is_hidden(name)]
        for name in names:
            if not is_hidden(name):
                file = pathlib.Path(place, name)
                is_image = file.suffix.lower() in IMAGE_SUFFIXES
                images.append(file) if is_image else others.append(name)
    return sorted(images), sorted(others)


def unreadable(files: Iterable[pathlib.Path]) -> list[str]:
    """Decodes each file; the names of those that cannot be, each with the reason."""

    def complaint(file: pathlib.Path) -> str:
        try:
            open_image(file, 3)
        except ValueError as error:
            return f"{file} ({str(error).rstrip('.')})"
        return ""

    with ThreadPoolExecutor() as pool:
        return list(filter(None, pool.map(complaint, files)))


def _open(file: str | pathlib.Path) -> Image.Image:
    Image.init()
    return Image.open(file, formats=[kind for kind in _KINDS if kind in Image.OPEN])


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
        with _open(file) as image:
            if image.format == "PNG":  # else wrong checksums would pass
                image.verify()
        with _open(file) as image:
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
        raise ValueError(getattr(error, "strerror", None) or str(error)) from error
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
    with _open(file) as image:
        width, height = image.size
        with contextlib.suppress(Exception):  # damaged EXIF data
            if image.getexif().get(_ORIENTATION, 1) >= 5:  # lies on its side
                width, height = height, width
        return (height, width, 1 if image.mode in _GREY else 3)


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
