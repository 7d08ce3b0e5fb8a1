"""Real handwritten digits as a TFDS data set, without any download.

scikit-learn bundles 1,797 images of 8x8 pixels by 43 writers (the test part of UCI's
Optical Recognition of Handwritten Digits, Alpaydin and Kaynak, 1998).
"""

import numpy as np
import tensorflow_datasets as tfds
from PIL import Image

from cdfkd_tf.data.sampling import stratified_split

SIDE = 16


class Digits(tfds.core.GeneratorBasedBuilder):
    """16x16x1 images, ten classes, stratified and seeded 80/20 split."""

    VERSION = tfds.core.Version("1.0.0")

    def _info(self) -> tfds.core.DatasetInfo:
        return self.dataset_info_from_configs(
            description="scikit-learn's bundled handwritten digits, enlarged to 16x16.",
            features=tfds.features.FeaturesDict(
                {
                    "image": tfds.features.Image(shape=(SIDE, SIDE, 1)),
                    "label": tfds.features.ClassLabel(num_classes=10),
                }
            ),
            supervised_keys=("image", "label"),
            homepage="https://scikit-learn.org/stable/datasets/toy_dataset.html",
        )

    def _split_generators(self, dl_manager):
        from sklearn.datasets import load_digits

        digits = load_digits()
        return {
            split: self._generate_examples(digits, indices)
            for split, indices in stratified_split(digits.target).items()
        }

    def _generate_examples(self, digits, indices):
        for index in indices:
            image = enlarge(digits.images[index])
            yield int(index), {"image": image, "label": int(digits.target[index])}


def enlarge(image: np.ndarray) -> np.ndarray:
    """8x8 with values 0..16 to 16x16x1 with values 0..255, bilinear."""
    large = Image.fromarray(image.astype("float32")).resize(
        (SIDE, SIDE), Image.Resampling.BILINEAR
    )
    pixels = np.asarray(large) * (255 / 16)
    return np.rint(pixels).astype("uint8")[..., None]
