"""An exported file, loaded again by what a device or a server would load it with."""

import abc
import time
from collections.abc import Callable
from typing import Any

import numpy as np

_WARM_UP, _RUNS = 10, 100


class Runner(abc.ABC):
    """Base class; a subclass is built from the path of a file or folder.

    Attributes:
        image_shape: `(height, width, channels)` of one image.
        description: what the file says about itself, see `describe`; empty if nothing.
        threads: that one call takes; None if the library decides.
        operators: names of the operations in the file; None where it lists none.
    """

    image_shape: tuple[int, ...]
    description: dict[str, Any]
    threads: int | None = 1
    operators: list[str] | None = None

    @abc.abstractmethod
    def __call__(self, images: np.ndarray) -> np.ndarray:
        """Probabilities `(B, C)`, float32, of images `(B, *image_shape)` in [0, 1]."""

    def repeated(self, images: np.ndarray) -> Callable[[], Any]:
        """A function that computes the probabilities of `images` each time anew."""
        return lambda: self(images)

    def latency(self, image: np.ndarray) -> float:
        """Median milliseconds of a warm call for one image `(1, *image_shape)`."""
        call = self.repeated(image)
        for _ in range(_WARM_UP):
            call()
        seconds = []
        for _ in range(_RUNS):
            start = time.perf_counter()
            call()
            seconds.append(time.perf_counter() - start)
        return round(1000 * float(np.median(seconds)), 4)
