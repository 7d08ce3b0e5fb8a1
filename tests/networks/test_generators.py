"""Generators make images of the asked size in the asked range."""

import numpy as np
import pytest

from cdfkd_tf.networks.generators import asked_classes, build_generator
from tests.rows import rows

NOISE = np.random.default_rng(0).normal(size=(64, 6)).astype("float32")


@rows("name", ["dafl", "dcgan"])
def test_output_follows_the_declared_normalisation(name):
    shape = (16, 32, 3)
    standard = build_generator(name, shape, 6, standardised=True)(NOISE, training=True)
    assert standard.shape == (64, *shape)
    statistics = np.mean(standard, (0, 1, 2)), np.std(standard, (0, 1, 2))
    np.testing.assert_allclose(statistics[0], 0, atol=1e-3)
    np.testing.assert_allclose(statistics[1], 1, atol=1e-2)
    plain = build_generator(name, shape, 6, standardised=False)
    assert np.abs(plain(NOISE, training=True)).max() <= 1
    assert "image_bn" not in {layer.name for layer in plain.layers}


@rows("name", ["dafl", "dcgan"])
@rows("shape", [(8, 8, 1), (9, 21, 3), (30, 45, 3)])
def test_any_size_is_made(name, shape):
    for standardised in (True, False):
        network = build_generator(name, shape, 6, standardised=standardised, width=0.05)
        images = network(NOISE[:2], training=True)
        assert images.shape == (2, *shape) and np.isfinite(images).all()


@pytest.mark.slow
def test_sizes_that_need_no_crop_have_none():
    network = build_generator("dafl", (8, 12, 3), 6, standardised=True)
    assert "crop" not in {layer.name for layer in network.layers}


def test_conditional_generator_draws_the_class_that_the_noise_asks_for():
    network = build_generator(
        "dafl", (8, 8, 1), 6, standardised=False, width=0.05, num_classes=4
    )
    noise = np.random.default_rng(0).normal(size=(64, 10)).astype("float32")
    classes = np.asarray(asked_classes(noise, 4))
    np.testing.assert_array_equal(classes, noise[:, :4].argmax(-1))
    images = np.asarray(network(noise, training=True))
    louder, other = noise.copy(), noise.copy()
    louder[:, :4] *= 2  # the same classes
    other[:, :4] = np.roll(noise[:, :4], 1, axis=1)
    again = network(louder, training=True)
    np.testing.assert_allclose(again, images, rtol=1e-5, atol=1e-6)
    gaps = np.abs(network(other, training=True) - images).max((1, 2, 3))
    assert (gaps > 1e-3).all()
