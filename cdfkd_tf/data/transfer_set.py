"""Images that are not of the task: drawn by formula, or cut from any pictures.

What teachers answer to such images carries much of what they know, see
`distillation.bank`. Without TensorFlow.
"""

import contextlib
import functools
import pathlib
from collections.abc import Callable, Mapping, Sequence

import numpy as np
from PIL import Image

from cdfkd_tf.data import patches, procedural
from cdfkd_tf.data.image_files import (
    IMAGE_SUFFIXES,
    find_images,
    open_image,
    read_image,
)
from cdfkd_tf.errors import RequestError

BUILTIN = "builtin"
_ENOUGH = 100  # pictures that are worth seeing whole, and not in pieces alone
_MOST_PICTURES = 2000  # read from a folder; patches of more look alike
# Photographs of scikit-image that are in the public domain or free to use.
_PHOTOGRAPHS = (
    *("astronaut.png", "brick.png", "camera.png", "chelsea.png", "coffee.png"),
    *("coins.png", "grass.png", "gravel.png", "hubble_deep_field.jpg", "moon.png"),
    *("motorcycle_left.png", "page.png", "retina.jpg", "rocket.jpg", "text.png"),
)
# Draws `n` images: (count, (height, width, channels), seed) to uint8 images.
Kind = Callable[[int, tuple[int, int, int], int], np.ndarray]


def white_noise(count: int, shape: tuple[int, int, int], seed: int) -> np.ndarray:
    """Independent normal pixels around middle grey: the cheapest baseline.

    Args:
        count: n.
        shape: `(height, width, channels)`.
        seed: of all that is random.

    Returns:
        `(n, height, width, channels)`, uint8; a deviation is a quarter of the range.
    """
    noise = np.random.default_rng([seed, 200]).standard_normal((count, *shape))
    return procedural.to_bytes(0.5 + 0.25 * noise.astype("float32"))


def kinds_of(sources: Sequence[str], transfer_images: str) -> dict[str, Kind]:
    """The kinds of images that some sources offer.

    Args:
        sources: out of `procedural`, `pictures`, `patches`, `noise`.
        transfer_images: folder of pictures, or `builtin`, for `pictures`.

    Raises:
        RequestError: pictures are wanted and there are none.
    """
    kinds: dict[str, Kind] = {}
    if "procedural" in sources:
        for name in procedural.KINDS:
            kinds[name] = functools.partial(procedural.draw, name)
    if needs_pictures(sources):
        pictures = read_pictures(transfer_images)
        names = patches.KINDS if "pictures" in sources else ["patches"]
        for name in names if len(pictures) >= _ENOUGH else names[:2]:
            kinds[name] = functools.partial(patches.cut, name, pictures)
    if "noise" in sources:
        kinds["noise"] = white_noise
    return kinds


def needs_pictures(sources: Sequence[str]) -> bool:
    """Whether some sources cut their images from pictures."""
    return bool({"pictures", "patches"} & set(sources))


def read_pictures(place: str) -> list[Image.Image]:
    """Any pictures, in colour.

    Args:
        place: a folder, searched with all below it; or `builtin`: scikit-image's
            photographs.

    Raises:
        RequestError: no such folder, no readable picture in it, or scikit-image is
            not installed.
    """
    if place == BUILTIN:
        return [open_image(file, 3) for file in _photographs()]
    folder = pathlib.Path(place)
    if not place or not folder.is_dir():
        raise RequestError(
            "Patches are cut from pictures: give --transfer_images=FOLDER with any "
            f"pictures in it, or {BUILTIN}; got {place or 'nothing'!r}."
        )
    files, _ = find_images(folder)
    pictures = []
    for file in files[:: max(1, len(files) // _MOST_PICTURES)]:
        try:
            pictures.append(open_image(file, 3))
        except ValueError:  # any other picture will do
            continue
    if not pictures:
        raise RequestError(
            f"There is no readable picture in --transfer_images={place}; expected "
            f"image files ({', '.join(IMAGE_SUFFIXES)})."
        )
    return pictures


def read_unlabelled(place: str, shape: tuple[int, int, int]) -> np.ndarray:
    """Pictures of the task, resized, `(n, height, width, channels)` in [0, 1].

    Args:
        place: a folder, searched with all below it; at most `_MOST_PICTURES` count.
        shape: `(height, width, channels)`.

    Raises:
        RequestError: no such folder, or fewer than two readable pictures in it.
    """
    folder, found = pathlib.Path(place), []
    files = find_images(folder)[0] if folder.is_dir() else []
    for file in files[:: max(1, len(files) // _MOST_PICTURES)]:
        with contextlib.suppress(ValueError):  # others will do
            found.append(read_image(file, shape))
    if len(found) < 2:
        raise RequestError(
            "Statistics are taken from at least 2 pictures of the task; "
            f"--bn_images={place} has {len(found)} that can be read."
        )
    return np.stack(found)


def _photographs() -> list[pathlib.Path]:
    try:
        import skimage
    except ImportError:
        raise RequestError(
            f"--transfer_images={BUILTIN} reads scikit-image's photographs: pip "
            "install 'cdfkd_tf[pictures]', or give a folder of pictures."
        ) from None
    folder = pathlib.Path(skimage.__file__).parent / "data"
    return [folder / name for name in _PHOTOGRAPHS if (folder / name).is_file()]


def mixture(
    kinds: Mapping[str, Kind],
    shares: Mapping[str, float],
    count: int,
    shape: tuple[int, int, int],
    seed: int,
) -> np.ndarray:
    """Images of several kinds, mixed.

    Args:
        kinds: from `kinds_of`.
        shares: of each kind, summing to 1.
        count: n.
        shape: `(height, width, channels)`.
        seed: of the images and their order.

    Returns:
        `(n, height, width, channels)`, uint8.
    """
    ends = np.rint(np.cumsum([shares[name] for name in kinds]) * count).astype(int)
    counts = np.diff(ends, prepend=0)
    images = np.concatenate(
        [
            draw(int(number), shape, seed)
            for draw, number in zip(kinds.values(), counts)
            if number
        ]
    )
    return images[np.random.default_rng([seed, 300]).permutation(len(images))]
