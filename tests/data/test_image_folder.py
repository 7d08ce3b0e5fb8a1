"""The user's own images, read where they are."""

import shutil

import numpy as np
import pytest
from PIL import Image

from cdfkd_tf.data.builders.image_folder import folder_spec
from cdfkd_tf.data.images import RealImages
from cdfkd_tf.errors import RequestError
from tests import toys

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


def test_without_training_images_what_needs_them_is_refused(copy):
    shutil.rmtree(copy / "train")
    images = RealImages(folder_spec(str(copy), SHAPE))
    assert images.can_measure
    with pytest.raises(RequestError, match="no images of split train"):
        images.training(4, seed=0)


def test_a_class_without_images_is_refused(copy):
    (copy / "train/newt").mkdir()
    with pytest.raises(RequestError, match=r"train/newt holds no image"):
        folder_spec(str(copy), SHAPE)


def test_a_file_that_is_no_image_is_named(copy):
    (copy / "train/cat/0.png").write_text("hello")
    with pytest.raises(RequestError, match=r"train/cat/0\.png is no image"):
        folder_spec(str(copy), SHAPE)


@pytest.mark.parametrize("make", [lambda path: None, lambda path: path.mkdir()])
def test_no_folder_or_an_empty_one_is_refused(tmp_path, make):
    make(tmp_path / "absent")
    with pytest.raises(RequestError, match=r"there is no folder|holds no images"):
        folder_spec(str(tmp_path / "absent"), SHAPE)


def test_jpegs_and_other_sizes_mix(copy):
    Image.new("RGB", (30, 20), (200, 10, 10)).save(copy / "test/cat/more.JPG")
    images = RealImages(folder_spec(str(copy), (8, 8, 3)))
    pixels, _ = next(iter(images.evaluation_pixels(100)))
    assert pixels.shape == (19, 8, 8, 3)
