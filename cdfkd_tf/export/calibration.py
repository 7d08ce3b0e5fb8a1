"""Which images fix the value ranges of a file that computes with integers."""

import keras
import numpy as np

from cdfkd_tf.data.sampling import balanced_choice
from cdfkd_tf.export.runner import probabilities


def calibration_images(
    images: np.ndarray, predictor: keras.Model, count: int, seed: int
) -> np.ndarray:
    """A choice of `images` that covers all classes, and one ramp from black to white.

    Generators make some classes more often than others, and values outside the ranges
    of the chosen images are cut off: each predicted class gets the same number of
    images, if there are as many. The ramp fixes the input's range: generated images
    that never reach white would let a real white saturate.

    Args:
        images: `(n, height, width, channels)`, in [0, 1].
        predictor: images to probabilities.
        count: how many to choose.
        seed: of the choice within a class.

    Returns:
        At most `count + 1` images, float32.
    """
    classes = probabilities(predictor, images).argmax(-1)
    chosen = images[balanced_choice(classes, count, seed)]
    ramp = np.linspace(0, 1, images[0].size).reshape(1, *images.shape[1:])
    return np.concatenate([chosen, ramp]).astype("float32")
