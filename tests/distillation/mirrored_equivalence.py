"""Two replicas against one device, in double precision; prints the largest differences.

A process of its own: logical devices must be asked for before TensorFlow starts.
"""

import contextlib
import json
import pathlib
import tempfile

import keras
import numpy as np
import tensorflow as tf

cpu = tf.config.list_physical_devices("CPU")[0]
tf.config.set_logical_device_configuration(
    cpu, [tf.config.LogicalDeviceConfiguration()] * 2
)
keras.config.set_floatx("float64")
keras.config.set_dtype_policy("float64")

from cdfkd_tf.data.specs import plain_spec
from cdfkd_tf.distillation.bank import Bank, BankedImages, ask, sizes_of_parts
from cdfkd_tf.distillation.checkpoints import TrainingState
from cdfkd_tf.distillation.numerics import apply_gradients
from cdfkd_tf.distillation.replay import ReplayedImages
from cdfkd_tf.runtime.devices import choose_strategy, synchronise
from tests import toys
from tests.toys import largest_difference, state_values

BATCH, ITERATIONS, STEPS = 8, 3, 2


def data_for(method, source):
    """Elements of `ITERATIONS` iterations, as the engine's source would give them."""
    if isinstance(source, ReplayedImages):
        return source.dataset(0).take(ITERATIONS)
    if method == "kd":  # learns from images
        images = [toys.images(BATCH, seed) for seed in range(ITERATIONS)]
        elements = np.concatenate(images), np.zeros(BATCH * ITERATIONS, "int64")
    else:
        noise = [toys.latents(STEPS + 1, BATCH, seed) for seed in range(ITERATIONS)]
        elements = np.concatenate(noise)
    data = tf.data.Dataset.from_tensor_slices(elements)
    return data.batch(BATCH, drop_remainder=True)


def distiller_on(strategy_name, method, **options):
    strategy = choose_strategy(strategy_name, BATCH)
    with strategy.scope():
        # dfq's steps are clipped, to a hundredth or so of their length.
        clip = 0.1 if method == "dfq" else 0
        distiller = toys.distiller(
            method, student_steps=STEPS, clip_gradients=clip, **options
        )
    if strategy.num_replicas_in_sync > 1:
        for part in distiller.state.values():
            if isinstance(part, keras.Model):
                synchronise(part)
    return strategy, distiller


def trained(strategy_name, method, **options):
    strategy, distiller = distiller_on(strategy_name, method, **options)
    data = data_for(method, distiller.source)
    history = distiller.fit(data, epochs=1, shuffle=False, verbose=0).history
    return strategy.num_replicas_in_sync, state_values(distiller), history


def compare(one, two):
    """Replicas of each; largest differences of states and of terms; a weight's size."""
    terms = {name: abs(one[2][name][0] - two[2][name][0]) for name in one[2]}
    moved = float(np.abs(one[1]["student"][0]).max())
    return [one[0], two[0], largest_difference(one[1], two[1]), terms, moved]


def trained_in_two_parts(method, **options):
    """An epoch of which an engine begins, and another that is restored goes on."""
    with tempfile.TemporaryDirectory() as folder:
        for stop in (True, False):
            strategy, distiller = distiller_on("mirrored", method, **options)
            parts, metrics = distiller.state, distiller.trackers
            state = TrainingState(
                parts, pathlib.Path(folder), ITERATIONS, metrics=metrics
            )
            state._is_asked = stop  # a signal in the first step
            state.restore()
            log = keras.callbacks.History()
            whole = data_for(method, distiller.source)
            data = lambda first, whole=whole: whole.skip(first)  # noqa: E731
            with contextlib.suppress(KeyboardInterrupt):
                state.fit(distiller, data, epochs=1, callbacks=[log], verbose=0)
    return strategy.num_replicas_in_sync, state_values(distiller), log.history


def skipped_by_all():
    """What two replicas' variable becomes where the gradient of one overflows."""
    strategy = choose_strategy("mirrored", BATCH)
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


def asked_by_shares(mirrored):
    """Images that each replica asks for at once, and all answers, of 21 images."""
    strategy = choose_strategy("mirrored" if mirrored else "one_device", BATCH)
    teachers, shares = toys.distiller().teachers, []

    class Watched:
        def __call__(self, images, needs=frozenset()):
            shares.append(images.shape[0])
            return teachers(images, needs)

        answers = teachers.answers

    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (21, *toys.SHAPE), dtype="uint8")
    spec = plain_spec("none", toys.SHAPE, toys.CLASSES)
    with tempfile.TemporaryDirectory() as folder, strategy.scope():
        found = ask(Watched(), images, spec, pathlib.Path(folder), batch_size=BATCH)
    return shares, found.logits.tolist()


def banked():
    """Fixed images that are mixed with those of a ring."""
    rng, sizes = np.random.default_rng(0), sizes_of_parts(21)
    images = rng.integers(0, 256, (21, *toys.SHAPE), dtype="uint8")
    logits = rng.normal(size=(21, 2, toys.CLASSES))
    features = [rng.normal(size=(21, toys.WIDTH)) for _ in range(2)]
    return BankedImages(
        Bank(images, logits, features, part_sizes=sizes, own_parts=range(len(sizes))),
        logits.mean(axis=1).argmax(axis=-1),
        plain_spec("none", toys.SHAPE, toys.CLASSES),
        student_steps=STEPS,
        batch_size=BATCH,
        seed=0,
        held_out=images,
    )


def masks():
    """What Dropout lets through on each of two replicas, twice."""
    strategy = choose_strategy("mirrored", BATCH)
    with strategy.scope():
        dropout = keras.Sequential([keras.Input((64,)), keras.layers.Dropout(0.5)])
    synchronise(dropout)
    ones = tf.ones((1, 64), keras.config.floatx())
    drawn = [strategy.run(lambda: dropout(ones, training=True)) for _ in range(2)]
    seen = [
        mask for each in drawn for mask in strategy.experimental_local_results(each)
    ]
    return [(mask.numpy() > 0).astype(int).ravel().tolist() for mask in seen]


def main():
    alone = {m: trained("one_device", m) for m in ("cdfkd_mfs", "dfq", "kd")}
    found = {
        method: compare(alone[method], trained("mirrored", method)) for method in alone
    }
    recomputed = trained("mirrored", "dfq", recompute=True)
    found["dfq, recomputed"] = compare(alone["dfq"], recomputed)
    found["dfq, resumed"] = compare(alone["dfq"], trained_in_two_parts("dfq"))
    # A ring written over by the third iteration; and all that a generator may do.
    options = {"kept": 2 * BATCH, "num_classes": toys.CLASSES, "mean_decay": 0.5}
    options["fixed"] = banked()
    terms = {"header": -1.0, "bn_mean": 1.0, "cross_entropy": 1.0}
    row = toys.method(generator=terms, adversarial_on="disagree")
    kept = trained("one_device", row, **options)
    found["kept"] = compare(kept, trained("mirrored", row, **options))
    found["kept, resumed"] = compare(kept, trained_in_two_parts(row, **options))
    asked = [asked_by_shares(mirrored) for mirrored in (False, True)]
    others = {"masks": masks(), "skipped": skipped_by_all(), "asked": asked}
    print(json.dumps({"compared": found, **others}))


if __name__ == "__main__":
    main()
