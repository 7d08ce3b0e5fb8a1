"""Images by formula and from pictures: range, seeds, what they look like."""

import numpy as np
import pytest
from PIL import Image

from cdfkd_tf.data import patches, procedural, transfer_set
from cdfkd_tf.errors import RequestError
from tests.rows import rows


def _picture(seed=0):
    pixels = np.random.default_rng(seed).integers(0, 256, (60, 40, 3), dtype="uint8")
    return Image.fromarray(pixels)


@rows("shape", [(8, 8, 1), (9, 14, 3)])
@rows("kind", procedural.KINDS)
def test_procedural_images_follow_from_the_seed_alone(kind, shape):
    images = procedural.draw(kind, 5, shape, seed=3)
    assert images.shape == (5, *shape) and images.dtype == "uint8"
    # The first ones are the same, however many are drawn.
    np.testing.assert_array_equal(procedural.draw(kind, 140, shape, seed=3)[:5], images)
    assert (procedural.draw(kind, 5, shape, seed=4) != images).any()
    assert images.std(axis=0).mean() > 10  # no two alike


@pytest.mark.slow
def test_spectra_have_more_of_low_frequencies_than_of_high_ones():
    images = procedural.draw("spectra", 64, (16, 16, 1), seed=0)[..., 0] / 255
    power = np.abs(np.fft.fft2(images - images.mean((1, 2), keepdims=True))) ** 2
    mean = power.mean(axis=0)
    assert mean[0, 1] > 4 * mean[0, 4] > 4 * mean[0, 8]


@pytest.mark.slow
def test_strokes_are_mostly_a_bright_line_on_black():
    images = procedural.draw("strokes", 200, (28, 28, 1), seed=0) / 255
    dark = (images < 0.1).mean(axis=(1, 2, 3))
    assert np.median(dark) > 0.6
    assert np.mean(images.max(axis=(1, 2, 3)) > 0.45) > 0.9


def test_writing_fills_its_frame_and_soft_writing_is_smoother():
    sharp, soft = (
        procedural.draw(kind, 200, (28, 28, 1), seed=0)[..., 0] / 255
        for kind in ("writing", "soft_writing")
    )
    for images, least, most in ((sharp, 0.5, 0.95), (soft, 0.65, 1.0)):
        # Up to half an edge of a pixel or more is darker than what is counted.
        heights = (images > 0.3).any(axis=2).sum(axis=1) / 28
        assert least - 0.1 < np.quantile(heights, 0.05) < np.median(heights) < most
        assert np.mean(images[:, 0, 0] < 0.1) > 0.9  # on black
    steepest = [np.abs(np.diff(images, axis=1)).max((1, 2)) for images in (sharp, soft)]
    assert np.median(steepest[0]) > 0.5 > 2 * np.median(steepest[1])


@rows("kind", patches.KINDS)
def test_patches_follow_from_pictures_and_seed(kind):
    shape = (10, 10, 1)
    images = patches.cut(kind, [_picture()], 6, shape, seed=1)
    assert images.shape == (6, *shape) and images.dtype == "uint8"
    np.testing.assert_array_equal(
        images, patches.cut(kind, [_picture()], 130, shape, seed=1)[:6]
    )
    assert (images != patches.cut(kind, [_picture(1)], 6, shape, seed=1)).any()


def test_mixture_has_the_shares_asked_for():
    kinds = {
        name: lambda count, shape, seed, value=value: np.full(
            (count, *shape), value, "uint8"
        )
        for name, value in (("one", 1), ("two", 2), ("none", 3))
    }
    shares = {"one": 0.25, "two": 0.75, "none": 0.0}
    images = transfer_set.mixture(kinds, shares, 40, (2, 2, 1), seed=0)
    assert np.bincount(images[:, 0, 0, 0], minlength=4).tolist() == [0, 10, 30, 0]
    assert images[0, 0, 0, 0] != images[-1, 0, 0, 0] or images[:10].min() == 1  # mixed


@pytest.mark.slow
def test_pictures_are_read_from_all_folders_below_but_hidden_ones(tmp_path):
    for name in ("a.png", "deep/er/b.jpg", ".thumbnails/c.png", "@eaDir/d.png"):
        file = tmp_path / name
        file.parent.mkdir(parents=True, exist_ok=True)
        _picture().save(file)
    (tmp_path / "notes.txt").write_text("no picture")
    (tmp_path / "broken.png").write_bytes(b"no picture")
    assert len(transfer_set.read_pictures(str(tmp_path))) == 2


@rows("place", ["", "nowhere", "empty"])
def test_pictures_that_are_not_there_are_refused_by_name(place, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "empty").mkdir()
    with pytest.raises(RequestError, match="--transfer_images"):
        transfer_set.read_pictures(place)


def test_builtin_pictures_name_the_extra_where_they_are_missing(monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "skimage", None)
    with pytest.raises(RequestError, match=r"cdfkd_tf\[pictures\]"):
        transfer_set.read_pictures("builtin")
