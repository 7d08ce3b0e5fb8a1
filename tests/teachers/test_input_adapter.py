"""Images reach each teacher as it expects them."""

import dataclasses

import numpy as np
import pytest
import tensorflow as tf

from cdfkd_tf.data.images import resize
from cdfkd_tf.data.specs import plain_spec, spec_of
from cdfkd_tf.teachers.input_adapter import InputAdapter, channels_first
from tests import toys
from tests.rows import rows

PIXELS = np.random.default_rng(0).random((2, 8, 8, 3)).astype("float32")
SPEC = plain_spec("none", (8, 8, 3), 4)


@rows(
    "values, expected",
    [
        ("0..1", PIXELS),
        ("0..255", PIXELS * 255),
        ("-1..1", PIXELS * 2 - 1),
        ("imagenet", (PIXELS - [0.485, 0.456, 0.406]) / [0.229, 0.224, 0.225]),
        ("caffe", PIXELS[..., ::-1] * 255 - [103.939, 116.779, 123.68]),
        ("mean=0.5;std=0.25", PIXELS * 4 - 2),
    ],
)
def test_input_adapter_gives_the_values_that_are_expected(values, expected):
    spec = dataclasses.replace(spec_of("cifar10"), image_shape=(8, 8, 3))
    seen = InputAdapter(spec, values, (8, 8, 3))(spec.normalise(PIXELS))
    np.testing.assert_allclose(seen, expected, atol=1e-4)


def test_input_adapter_passes_normalised_images_as_they_are():
    adapter = InputAdapter(SPEC, "normalised", (None, None, 3))
    assert adapter(PIXELS) is PIXELS


def test_input_adapter_makes_grey_colour_and_colour_grey():
    grey = plain_spec("none", (8, 8, 1), 4)
    seen = InputAdapter(grey, "normalised", (8, 8, 3))(PIXELS[..., :1])
    np.testing.assert_array_equal(seen, np.repeat(PIXELS[..., :1], 3, axis=-1))
    seen = InputAdapter(SPEC, "normalised", (8, 8))(PIXELS)
    expected = PIXELS @ np.array([0.2989, 0.587, 0.114], "float32")
    np.testing.assert_allclose(seen, expected, rtol=1e-5)


@rows("size", [(16, 12), (5, 3), (8, 2)])
def test_input_adapter_resizes_as_real_images_are_resized(size):
    adapter = InputAdapter(SPEC, "-1..1", (*size, 3))
    images = tf.constant(SPEC.normalise(PIXELS))
    for call in (adapter, tf.function(adapter)):
        with tf.GradientTape() as tape:
            tape.watch(images)
            seen = call(images)
        expected = [resize(pixels, size) * 2 - 1 for pixels in PIXELS]
        np.testing.assert_allclose(seen, expected, atol=1e-5)
        assert np.abs(tape.gradient(seen, images)).min() > 0  # of every pixel


def test_input_adapter_moves_channels_first():
    seen = InputAdapter(SPEC, "0..255", (3, 16, 12))(SPEC.normalise(PIXELS))
    last = InputAdapter(SPEC, "0..255", (16, 12, 3))(SPEC.normalise(PIXELS))
    np.testing.assert_array_equal(seen, np.moveaxis(last, -1, 1))
    assert not channels_first((3, 3, 3)) and not channels_first((1, 8, 3))
    assert channels_first((1, 28, 28)) and channels_first((3, None, None))


@pytest.mark.slow
def test_input_adapter_keeps_what_is_even():
    flat = InputAdapter(SPEC, "normalised", (16, 12, 3))(np.ones_like(PIXELS))
    np.testing.assert_allclose(flat, 1, rtol=1e-6)


def test_input_adapter_gives_bytes_to_a_models_own_preprocessing():
    model = toys.probabilities_of_bytes((8, 8, 3))
    seen = InputAdapter(SPEC, "0..255", (8, 8, 3))(SPEC.normalise(PIXELS))
    np.testing.assert_allclose(model.layers[0](seen), PIXELS, atol=1e-6)
