"""The user's own images, read where they are."""

import shutil

import numpy as np
import pytest
from PIL import Image

from cdfkd_tf.data.builders.image_folder import folder_spec
from cdfkd_tf.data.image_files import read_image
from cdfkd_tf.data.images import RealImages, resize
from cdfkd_tf.data.specs import plain_spec
from cdfkd_tf.errors import RequestError
from tests import toys
from tests.rows import rows

SHAPE = (8, 8, 1)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return toys.image_folder(tmp_path_factory.mktemp("own"))


@pytest.fixture
def copy(folder, tmp_path):
    return shutil.copytree(folder, tmp_path / "copy")


def test_the_form_is_read_off_the_folder(folder):
    spec = folder_spec(str(folder), ())
    assert (spec.image_shape, spec.num_classes) == ((10, 8, 1), 3)
    assert spec.class_names == ("cat", "dog", "owl")
    assert folder_spec(str(folder), (4, 4, 3)).image_shape == (4, 4, 3)


def test_images_arrive_resized_with_their_labels(folder):
    images = RealImages(folder_spec(str(folder), SHAPE))
    pixels, labels = next(iter(images.evaluation_pixels(100)))
    assert pixels.shape == (18, *SHAPE)
    assert np.bincount(labels).tolist() == [6, 6, 6]
    means = [pixels[labels == label].mean() for label in range(3)]
    np.testing.assert_allclose(means, np.array([60, 120, 180]) / 255, atol=0.04)
    batch, truth = next(iter(images.training(4, seed=0)[0]))
    assert batch.shape == (4, *SHAPE) and set(truth.numpy()) <= {0, 1, 2}


def test_colour_and_grey_are_converted(folder):
    images = RealImages(folder_spec(str(folder), (8, 8, 3)))
    pixels, _ = next(iter(images.evaluation_pixels(100)))
    np.testing.assert_array_equal(pixels[..., 0], pixels[..., 2])


def test_few_samples_validation_and_split_lists(folder, tmp_path):
    spec = folder_spec(str(folder), SHAPE)
    images = RealImages(spec, evaluation_split="validation")
    assert sum(len(labels) for _, labels in images.evaluation_pixels(3)) == 4
    _, labels = images.few_shot(6, seed=0)
    assert np.bincount(labels).tolist() == [2, 2, 2]
    images.write_splits(tmp_path)
    lines = (tmp_path / "train.txt").read_text().splitlines()
    assert len(lines) == 14
    name, label = lines[0].split("\t")
    assert name.startswith(f"train/{label}/") and name.endswith(".png")


def test_without_test_images_nothing_is_measured(copy):
    shutil.rmtree(copy / "test")
    images = RealImages(folder_spec(str(copy), SHAPE))
    assert not images.can_measure
    assert RealImages(folder_spec(str(copy), SHAPE), "", "validation").can_measure


@pytest.mark.slow
def test_without_training_images_what_needs_them_is_refused(copy):
    shutil.rmtree(copy / "train")
    images = RealImages(folder_spec(str(copy), SHAPE))
    assert images.can_measure
    with pytest.raises(RequestError, match="no images of split train"):
        images.training(4, seed=0)


@rows("make", [lambda path: None, lambda path: path.mkdir()])
def test_no_folder_or_an_empty_one_is_refused(tmp_path, make):
    make(tmp_path / "absent")
    with pytest.raises(RequestError, match=r"there is no folder|holds no images"):
        folder_spec(str(tmp_path / "absent"), SHAPE)


def photograph(seed, height, width):
    """Smooth shades with edges and a little noise, `(height, width, 3)`."""
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[:height, :width] / 40.0
    shades = [np.sin(x * a) + np.cos(y * b) for a, b in rng.uniform(0.5, 3, (3, 2))]
    pixels = 127 + 50 * np.stack(shades, axis=-1) + rng.normal(0, 8, (height, width, 3))
    pixels[height // 3 : height // 2, width // 4 : width // 2] = (250, 10, 90)
    return pixels.clip(0, 255).astype("uint8")


@rows("size", [(301, 203), (97, 131), (30, 40)])
def test_images_are_resized_alike_wherever_they_are_read(tmp_path, size):
    """By a folder, by prediction, and by TFDS data sets: bilinear, with antialias."""
    for name in "ab":
        (tmp_path / f"test/{name}").mkdir(parents=True)
        Image.fromarray(photograph(0, *size)).save(tmp_path / f"test/{name}/photo.png")
    folder = RealImages(folder_spec(str(tmp_path), (48, 48, 3)))
    ((measured, _),) = folder.evaluation_pixels()
    predicted = read_image(tmp_path / "test/a/photo.png", (48, 48, 3))
    np.testing.assert_array_equal(measured[0], predicted)
    of_tfds = resize(photograph(0, *size) / 255, (48, 48))
    assert np.abs(of_tfds - predicted).max() <= 2 / 255


def test_training_skips_what_was_taken_without_decoding_it(tmp_path):
    folder = tmp_path / "train/a"
    for name in ("train/a", "test/b"):
        (tmp_path / name).mkdir(parents=True)
    for number in range(16):
        Image.new("L", (4, 4), 10 * number).save(folder / f"{number}.png")
    Image.new("L", (4, 4)).save(tmp_path / "test/b/0.png")
    spec = plain_spec("folder", (4, 4, 1), 2, folder=str(tmp_path))

    def batches(images, first):
        found = images.training(4, seed=1, first_batch=first)[0].take(4 - first)
        pixels = [np.asarray(spec.denormalise(batch)) for batch, _ in found]
        return [np.rint(p[:, 0, 0, 0] * 255 / 10).astype(int).tolist() for p in pixels]

    kept = batches(RealImages(spec), 0)
    undecoded = RealImages(spec, cache_bytes=0)
    assert batches(undecoded, 0) == kept == [*kept[:2], *batches(RealImages(spec), 2)]
    assert sorted(n for batch in kept for n in batch) == list(range(16))
    for number in (*kept[0], *kept[1]):
        (folder / f"{number}.png").write_text("no image any more")
    assert batches(undecoded, 2) == kept[2:]
