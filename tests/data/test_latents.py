"""Noise follows from the seed and the step alone."""

import numpy as np

from cdfkd_tf.data.noise import latent_dataset


def draw(count, **kwargs):
    dataset = latent_dataset(4, 3, 5, **kwargs)
    return np.stack([element.numpy() for element in dataset.take(count)])


def test_noise_is_standard_normal():
    noise = draw(50, seed=0)
    assert noise.shape == (50, 4, 3, 5) and noise.dtype == np.float32
    assert abs(noise.mean()) < 0.1 and abs(noise.std() - 1) < 0.05


def test_same_seed_same_noise_and_no_element_repeats():
    noise = draw(3, seed=1)
    np.testing.assert_array_equal(noise, draw(3, seed=1))
    assert not np.array_equal(noise, draw(3, seed=2))
    assert len(np.unique(noise)) == noise.size


def test_a_later_start_goes_on_with_the_same_noise():
    np.testing.assert_array_equal(draw(5, seed=1)[2:], draw(3, seed=1, first_step=2))
