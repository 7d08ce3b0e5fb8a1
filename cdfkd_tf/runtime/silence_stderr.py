"""Keeps messages of the libraries off standard error, so that our own are seen."""

import contextlib
import logging
import os
import sys
from collections.abc import Callable, Iterator
from typing import Any, BinaryIO


@contextlib.contextmanager
def quiet_stderr(log: BinaryIO | None = None) -> Iterator[None]:
    """Hides what C++ code writes to standard error within the block.

    Log level variables silence only part of it. A Python exception still shows: it
    is raised after standard error is back.

    Args:
        log: an open file that gets it; None: lost.
    """
    sys.stderr.flush()
    saved = os.dup(2)
    with open(os.devnull, "wb") as null:
        os.dup2((log or null).fileno(), 2)
    try:
        yield
    finally:
        sys.stderr.flush()
        os.dup2(saved, 2)
        os.close(saved)


def quiet_tensorflow(first: Callable[[], Any] = lambda: None) -> Any:
    """Imports TensorFlow, which from then on logs errors of its Python part alone.

    Args:
        first: what must come before TensorFlow's first operation.

    Returns:
        What `first` does.
    """
    with quiet_stderr():
        import tensorflow as tf

        result = first()
        tf.constant(0)  # the first operation looks for devices, and talks
    for library in ("tensorflow", "absl"):  # absl: TFDS on folders not made yet
        logging.getLogger(library).setLevel(logging.ERROR)
    return result
