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
from cdfkd_tf.training.safety import apply_gradients
from cdfkd_tf.training.strategy import choose_strategy, synchronise
from tests.conftest import latents, tiny_distiller

BATCH, ITERATIONS, ROUNDS = 8, 3, 3


def trained(strategy_name, method):
    strategy = choose_strategy(strategy_name, BATCH)
    with strategy.scope():
        distiller = tiny_distiller(method)
        # Small steps: large ones blow rounding up tenfold per update.
        # dfq's steps are clipped, to a hundredth or so of their length.
        clip = 0.1 if method == "dfq" else 0
        distiller.compile(CoupledSGD(0.02), PaperAdam(1e-3), clip_gradients=clip)
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
    return strategy, values, history


def skipped_by_all(strategy):
    """What two replicas' variable becomes where the gradient of one overflows."""
    with strategy.scope():
        variable = keras.Variable([1.0], name="weight")
        optimizer = keras.optimizers.LossScaleOptimizer(keras.optimizers.SGD(1.0))
        optimizer.build([variable])

    @tf.function
    def step(worst):
        def move():
            replica = tf.distribute.get_replica_context().replica_id_in_sync_group
            gradient = tf.where(replica == 1, [worst], [0.0])
            apply_gradients(optimizer, [optimizer.scale_loss(gradient)], [variable])

        strategy.run(move)

    values = []
    for worst in (np.inf, 0.25):
        step(tf.constant(worst, "float64"))
        local = strategy.experimental_local_results(variable.value)
        values.append([float(value[0]) for value in local])
    return values


def main(method):
    alone, ours, logged = trained("one_device", method)
    replicas, theirs, logged_by_two = trained("mirrored", method)
    differences = {
        name: max(float(np.abs(a - b).max()) for a, b in zip(ours[name], theirs[name]))
        for name in ours
    }
    terms = {name: abs(logged[name][0] - logged_by_two[name][0]) for name in logged}
    moved = float(np.abs(ours["student"][0]).max())
    skipped = skipped_by_all(replicas) if method == "dfq" else None
    counts = [strategy.num_replicas_in_sync for strategy in (alone, replicas)]
    print(json.dumps([*counts, differences, terms, moved, skipped]))


if __name__ == "__main__":
    main(sys.argv[1])
