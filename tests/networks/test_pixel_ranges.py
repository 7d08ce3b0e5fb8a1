"""Pixel values by name, as text and as arithmetic."""

import numpy as np
import pytest

from cdfkd_tf.config import FIELDS, RunConfig, read_value, text_of
from cdfkd_tf.errors import RequestError
from cdfkd_tf.networks.pixel_ranges import pixel_values
from tests.rows import rows

PIXELS = np.random.default_rng(0).random((2, 4, 4, 3))
MEAN, STD = [0.485, 0.456, 0.406], [0.229, 0.224, 0.225]


@rows(
    "text, expected",
    [
        ("0..1", PIXELS),
        ("0..255", PIXELS * 255),
        ("-1..1", PIXELS * 2 - 1),
        ("imagenet", (PIXELS - MEAN) / STD),
        ("caffe", PIXELS[..., ::-1] * 255 - [103.939, 116.779, 123.68]),
        ("mean=0.5;std=0.25", (PIXELS - 0.5) / 0.25),
        ("mean=.1,.2,.3;std=0.5,1,0.25", (PIXELS - [0.1, 0.2, 0.3]) / [0.5, 1, 0.25]),
        ("mean=0.1/0.2/0.3, std=0.5", (PIXELS - [0.1, 0.2, 0.3]) / 0.5),
    ],
)
def test_pixel_values_are_what_their_name_says(text, expected):
    values = pixel_values(text).for_channels(3)
    np.testing.assert_allclose(values.of_pixels(PIXELS), expected, atol=1e-9)


@rows("text", ["imagenet", "caffe"])
def test_pixel_values_of_grey_images_are_the_luminances(text):
    grey = np.repeat(PIXELS[..., :1], 3, axis=-1)
    coloured = pixel_values(text).of_pixels(grey)
    luminance = coloured[..., ::-1] if text == "caffe" else coloured
    expected = luminance @ np.array([0.2989, 0.587, 0.114]) / 0.9999
    found = pixel_values(text).for_channels(1).of_pixels(PIXELS[..., :1])
    np.testing.assert_allclose(found[..., 0], expected, rtol=1e-2, atol=1e-2)


@rows(
    "text, words",
    [
        ("0..9", "must be one of auto, 0..1"),
        ("mean=0.5", "mean=M;std=S"),
        ("mean=0.5;std=0", "mean=M;std=S"),
        ("mean=0.5,0.5;std=1,1,1", "mean=M;std=S"),
        ("mean=127.5;std=127.5", "Divide them by 255"),
    ],
)
def test_pixel_values_refuses_what_it_cannot_read(text, words):
    with pytest.raises(RequestError, match=words):
        pixel_values(text)
    with pytest.raises(RequestError, match=r"3 numbers, .* have 2 channels"):
        pixel_values("imagenet").for_channels(2)


@rows(
    "text, items",
    [
        ("0..255", ("0..255",)),
        ("-1..1, caffe,auto", ("-1..1", "caffe", "auto")),
        (
            "mean=0.5,0.4,.3;std=0.2,0.2,2e-1,0..1,mean=1,std=.5,-1..1",
            ("mean=0.5,0.4,.3;std=0.2,0.2,2e-1", "0..1", "mean=1,std=.5", "-1..1"),
        ),
    ],
)
def test_teacher_input_is_a_list_of_pixel_values(text, items):
    field = FIELDS["teacher_input"]
    assert read_value(field, text) == items
    assert read_value(field, text_of(items)) == items
    assert RunConfig(teacher_input=text).teacher_input == items
    with pytest.raises(RequestError, match=r"got '0\.\.9'"):
        RunConfig(teacher_input=(*items, "0..9"))
