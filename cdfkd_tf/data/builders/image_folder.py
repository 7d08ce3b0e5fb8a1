"""The user's own images: one folder per split, one folder per class in it."""

import pathlib

import tensorflow_datasets as tfds
from PIL import Image

from cdfkd_tf.data.specs import DatasetSpec, plain_spec
from cdfkd_tf.errors import RequestError

SPLITS = ("train", "test")
_SUFFIXES = (".png", ".jpg", ".jpeg")


class FolderOfImages(tfds.ImageFolder):
    """TFDS's reader of folders with the parts of splits that a validation needs.

    Nothing is copied: images are read where they are, in TFDS's seeded order.

    Args:
        folder: holds `train/<class>/*`, `test/<class>/*`; one of them may be missing.
        channels: 1 or 3; others are converted.
    """

    def __init__(self, folder: str, channels: int):
        super().__init__(folder, shape=(None, None, channels))
        examples = self._split_examples
        for other in set(examples) - set(SPLITS):
            del examples[other]
        train = examples.get("train", [])
        cut = len(train) * 4 // 5
        if cut > 0:
            examples["train[:80%]"] = train[:cut]
            examples["train[80%:]"] = train[cut:]
        self.info.set_splits(
            tfds.core.SplitDict(
                [
                    tfds.core.SplitInfo(
                        name=name, shard_lengths=[len(found)], num_bytes=0
                    )
                    for name, found in examples.items()
                ]
            )
        )


def folder_spec(folder: str, image_shape: tuple[int, ...]) -> DatasetSpec:
    """What networks must know about the images in `folder`.

    Classes are the names of the class folders, sorted, of both splits together.

    Args:
        folder: see `FolderOfImages`.
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
    classes, first = set(), None
    for split in SPLITS:
        for class_folder in sorted(p for p in root.glob(f"{split}/*") if p.is_dir()):
            files = sorted(
                file
                for file in class_folder.iterdir()
                if file.suffix.lower() in _SUFFIXES
            )
            if not files:
                raise RequestError(
                    f"The class folder {class_folder} holds no image "
                    f"({', '.join(_SUFFIXES)}). Put some there or remove it."
                )
            for file in files:
                form = _form_of(file)
                first = first or form
            classes.add(class_folder.name)
    if first is None:
        raise RequestError(
            f"{root} holds no images: expected {root}/train/<class>/*.png or "
            f"{root}/test/<class>/*.png (also .jpg)."
        )
    return plain_spec(
        "folder",
        image_shape or first,
        len(classes),
        class_names=tuple(sorted(classes)),
        folder=folder,
    )


def _form_of(file: pathlib.Path) -> tuple[int, int, int]:
    """Height, width, channels as the file's head says.

    Raises:
        RequestError: if it is no image.
    """
    try:
        with Image.open(file) as image:
            grey = image.mode in ("1", "L", "I", "I;16", "F", "LA")
            return (image.height, image.width, 1 if grey else 3)
    except Exception as error:  # decoders raise many kinds for damaged files
        raise RequestError(
            f"{file} is no image that can be read ({error}). Replace or remove it."
        ) from error
