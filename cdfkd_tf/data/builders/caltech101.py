"""Caltech-101 as the published runs split it, from the upstream archive.

TFDS's own `caltech101` draws 30 training images per class from an unsorted directory
listing and keeps the background class. Here: no background, sorted names, a seeded
stratified 80/20 split that is the same on every file system.
"""

import pathlib
from typing import Any

import tensorflow_datasets as tfds

from cdfkd_tf.data.builders.stratified import Examples, StratifiedBuilder
from cdfkd_tf.errors import RequestError

URL = "https://data.caltech.edu/records/mzrjq-6wc02/files/caltech-101.zip?download=1"
BACKGROUND = "BACKGROUND_Google"


class Caltech101Stratified(StratifiedBuilder):
    """101 classes, JPEG images of about 300x200 pixels."""

    NUM_CLASSES = 101

    @property
    def url_infos(self) -> dict[str, Any]:
        """The size and checksum that TFDS's own builder registers."""
        return {URL: tfds.builder_cls("caltech101").url_infos[URL]}

    def list_examples(self, dl_manager: tfds.download.DownloadManager) -> Examples:
        """See the base class.

        Raises:
            RequestError: an archive with other classes, or a class without images.
        """
        archive = dl_manager.download_and_extract(URL)
        inner = archive / "caltech-101" / "101_ObjectCategories.tar.gz"
        root = pathlib.Path(dl_manager.extract(inner)) / "101_ObjectCategories"
        folders = sorted(
            folder
            for folder in root.iterdir()
            if folder.is_dir() and folder.name != BACKGROUND
        )
        if len(folders) != self.NUM_CLASSES:
            raise RequestError(
                f"Caltech-101 has {self.NUM_CLASSES} classes besides the background; "
                f"{inner} holds {len(folders)}. Fetch the archive again."
            )
        examples = []
        for label, folder in enumerate(folders):
            files = sorted(folder.glob("*.jpg"))
            if not files:
                raise RequestError(
                    f"Class folder {folder.name} in {inner} has no image (*.jpg). "
                    "Fetch the archive again."
                )
            examples += [(f"{folder.name}/{f.name}", str(f), label) for f in files]
        return examples, [folder.name for folder in folders]
