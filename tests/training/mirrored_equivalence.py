"""Two replicas against one device, in double precision; prints the largest differences.

A process of its own: logical devices must be asked for before TensorFlow starts.
"""

import json
import sys

import keras
import numpy as np
import tensorflow as tf

cpu = tf.config.list_physical_devices("CPU")[0]
tf.config.set_logical_device_configuration(
    cpu, [tf.config.LogicalDeviceConfiguration()] * 2
)
keras.config.set_floatx("float64")
keras.config.set_dtype_policy("float64")

from cdfkd_tf.training.optimizers import CoupledSGD, PaperAdam
from cdfkd_tf.training.strategy import choose_strategy, synchronise
from tests.conftest import latents, tiny_distiller

BATCH, ITERATIONS, ROUNDS = 8, 3, 3


def trained(strategy_name, method):
    strategy = choose_strategy(strategy_name, BATCH)
    with strategy.scope():
        distiller = tiny_distiller(method)
        # Small steps: large ones blow rounding up tenfold per update.
        distiller.compile(CoupledSGD(0.02), PaperAdam(1e-3))
    if strategy.num_replicas_in_sync > 1:
        synchronise(distiller.student)
        synchronise(distiller.generator)
    noise = [latents(ROUNDS, BATCH, seed) for seed in range(ITERATIONS)]
    noise = np.concatenate(noise).astype("float64")
    data = tf.data.Dataset.from_tensor_slices(noise).batch(BATCH, drop_remainder=True)
    history = distiller.fit(data, epochs=1, shuffle=False, verbose=0).history
    values = {
        name: [np.array(variable) for variable in part.variables]
        for name, part in distiller.state.items()
    }
    return strategy.num_replicas_in_sync, values, history


def main(method):
    alone, ours, logged = trained("one_device", method)
    replicas, theirs, logged_by_two = trained("mirrored", method)
    differences = {
        name: max(float(np.abs(a - b).max()) for a, b in zip(ours[name], theirs[name]))
        for name in ours
    }
    terms = {name: abs(logged[name][0] - logged_by_two[name][0]) for name in logged}
    moved = float(np.abs(ours["student"][0]).max())
    print(json.dumps([alone, replicas, differences, terms, moved]))


if __name__ == "__main__":
    main(sys.argv[1])
