"""An exported file, loaded again by what a device or a server would load it with."""

import abc
import time
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

_WARM_UP, _RUNS = 10, 100
_PIXELS_AT_ONCE, _IMAGES_AT_ONCE = 2**20, 256


def images_at_once(height: int, width: int) -> int:
    """How many images of this size memory is sure to hold within a network.

    It may keep several maps of the image's size, of 64 channels and more.
    """
    return max(1, min(_IMAGES_AT_ONCE, _PIXELS_AT_ONCE // (height * width)))


def in_parts(images: np.ndarray) -> Iterator[np.ndarray]:
    """Images `(n, height, width, channels)`, as many at once as memory holds."""
    step = images_at_once(*images.shape[1:3])
    for start in range(0, len(images), step):
        yield images[start : start + step]


def probabilities(model: Any, images: np.ndarray) -> np.ndarray:
    """`(n, C)`, of a Keras model, `in_parts`."""
    return np.concatenate([model.predict_on_batch(part) for part in in_parts(images)])


class Runner(abc.ABC):
    """Base class; a subclass is built from the path of a file or folder.

    Attributes:
        image_shape: `(height, width, channels)` of one image.
        description: what the file says about itself, see `describe`; empty if nothing.
        threads: that one call takes; None if the library decides.
        operators: names of the operations in the file; None where it lists none.
        float_operators: names of those that compute with floating-point numbers.
    """

    image_shape: tuple[int, ...]
    description: dict[str, Any]
    threads: int | None = 1
    operators: list[str] | None = None
    float_operators: list[str] | None = None

    @abc.abstractmethod
    def __call__(self, images: np.ndarray) -> np.ndarray:
        """Probabilities `(B, C)`, float32, of images `(B, *image_shape)` in [0, 1]."""

    def repeated(self, images: np.ndarray) -> Callable[[], Any]:
        """A function that computes the probabilities of images each time anew.

        Args:
            images: `(B, *image_shape)` in [0, 1].
        """
        return lambda: self(images)

    def latency(self, image: np.ndarray) -> float:
        """Median milliseconds of a warm call for one image `(1, *image_shape)`."""
        call, seconds = self.repeated(image), []
        for _ in range(_WARM_UP + _RUNS):
            start = time.perf_counter()
            call()
            seconds.append(time.perf_counter() - start)
        return round(1000 * float(np.median(seconds[_WARM_UP:])), 4)
