"""Real handwritten digits as a TFDS data set, without any download.

scikit-learn bundles 1,797 images of 8x8 pixels by 43 writers (the test part of UCI's
Optical Recognition of Handwritten Digits, Alpaydin and Kaynak, 1998).
"""

import numpy as np
import tensorflow_datasets as tfds
from PIL import Image

from cdfkd_tf.data.builders.stratified import Examples, StratifiedBuilder

SIDE = 16


class Digits(StratifiedBuilder):
    """scikit-learn's bundled handwritten digits, enlarged to 16x16."""

    IMAGE_SHAPE, NUM_CLASSES, HAS_FILES = (SIDE, SIDE, 1), 10, False

    def list_examples(self, dl_manager: tfds.download.DownloadManager) -> Examples:
        """See the base class."""
        from sklearn.datasets import load_digits

        digits = load_digits()
        images, labels = map(enlarge, digits.images), digits.target.tolist()
        examples = list(zip(range(len(labels)), images, labels))
        return examples, [str(label) for label in range(self.NUM_CLASSES)]


def enlarge(image: np.ndarray) -> np.ndarray:
    """`(8, 8)` with values 0..16 to `(16, 16, 1)`, uint8, bilinear."""
    large = Image.fromarray(image.astype("float32")).resize(
        (SIDE, SIDE), Image.Resampling.BILINEAR
    )
    pixels = np.asarray(large) * (255 / 16)
    return np.rint(pixels).astype("uint8")[..., None]
