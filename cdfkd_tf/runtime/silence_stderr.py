"""Keeps the libraries' chatter off standard error, so that our own lines are seen."""

import contextlib
import logging
import os
import sys
from collections.abc import Callable, Iterator
from typing import Any


@contextlib.contextmanager
def quiet_stderr() -> Iterator[None]:
    """Hides what C++ code writes to standard error within the block.

    Log level variables silence only part of it. A Python exception still shows: it
    is raised after standard error is back.
    """
    sys.stderr.flush()
    saved, null = os.dup(2), os.open(os.devnull, os.O_WRONLY)
    os.dup2(null, 2)
    os.close(null)
    try:
        yield
    finally:
        sys.stderr.flush()
        os.dup2(saved, 2)
        os.close(saved)


def quiet_tensorflow(first: Callable[[], Any] = lambda: None) -> Any:
    """Imports TensorFlow with only its Python errors left audible.

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
