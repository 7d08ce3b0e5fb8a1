"""Which devices train together: chosen in one place.

Replicas with batch b compute what one device computes with their batches joined: the
engine divides losses by their number, BatchNormalization and every statistic over a
batch is taken over all replicas, and noise is drawn for the whole batch.
"""

import keras
import tensorflow as tf

from cdfkd_tf.errors import RequestError
from cdfkd_tf.models.walking import leaf_layers

STRATEGIES = ("auto", "one_device", "mirrored")


def choose_strategy(name: str, batch_size: int) -> tf.distribute.Strategy:
    """The strategy called `name`.

    Args:
        name: `one_device`; `mirrored`: all GPUs of this machine, or all logical CPUs
            where there is none; `auto`: mirrored on several GPUs.
        batch_size: B over all replicas.

    Raises:
        RequestError: mirrored on a single device, or a batch that cannot be shared.
    """
    devices = tf.config.list_logical_devices("GPU")
    if name == "auto":
        name = "mirrored" if len(devices) > 1 else "one_device"
    if name == "one_device":
        return tf.distribute.get_strategy()
    devices = devices or tf.config.list_logical_devices("CPU")
    if len(devices) < 2:
        raise RequestError(
            f"--strategy=mirrored needs at least two devices; this machine shows "
            f"{len(devices)}. Use --strategy=one_device."
        )
    if batch_size % len(devices):
        raise RequestError(
            f"--batch_size={batch_size} cannot be shared by {len(devices)} replicas. "
            f"Give a multiple of {len(devices)}."
        )
    return tf.distribute.MirroredStrategy([device.name for device in devices])


def synchronise(network: keras.Model) -> None:
    """Lets every BatchNormalization see the batches of all replicas as one.

    Args:
        network: changed in place.
    """
    for layer in leaf_layers(network):
        if isinstance(layer, keras.layers.BatchNormalization):
            layer.synchronized = True
