"""Whatever a flag or a file holds: a right request, or one sentence about it."""

import io
import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from cdfkd_tf.config import FIELDS, RunConfig, value_type
from cdfkd_tf.data.image_files import read_image
from cdfkd_tf.errors import RequestError
from cdfkd_tf.tuning.space import read_space
from tests.toys import parse

pytestmark = pytest.mark.slow
# How many examples, and whether always the same: see conftest.py.
NUMBERS = [name for name, field in FIELDS.items() if value_type(field) in (int, float)]
SHAPE = (8, 8, 3)


def assert_a_sentence(error, *words):
    text = str(error)
    assert text.endswith(".") and len(text) > 20
    assert all(word in text for word in words), text


@given(st.sampled_from(NUMBERS), st.floats() | st.integers() | st.floats(0, 10))
def test_run_config_of_any_number_is_in_range_or_refused_by_name(name, number):
    if value_type(FIELDS[name]) is int:
        number = int(number) if math.isfinite(number) else 0
    try:
        config = RunConfig(**{name: number})
    except RequestError as error:
        assert_a_sentence(error, f"--{name}")
        return
    value = getattr(config, name)
    assert math.isfinite(value) and abs(value) <= 3.4e38
    assert np.isfinite(np.float32(value))
    if name.endswith(("_rate", "_width")):
        assert np.float32(value) > 0
    lines = config.flag_lines().splitlines()
    assert parse(*lines) == config  # what was written runs again


@given(st.sampled_from(sorted(FIELDS)), st.text(max_size=12))
def test_parse_of_any_text_behind_a_flag_is_a_value_or_one_sentence(name, text):
    try:
        parse(f"--{name}={text}")
    except RequestError as error:
        assert_a_sentence(error)


@given(
    st.dictionaries(
        st.sampled_from(NUMBERS) | st.text(max_size=5), st.text(max_size=12)
    )
)
def test_read_space_of_any_table_reads_or_refuses(table):
    try:
        space = read_space(table, RunConfig(), "a.space")
    except RequestError as error:
        assert_a_sentence(error, "a.space")
    else:
        assert set(space.fields) == set(table)


MODES = ("1", "L", "LA", "P", "RGB", "RGBA", "CMYK", "I;16")


@given(
    st.sampled_from(MODES),
    st.integers(1, 40),
    st.integers(1, 40),
    st.integers(0, 2**32 - 1),
    st.sampled_from([1, 3]),
    st.sampled_from([0, 10]),
)
def test_read_image_takes_pictures_of_any_kind_and_size(
    tmp_path_factory, mode, width, height, seed, channels, shorter_side
):
    rng = np.random.default_rng(seed)
    bits = 16 if mode == "I;16" else 8
    grey = rng.integers(0, 2**bits, (height, width)).astype(f"uint{bits}")
    picture = Image.fromarray(grey)
    picture = picture if bits == 16 else picture.convert(mode)
    file = tmp_path_factory.getbasetemp() / f"a{'.tif' if mode == 'CMYK' else '.png'}"
    picture.save(file)
    pixels = read_image(file, (8, 8, channels), shorter_side)
    assert pixels.shape == (8, 8, channels) and pixels.dtype == np.float32
    assert pixels.min() >= 0 and pixels.max() <= 1
    if (width, height, shorter_side) == (8, 8, 0) and mode not in ("1", "LA", "RGBA"):
        np.testing.assert_allclose(pixels[..., 0], grey / (2**bits - 1), atol=0.01)


def test_read_image_of_sixteen_bits_is_not_white(tmp_path):
    grey = np.linspace(0, 65535, 64).reshape(8, 8).astype("uint16")
    Image.fromarray(grey).save(tmp_path / "a.png")
    pixels = read_image(tmp_path / "a.png", (8, 8, 1))
    np.testing.assert_allclose(pixels[..., 0], grey / 65535, atol=0.01)


def encoded(ending):
    pixels = np.random.default_rng(0).integers(0, 256, (20, 24, 3)).astype("uint8")
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, ending)
    return buffer.getvalue()


PICTURES = [encoded(ending) for ending in ("PNG", "JPEG", "BMP", "GIF", "TIFF", "WEBP")]


@given(
    st.sampled_from(PICTURES),
    st.lists(st.tuples(st.floats(0, 1), st.integers(0, 255)), max_size=8),
    st.floats(0, 1),
)
def test_read_image_of_damaged_pictures_reads_or_refuses(
    tmp_path_factory, good, flips, end
):
    content = bytearray(good)
    for place, byte in flips:
        content[int(place * (len(content) - 1))] = byte
    file = tmp_path_factory.getbasetemp() / "damaged"
    file.write_bytes(content[: int(end * len(content))])
    try:
        pixels = read_image(file, SHAPE)
    except (OSError, ValueError):
        return
    assert pixels.shape == SHAPE and pixels.min() >= 0 and pixels.max() <= 1


@given(st.binary(max_size=200))
def test_read_image_refuses_bytes_that_are_no_picture(tmp_path_factory, content):
    file = tmp_path_factory.getbasetemp() / "bytes"
    file.write_bytes(content)
    try:
        read_image(file, SHAPE)
    except (OSError, ValueError) as error:
        assert str(error)
