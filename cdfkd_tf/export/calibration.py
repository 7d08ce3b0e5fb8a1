"""Which invented images fix the value ranges of the int8 file."""

import keras
import numpy as np

from cdfkd_tf.data.sampling import balanced_choice


def calibration_pixels(
    images: np.ndarray, predictor: keras.Model, count: int, seed: int
) -> np.ndarray:
    """A choice of `images` that covers all classes, and one ramp from black to white.

    Generators invent some classes more often than others, and a range that no chosen
    image reaches is cut off: each predicted class gets the same number of images, as
    far as there are as many. The ramp fixes the input's range: invented images that
    never reach white would let a real white saturate.

    Args:
        images: `(n, height, width, channels)`, in about [0, 1]; clipped.
        predictor: images to probabilities.
        count: how many to choose.
        seed: of the choice within a class.

    Returns:
        At most `count + 1` images, float32.
    """
    images = np.clip(images, 0, 1).astype("float32")
    classes = predictor.predict(images, batch_size=256, verbose=0).argmax(-1)
    chosen = images[balanced_choice(classes, count, seed)]
    ramp = np.linspace(0, 1, images[0].size, dtype="float32")
    return np.concatenate([chosen, ramp.reshape(1, *images.shape[1:])])
