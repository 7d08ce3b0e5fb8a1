"""Noise: the data of data-free distillation."""

import numpy as np
import tensorflow as tf


def latent_dataset(
    batch_size: int,
    num_steps: int,
    latent_size: int,
    *,
    seed: int,
    first_step: int = 0,
) -> tf.data.Dataset:
    """Endless seeded noise, one element per iteration.

    Element i depends on `seed` and i alone, so that a resumed run goes on with the
    noise it would have seen, on any number of replicas.

    Args:
        batch_size: B.
        num_steps: R, the student's steps and the generator's one.
        latent_size: Z.
        seed: of all the noise.
        first_step: iteration to start with.

    Returns:
        Elements `(B, R, Z)`, float32, standard normal.
    """
    shape = [batch_size, num_steps, latent_size]

    def draw(step):
        pair = tf.stack([tf.constant(seed, tf.int64), step])
        return tf.random.stateless_normal(shape, seed=pair)

    steps = tf.data.Dataset.counter(first_step)
    return steps.map(draw).prefetch(2)


def watching_noise(count: int, latent_size: int, seeds: list[int]) -> np.ndarray:
    """Noise for looking, not for learning: no training step ever draws it.

    Args:
        count: how many.
        latent_size: Z.
        seeds: of the run and of the purpose.

    Returns:
        `(count, Z)`, float32, standard normal.
    """
    # The stream of training noise counts from 0 on; this one stands apart.
    rng = np.random.default_rng([2**32 - 1, *seeds])
    return rng.standard_normal((count, latent_size)).astype("float32")
