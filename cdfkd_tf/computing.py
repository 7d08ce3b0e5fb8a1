"""How a run computes: its arithmetic and whether it repeats bit for bit."""

import contextlib
from collections.abc import Iterator

import keras
import tensorflow as tf

from cdfkd_tf.config import RunConfig


@contextlib.contextmanager
def dtype_policy(name: str) -> Iterator[None]:
    """Networks built within compute so; what is shipped is built outside."""
    before = keras.config.dtype_policy()
    keras.config.set_dtype_policy(name)
    try:
        yield
    finally:
        keras.config.set_dtype_policy(before)


def make_deterministic(config: RunConfig) -> None:
    """Same seed, same bits, if the request or a CPU says so; for the whole process."""
    has_gpu = bool(tf.config.list_physical_devices("GPU"))
    if config.deterministic == "true" or (
        config.deterministic == "auto" and not has_gpu
    ):
        tf.config.experimental.enable_op_determinism()
