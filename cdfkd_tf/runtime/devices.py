"""Which devices train together, chosen in one place.

Replicas with batch b compute what one device computes with their batches joined:
losses are divided by their number, BatchNormalization and every statistic over a batch
is taken over all replicas, and noise is drawn for the whole batch.
"""

import functools

import keras
import tensorflow as tf

from cdfkd_tf.errors import RequestError
from cdfkd_tf.runtime.keras_internals import leaf_layers

_APART = 1_000_003  # between the seeds of two replicas


def choose_strategy(name: str, batch_size: int) -> tf.distribute.Strategy:
    """The strategy called `name`.

    Args:
        name: `one_device`; `mirrored`: all GPUs of this machine, or all logical CPUs
            where there is none; `auto`: as many of several GPUs as can share a batch.
        batch_size: B over all replicas.

    Raises:
        RequestError: mirrored on a single device, a batch that its devices cannot
            share, or `multi_worker`, whose strategy is made first (`WorkerGroup`).
    """
    if name == "multi_worker":
        raise RequestError(
            "--strategy=multi_worker starts with the process: it belongs to the "
            "command line and its actions pipeline and distill."
        )
    devices = tf.config.list_logical_devices("GPU")
    if name == "auto":
        count = number_that_shares(batch_size, len(devices))
        if count < len(devices):
            print(
                f"--batch_size={batch_size} is shared by {count} of {len(devices)} "
                f"GPUs. A multiple of {len(devices)} would use all.",
                flush=True,
            )
        name, devices = ("mirrored" if count > 1 else "one_device"), devices[:count]
    if name == "one_device":
        return tf.distribute.get_strategy()
    devices = devices or tf.config.list_logical_devices("CPU")
    if len(devices) < 2:
        raise RequestError(
            f"--strategy=mirrored needs at least two devices; this machine shows "
            f"{len(devices)}. Use --strategy=one_device."
        )
    check_shares(batch_size, len(devices))
    return _mirrored(tuple(device.name for device in devices))


@functools.cache
def _mirrored(devices: tuple[str, ...]) -> tf.distribute.Strategy:
    # One for the whole process: TensorFlow confuses the messages of a second one.
    return tf.distribute.MirroredStrategy(devices)


def number_that_shares(batch_size: int, devices: int) -> int:
    """The most devices, of so many, that get equal shares of a batch; at least one."""
    return next(n for n in range(max(devices, 1), 0, -1) if batch_size % n == 0)


def check_shares(batch_size: int, replicas: int) -> None:
    """Every replica must get as much of a batch as the others.

    Raises:
        RequestError: if the batch cannot be divided so.
    """
    if batch_size % replicas:
        raise RequestError(
            f"--batch_size={batch_size} cannot be shared by {replicas} replicas. "
            f"Give a multiple of {replicas}."
        )


class _ReplicaSeeds(keras.random.SeedGenerator):
    """Seeds that differ from replica to replica: plain Keras draws the same on all."""

    def next(self, ordered: bool = True) -> tf.Tensor:
        """A seed, `(2,)`."""
        seed = super().next(ordered)
        replica = tf.distribute.get_replica_context()
        number = replica.replica_id_in_sync_group if replica else 0
        return seed + tf.stack([tf.cast(number, seed.dtype) * _APART, 0])


def synchronise(network: keras.Model) -> None:
    """Makes a network's copies on all replicas one network that sees one batch.

    Every BatchNormalization takes the statistics of all replicas' batches, and what
    draws at random (Dropout) draws other numbers on each replica.

    Args:
        network: changed in place; a second time changes nothing.
    """
    for layer in leaf_layers(network):
        if isinstance(layer, keras.layers.BatchNormalization):
            layer.synchronized = True
        generator = getattr(layer, "seed_generator", None)
        if isinstance(generator, keras.random.SeedGenerator):
            generator.__class__ = _ReplicaSeeds  # its state stays where it is


def choose_xla(wish: str, same_bits: bool, strategy: tf.distribute.Strategy) -> bool:
    """Whether updates are compiled with XLA.

    Args:
        wish: `true`, `false`, or `auto`: on one GPU.
        same_bits: whether two runs must give the same bits; then `auto` is false.
        strategy: that the run uses.

    Raises:
        RequestError: `true` where replicas share a batch, which XLA cannot compile.
    """
    alone = strategy.num_replicas_in_sync == 1
    if wish == "true" and not alone:
        raise RequestError(
            f"--jit_compile=true compiles for one device; --strategy shares each batch "
            f"among {strategy.num_replicas_in_sync}. Use --strategy=one_device, or "
            "leave --jit_compile out."
        )
    if wish == "auto":
        has_gpu = bool(tf.config.list_logical_devices("GPU"))
        return has_gpu and alone and not same_bits
    return wish == "true"
