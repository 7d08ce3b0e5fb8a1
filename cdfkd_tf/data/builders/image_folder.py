"""The user's own images: one folder per split, one folder per class in it."""

import functools
import pathlib
import random

import numpy as np
import tensorflow as tf

from cdfkd_tf.data.image_files import (
    IMAGE_SUFFIXES,
    image_form,
    is_hidden,
    open_image,
)
from cdfkd_tf.data.specs import DatasetSpec, plain_spec
from cdfkd_tf.errors import RequestError

SPLITS = ("train", "test")


class FolderExamples:
    """Images read where they are, in the seeded order of `tfds.ImageFolder`.

    Has the methods of `prepare.TfdsExamples`.

    Args:
        folder: holds `train/<class>/*`, `test/<class>/*`; one of them may be missing.
        channels: 1 or 3; images of others are converted.
    """

    def __init__(self, folder: str, channels: int):
        self._root, self._channels = pathlib.Path(folder), channels
        self._files, classes = {}, set()
        for split in SPLITS:
            by_class = _list_images(self._root / split)
            files = [file for group in by_class.values() for file in group]
            random.Random(split).shuffle(files)
            cut = len(files) * 4 // 5
            parts = {"": files, "[:80%]": files[:cut], "[80%:]": files[cut:]}
            # One image alone is not split.
            self._files |= {split + part: f for part, f in parts.items() if cut or f}
            classes |= set(by_class)
        self.class_names = sorted(classes)

    def count(self, split: str) -> int:
        """How many examples `split` has; 0 where there is no such split."""
        return len(self._files.get(split, ()))

    def read(self, split: str) -> tf.data.Dataset:
        """Elements `{"image": path, "label": int64}`; no file is opened."""
        files = self._files[split]
        places = [self.class_names.index(file.parent.name) for file in files]
        table = {"image": list(map(str, files)), "label": np.array(places, "int64")}
        return tf.data.Dataset.from_tensor_slices(table)

    def decode(self, path: tf.Tensor) -> tf.Tensor:
        """The image of one example, uint8 `(height, width, channels)`."""

        def load(path: bytes) -> np.ndarray:
            image = np.asarray(open_image(path.decode(), self._channels))
            return image.reshape(*image.shape[:2], self._channels)

        image = tf.numpy_function(load, [path], tf.uint8, stateful=False)
        return tf.ensure_shape(image, (None, None, self._channels))

    def name(self, example: dict) -> str:
        """What an element of `read`, as NumPy values, is called: its path."""
        path = pathlib.Path(example["image"].decode())
        return path.relative_to(self._root).as_posix()


def folder_spec(folder: str, image_shape: tuple[int, ...]) -> DatasetSpec:
    """What networks must know about the images in `folder`.

    Classes are the names of the class folders, sorted, of both splits together. Names
    that start with "." or "@" are skipped. A file is opened once in a process, and
    again when it changes.

    Args:
        folder: see `FolderExamples`.
        image_shape: `(height, width, channels)`; empty: as the first image.

    Raises:
        RequestError: no such folder, no images, a class without images, a file that
            is no image; the message names the file.
    """
    root = pathlib.Path(folder)
    if not folder or not root.is_dir():
        raise RequestError(
            f"--dataset=folder reads --image_folder, and there is no folder {folder!r}."
        )
    classes, forms = set(), []
    for split in SPLITS:
        for name, files in _list_images(root / split).items():
            if not files:
                raise RequestError(
                    f"The class folder {root / split / name} holds no image "
                    f"({', '.join(IMAGE_SUFFIXES)}). Put some there or remove it."
                )
            for file in files:
                state = file.stat()
                forms.append(_form_of(file, state.st_mtime_ns, state.st_size))
            classes.add(name)
    if not forms:
        raise RequestError(
            f"{root} holds no images: expected {root}/train/<class>/*.png or "
            f"{root}/test/<class>/*.png (also {', '.join(IMAGE_SUFFIXES[1:])})."
        )
    return plain_spec(
        "folder",
        image_shape or forms[0],
        len(classes),
        class_names=tuple(sorted(classes)),
        folder=folder,
    )


def _list_images(folder: pathlib.Path) -> dict[str, list[pathlib.Path]]:
    """Class -> its image files, both sorted."""

    def visible(place: pathlib.Path) -> list[pathlib.Path]:
        found = place.iterdir()
        return sorted(p for p in found if not is_hidden(p.relative_to(place)))

    return {
        place.name: [f for f in visible(place) if f.suffix.lower() in IMAGE_SUFFIXES]
        for place in (visible(folder) if folder.is_dir() else ())
        if place.is_dir()
    }


@functools.cache
def _form_of(file: pathlib.Path, changed: int, size: int) -> tuple[int, int, int]:
    """See `image_form`; once for each state of a file."""
    try:
        return image_form(file)
    except Exception as error:  # decoders raise many kinds for damaged files
        raise RequestError(
            f"{file} is no image that can be read ({error}). Replace or remove it."
        ) from error
