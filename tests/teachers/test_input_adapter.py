"""Images reach each teacher as it expects them."""

import numpy as np

from cdfkd_tf.data.specs import plain_spec, spec_of
from cdfkd_tf.teachers.input_adapter import InputAdapter
from tests import toys

PIXELS = np.random.default_rng(0).random((2, 8, 8, 3)).astype("float32")
SPEC = plain_spec("none", (8, 8, 3), 4)


def test_input_adapter_gives_the_values_that_are_expected():
    for values, scale, offset in [("0..1", 1, 0), ("0..255", 255, 0), ("-1..1", 2, -1)]:
        spec = spec_of("cifar10")
        seen = InputAdapter(spec, values, (32, 32, 3))(spec.normalise(PIXELS))
        np.testing.assert_allclose(seen, PIXELS * scale + offset, atol=1e-4)


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


def test_input_adapter_resizes():
    seen = InputAdapter(SPEC, "normalised", (16, 12, 3))(PIXELS)
    assert seen.shape == (2, 16, 12, 3)
    flat = InputAdapter(SPEC, "normalised", (16, 12, 3))(np.ones_like(PIXELS))
    np.testing.assert_allclose(flat, 1, rtol=1e-6)


def test_input_adapter_gives_bytes_to_a_models_own_preprocessing():
    model = toys.probabilities_of_bytes((8, 8, 3))
    seen = InputAdapter(SPEC, "0..255", (8, 8, 3))(SPEC.normalise(PIXELS))
    np.testing.assert_allclose(model.layers[0](seen), PIXELS, atol=1e-6)
