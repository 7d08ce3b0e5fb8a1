"""What values a network expects is read off the network."""

import keras
import numpy as np
from keras import layers

from cdfkd_tf.data.specs import spec_of
from cdfkd_tf.networks.classifiers import build_classifier
from cdfkd_tf.networks.pixel_ranges import expected_values, rescaling_to

PIXELS = np.random.default_rng(0).random((2, 8, 8, 3)).astype("float32")


def with_first(*first):
    body = [layers.Flatten(), layers.Dense(4)]
    return keras.Sequential([keras.Input((8, 8, 3)), *first, *body])


def test_expected_values_are_read_off_the_model():
    for model, values in [
        (with_first(), "otherwise"),
        (with_first(layers.Rescaling(1 / 255)), "0..255"),
        (with_first(layers.Rescaling(1 / 127.5, offset=-1)), "0..255"),
        (with_first(layers.Rescaling(2.0, offset=-1)), "0..1"),
        (with_first(layers.Normalization(mean=120.0, variance=3600.0)), "0..255"),
        (with_first(layers.Normalization(mean=0.5, variance=0.06)), "0..1"),
        (with_first(layers.Conv2D(3, 1), layers.Rescaling(1 / 255)), "otherwise"),
        (keras.Sequential([with_first(layers.Rescaling(1 / 255))]), "0..255"),
        (build_classifier("wrn10_1", (8, 8, 3), 4), "normalised"),
    ]:
        assert expected_values(model, "otherwise") == values


def test_rescaling_makes_expected_values_of_normalised_ones():
    for values, scale, offset in [("0..1", 1, 0), ("0..255", 255, 0), ("-1..1", 2, -1)]:
        spec = spec_of("cifar10")
        layer = rescaling_to(spec, values)
        np.testing.assert_allclose(
            layer(spec.normalise(PIXELS)), PIXELS * scale + offset, atol=1e-4
        )
        assert rescaling_to(spec, "normalised") is None
