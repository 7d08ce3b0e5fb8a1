"""Caltech-101 as the published runs split it, from the upstream archive.

TFDS's own `caltech101` draws 30 training images per class from an unsorted directory
listing and keeps the background class. Here: no background, sorted names, a seeded
stratified 80/20 split that is the same on every file system.
"""

import pathlib

import tensorflow_datasets as tfds

from cdfkd_tf.data.sampling import stratified_split
from cdfkd_tf.errors import RequestError

URL = "https://data.caltech.edu/records/mzrjq-6wc02/files/caltech-101.zip?download=1"
BACKGROUND = "BACKGROUND_Google"
NUM_CLASSES = 101


class Caltech101Stratified(tfds.core.GeneratorBasedBuilder):
    """101 classes, JPEG images of about 300x200 pixels, `train` and `test`."""

    VERSION = tfds.core.Version("1.0.0")

    @property
    def url_infos(self):
        """The size and checksum that TFDS's own builder registers."""
        return {URL: tfds.builder_cls("caltech101").url_infos[URL]}

    def _info(self) -> tfds.core.DatasetInfo:
        return self.dataset_info_from_configs(
            description="Caltech-101 without background, 80/20 stratified split.",
            features=tfds.features.FeaturesDict(
                {
                    "image": tfds.features.Image(shape=(None, None, 3)),
                    "label": tfds.features.ClassLabel(num_classes=NUM_CLASSES),
                    "file_name": tfds.features.Text(),
                }
            ),
            supervised_keys=("image", "label"),
            homepage="https://data.caltech.edu/records/mzrjq-6wc02",
        )

    def _split_generators(self, dl_manager):
        archive = dl_manager.download_and_extract(URL)
        inner = archive / "caltech-101" / "101_ObjectCategories.tar.gz"
        root = pathlib.Path(dl_manager.extract(inner)) / "101_ObjectCategories"
        classes = sorted(
            folder.name
            for folder in root.iterdir()
            if folder.is_dir() and folder.name != BACKGROUND
        )
        if len(classes) != NUM_CLASSES:
            raise RequestError(
                f"Caltech-101 has {NUM_CLASSES} classes besides the background; "
                f"{inner} holds {len(classes)}. Fetch the archive again."
            )
        self.info.features["label"].names = classes
        files, labels = [], []
        for label, name in enumerate(classes):
            images = sorted((root / name).glob("*.jpg"))
            if not images:
                raise RequestError(
                    f"Class folder {name} in {inner} has no image (*.jpg). Fetch the "
                    "archive again."
                )
            files += images
            labels += [label] * len(images)
        parts = stratified_split(labels)
        return {
            split: self._generate_examples(root, files, labels, indices)
            for split, indices in parts.items()
        }

    def _generate_examples(self, root, files, labels, indices):
        for index in indices:
            name = files[index].relative_to(root).as_posix()
            yield (
                name,
                {
                    "image": str(files[index]),
                    "label": labels[index],
                    "file_name": name,
                },
            )
