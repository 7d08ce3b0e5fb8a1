"""How a run computes: its arithmetic and whether it repeats bit for bit."""

import contextlib
import random
import re
from collections.abc import Iterator

import keras
import numpy as np
import tensorflow as tf

from cdfkd_tf.errors import RunError
from cdfkd_tf.runtime import keras_internals

_MEMORY = re.compile("OOM|out of memory|allocat", re.IGNORECASE)


@contextlib.contextmanager
def dtype_policy(name: str) -> Iterator[None]:
    """Networks built within compute so; what is shipped is built outside."""
    before = keras.config.dtype_policy()
    keras.config.set_dtype_policy(name)
    try:
        yield
    finally:
        keras.config.set_dtype_policy(before)


@contextlib.contextmanager
def memory_advice(*remedies: str) -> Iterator[None]:
    """Where memory does not suffice within the block, says what needs less of it.

    Args:
        *remedies: flags and values, the best one first.

    Raises:
        RunError: out of memory.
    """
    try:
        yield
    except (
        MemoryError,
        tf.errors.ResourceExhaustedError,
        tf.errors.InternalError,
    ) as error:
        text = str(error)
        if not isinstance(error, MemoryError) and not _MEMORY.search(text):
            raise  # a full disk is a resource, too
        shape = re.search(r"shape ?(\[[\d, ]+\])", text)
        what = f" for a tensor of {shape[1]}" if shape else ""
        device = re.search(r"GPU:\d+", text)
        where = f" on {device[0]}" if device else ""
        raise RunError(
            f"Memory does not suffice{what}{where}; checkpoints are intact. What needs "
            f"less of it: {', '.join(remedies)}. Does another process use it, too?"
        ) from error


def make_deterministic(wish: str) -> None:
    """Same seed, same bits, for the whole process.

    Args:
        wish: `true`, `false`, or `auto`: on CPUs, where it is free.
    """
    has_gpu = bool(tf.config.list_physical_devices("GPU"))
    if wish == "true" or (wish == "auto" and not has_gpu):
        tf.config.experimental.enable_op_determinism()


@contextlib.contextmanager
def global_state_restored() -> Iterator[None]:
    """Puts random generators, seeds, op determinism and Keras's defaults back.

    Within the block networks are built in plain precision, with channels last.
    """
    python, array = random.getstate(), np.random.get_state()
    restore, layout = keras_internals.random_state(), keras.config.image_data_format()
    keras.config.set_image_data_format("channels_last")
    try:
        with dtype_policy(keras.config.floatx()):
            yield
    finally:
        keras.config.set_image_data_format(layout)
        random.setstate(python)
        np.random.set_state(array)
        restore()
