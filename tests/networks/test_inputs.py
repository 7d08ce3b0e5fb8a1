"""Images reach each network as it expects them."""

import keras
import numpy as np
import pytest
from keras import layers

from cdfkd_tf.data.specs import plain_spec, spec_of
from cdfkd_tf.networks.classifiers import build_classifier
from cdfkd_tf.networks.pixel_ranges import ImageView, expected_values, rescaling_to
from tests import strangers

PIXELS = np.random.default_rng(0).random((2, 8, 8, 3)).astype("float32")
SPEC = plain_spec("none", (8, 8, 3), 4)


def with_first(*first):
    body = [layers.Flatten(), layers.Dense(4)]
    return keras.Sequential([keras.Input((8, 8, 3)), *first, *body])


@pytest.mark.parametrize(
    "model, values",
    [
        (with_first(), "otherwise"),
        (with_first(layers.Rescaling(1 / 255)), "0..255"),
        (with_first(layers.Rescaling(1 / 127.5, offset=-1)), "0..255"),
        (with_first(layers.Rescaling(2.0, offset=-1)), "0..1"),
        (with_first(layers.Normalization(mean=120.0, variance=3600.0)), "0..255"),
        (with_first(layers.Normalization(mean=0.5, variance=0.06)), "0..1"),
        (with_first(layers.Conv2D(3, 1), layers.Rescaling(1 / 255)), "otherwise"),
        (keras.Sequential([with_first(layers.Rescaling(1 / 255))]), "0..255"),
        (build_classifier("wrn10_1", (8, 8, 3), 4), "normalised"),
    ],
)
def test_expected_values_are_read_off_the_model(model, values):
    assert expected_values(model, "otherwise") == values


@pytest.mark.parametrize(
    "values, scale, offset", [("0..1", 1, 0), ("0..255", 255, 0), ("-1..1", 2, -1)]
)
def test_values_arrive_as_expected(values, scale, offset):
    spec = spec_of("cifar10")
    seen = ImageView(spec, values, (32, 32, 3))(spec.normalise(PIXELS))
    np.testing.assert_allclose(seen, PIXELS * scale + offset, atol=1e-4)
    layer = rescaling_to(spec, values)
    np.testing.assert_allclose(
        layer(spec.normalise(PIXELS)), PIXELS * scale + offset, atol=1e-4
    )


def test_normalised_images_pass_as_they_are():
    view = ImageView(SPEC, "normalised", (None, None, 3))
    assert view.identity
    assert view(PIXELS) is PIXELS
    assert rescaling_to(SPEC, "normalised") is None


def test_grey_becomes_colour_and_colour_grey():
    grey = plain_spec("none", (8, 8, 1), 4)
    seen = ImageView(grey, "normalised", (8, 8, 3))(PIXELS[..., :1])
    np.testing.assert_array_equal(seen, np.repeat(PIXELS[..., :1], 3, axis=-1))
    seen = ImageView(SPEC, "normalised", (8, 8))(PIXELS)
    expected = PIXELS @ np.array([0.2989, 0.587, 0.114], "float32")
    np.testing.assert_allclose(seen, expected, rtol=1e-5)


def test_other_sizes_are_resized():
    seen = ImageView(SPEC, "normalised", (16, 12, 3))(PIXELS)
    assert seen.shape == (2, 16, 12, 3)
    flat = ImageView(SPEC, "normalised", (16, 12, 3))(np.ones_like(PIXELS))
    np.testing.assert_allclose(flat, 1, rtol=1e-6)


def test_a_strangers_preprocessing_sees_bytes():
    model = strangers.probabilities_of_bytes((8, 8, 3))
    seen = ImageView(SPEC, "0..255", (8, 8, 3))(SPEC.normalise(PIXELS))
    np.testing.assert_allclose(model.layers[0](seen), PIXELS, atol=1e-6)
