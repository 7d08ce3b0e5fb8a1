"""The user's own images: one folder per split, one folder per class in it."""

import contextlib
import os
import pathlib
import random
from collections.abc import Iterable, Iterator, Sequence

import numpy as np
import tensorflow as tf

from cdfkd_tf.data.image_files import (
    find_images,
    image_form,
    is_hidden,
    read_image,
)
from cdfkd_tf.data.specs import DatasetSpec, plain_spec
from cdfkd_tf.errors import RequestError

# Split -> what its folder may be called, the first one found counts.
SPLITS = {
    "train": ("train", "training"),
    "test": ("test", "val", "valid", "validation"),
}


class ImageFolder:
    """The images in a folder, listed but not opened.

    Below a class folder images may lie at any depth. Names that start with "." or "@"
    are skipped, and what systems leave behind.

    Args:
        folder: holds `train/<class>/*`, `test/<class>/*`; one of them may be missing,
            and `val` does for `test`.

    Attributes:
        class_names: sorted, of both splits together.
        splits: split -> pairs of file and class name, sorted.
        left_out: names of other files and folders, which nothing reads.

    Raises:
        RequestError: no such folder, no images, a single class, a class without
            images.
    """

    def __init__(self, folder: str):
        self.root = root = pathlib.Path(folder)
        if not folder or not root.is_dir():
            raise RequestError(
                "--dataset=folder reads --image_folder, and there is no folder "
                f"{folder!r}."
            )
        places = {p.name.lower(): p for p in root.iterdir() if not is_hidden(p.name)}
        self.splits: dict[str, list[tuple[pathlib.Path, str]]] = {}
        self.left_out: list[str] = []
        for split, names in SPLITS.items():
            name = next((n for n in names if n in places), None)
            place = places.pop(name) if name else root / split
            self.splits[split] = self._list_classes(place) if place.is_dir() else []
        self.left_out += [place.name for place in places.values()]
        self.class_names = sorted({name for s in self.splits.values() for _, name in s})
        if not self.class_names:
            found = ", ".join(sorted(self.left_out)[:5]) or "nothing"
            raise RequestError(
                f"{root} holds no images: expected {root}/train/<class>/*.png or "
                f"{root}/test/<class>/*.png (also .jpg and others); found {found}."
            )
        if len(self.class_names) == 1:
            raise RequestError(
                f"{root} holds one class, {self.class_names[0]}; expected a folder for "
                "each of at least two."
            )

    def _list_classes(self, folder: pathlib.Path) -> list[tuple[pathlib.Path, str]]:
        found = []
        for place in sorted(p for p in folder.iterdir() if not is_hidden(p.name)):
            if not place.is_dir():
                self.left_out.append(place.name)
                continue
            images, others = find_images(place)
            self.left_out += others
            if not images:
                raise RequestError(
                    f"The class folder {place} holds no image. Put some there or "
                    "remove it."
                )
            found += [(image, place.name) for image in images]
        return found

    def files(self) -> list[pathlib.Path]:
        """All image files."""
        return [file for split in self.splits.values() for file, _ in split]


class FolderExamples:
    """Images read where they are, in the seeded order of `tfds.ImageFolder`.

    Has the methods of `prepare.TfdsExamples`.

    Args:
        spec: from `folder_spec`.
    """

    def __init__(self, spec: DatasetSpec):
        self._spec, folder = spec, ImageFolder(spec.folder)
        self._root, self.class_names = folder.root, folder.class_names
        self._files: dict[str, Sequence[tuple[pathlib.Path, str]]] = {}
        for split, files in folder.splits.items():
            files = list(files)
            random.Random(split).shuffle(files)
            cut = len(files) * 4 // 5
            parts = {"": files, "[:80%]": files[:cut], "[80%:]": files[cut:]}
            # One image alone is not split.
            self._files |= {split + part: f for part, f in parts.items() if cut or f}

    def count(self, split: str) -> int:
        """How many examples `split` has; 0 where there is no such split."""
        return len(self._files.get(split, ()))

    def read(self, split: str) -> tf.data.Dataset:
        """Scalars `{"image": path, "label": int64}` in order; no file is opened."""
        files, classes = zip(*self._files[split])
        labels = [self.class_names.index(name) for name in classes]
        table = {
            "image": [os.fsencode(file) for file in files],
            "label": np.array(labels, "int64"),
        }
        return tf.data.Dataset.from_tensor_slices(table)

    def decode(self, path: tf.Tensor) -> tf.Tensor:
        """The image of one example in [0, 1], float32 `(height, width, channels)`.

        Args:
            path: a scalar, from `read`.

        Raises:
            ValueError: within the pipeline, a file that cannot be read, by its name.
        """
        spec = self._spec

        def load(path: bytes) -> np.ndarray:
            file = os.fsdecode(path)
            try:
                return read_image(file, spec.image_shape, spec.shorter_side)
            except ValueError as error:  # TensorFlow would not name it
                raise ValueError(f"{file} cannot be read: {error}") from None

        image = tf.numpy_function(load, [path], tf.float32, stateful=False)
        return tf.ensure_shape(image, spec.image_shape)

    def name(self, example: dict) -> str:
        """What an element of `read`, as NumPy values, is called: its path."""
        path = pathlib.Path(os.fsdecode(example["image"]))
        return path.relative_to(self._root).as_posix()


def folder_spec(
    folder: str, image_shape: Sequence[int] = (), channels: int = 0
) -> DatasetSpec:
    """What networks must know about the images in `folder`.

    Args:
        folder: see `ImageFolder`.
        image_shape: `(height, width, channels)`; empty: as the first image.
        channels: where `image_shape` does not tell: 1, 3, or 0: 3 if any image has
            colours.

    Raises:
        RequestError: as `ImageFolder`; no image whose size can be read.
    """
    images = ImageFolder(folder)
    if not image_shape:
        forms = _forms(images.files())
        *size, first = next(forms, (None,))
        if not size:
            raise RequestError(
                f"None of the image files in {folder} can be read, as "
                f"{images.files()[0]}. Replace them."
            )
        coloured = first == 3 or (not channels and any(form[2] == 3 for form in forms))
        image_shape = (*size, channels or (3 if coloured else 1))
    return plain_spec(
        "folder",
        image_shape,
        len(images.class_names),
        class_names=tuple(images.class_names),
        folder=folder,
    )


def _forms(files: Iterable[pathlib.Path]) -> Iterator[tuple[int, int, int]]:
    for file in files:
        with contextlib.suppress(Exception):  # what is damaged is named elsewhere
            yield image_form(file)
