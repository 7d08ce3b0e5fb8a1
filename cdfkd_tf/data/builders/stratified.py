"""What our TFDS builders share: all examples listed at once, split 80 to 20."""

import abc
from collections.abc import Sequence
from typing import Any

import tensorflow_datasets as tfds

from cdfkd_tf.data.sampling import stratified_split

Examples = tuple[Sequence[tuple[Any, Any, int]], Sequence[str]]


class StratifiedBuilder(tfds.core.GeneratorBasedBuilder, skip_registration=True):
    """Splits `train` and `test`, seeded and stratified, the same on every machine.

    Attributes:
        IMAGE_SHAPE: `(height, width, channels)`, None where it varies.
        NUM_CLASSES: C.
        HAS_FILES: whether examples are files, whose names are kept.
    """

    VERSION = tfds.core.Version("1.0.0")
    IMAGE_SHAPE: tuple[int | None, ...] = (None, None, 3)
    NUM_CLASSES: int
    HAS_FILES = True

    @abc.abstractmethod
    def list_examples(self, dl_manager: tfds.download.DownloadManager) -> Examples:
        """All examples in a fixed order, and the class names.

        Args:
            dl_manager: fetches and unpacks what is needed.

        Returns:
            Rows of key, image (uint8, `IMAGE_SHAPE`) or its file, and label, 0 to
            C - 1; C names.
        """

    def _info(self) -> tfds.core.DatasetInfo:
        features = {
            "image": tfds.features.Image(shape=self.IMAGE_SHAPE),
            "label": tfds.features.ClassLabel(num_classes=self.NUM_CLASSES),
        }
        if self.HAS_FILES:
            features["file_name"] = tfds.features.Text()
        return self.dataset_info_from_configs(
            description=self.__doc__,
            features=tfds.features.FeaturesDict(features),
            supervised_keys=("image", "label"),
        )

    def _split_generators(self, dl_manager):
        examples, self.info.features["label"].names = self.list_examples(dl_manager)
        splits = stratified_split([label for *_, label in examples])
        return {
            split: self._generate_examples(examples[place] for place in places)
            for split, places in splits.items()
        }

    def _generate_examples(self, examples):
        for key, image, label in examples:
            names = {"file_name": key} if self.HAS_FILES else {}
            yield key, {"image": image, "label": label, **names}
