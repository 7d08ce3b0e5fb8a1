"""Real images come through TFDS, seeded and normalised."""

import socket
import subprocess
import sys
import tempfile

import numpy as np
import pytest
import tensorflow as tf
from sklearn.datasets import load_digits

from cdfkd_tf.data.builders.digits import enlarge
from cdfkd_tf.data.images import RealImages
from cdfkd_tf.data.specs import SPECS, spec_of
from cdfkd_tf.errors import RequestError
from tests.rows import rows


@pytest.fixture(scope="module")
def digits_dir(tmp_path_factory):
    return str(tmp_path_factory.mktemp("digits"))


@pytest.fixture(scope="module")
def digits(digits_dir):
    return RealImages(spec_of("digits"), digits_dir)


def test_digits_are_split_stratified_80_to_20(digits):
    pixels, labels = map(np.concatenate, zip(*digits.evaluation_pixels()))
    assert pixels.shape == (360, 16, 16, 1)
    assert pixels.min() >= 0 and pixels.max() <= 1
    share = np.bincount(labels) / np.bincount(load_digits().target)
    np.testing.assert_allclose(share, 0.2, atol=0.01)


@pytest.mark.slow
def test_enlarging_is_bilinear():
    image = load_digits().images[0]
    half_pixel_centres = tf.image.resize(image[..., None], (16, 16)).numpy()
    difference = enlarge(image) - half_pixel_centres * 255 / 16
    assert np.abs(difference).max() <= 0.51  # rounding to whole grey values


@pytest.mark.slow
def test_declared_statistics_are_those_of_the_training_images(digits):
    pixels = digits.some_training_pixels(10_000, [0])
    assert len(pixels) == 1437
    np.testing.assert_allclose(pixels.mean(), digits.spec.mean[0], atol=1e-4)
    np.testing.assert_allclose(pixels.std(), digits.spec.std[0], atol=1e-4)


def test_training_batches_repeat_with_their_seed(digits):
    def first(seed):
        batches, steps = digits.training(32, seed)
        assert steps == 1437 // 32
        return next(iter(batches))

    images, labels = first(1)
    assert images.shape == (32, 16, 16, 1) and labels.shape == (32,)
    np.testing.assert_array_equal(images, first(1)[0])
    assert not np.array_equal(images, first(2)[0])


@pytest.mark.slow
def test_augmentation_differs_from_epoch_to_epoch(digits):
    batches, steps = digits.training(1437, seed=0)
    sums = [np.sort(images.numpy().sum((1, 2, 3))) for images, _ in batches.take(2)]
    assert steps == 1 and not np.allclose(*sums)


def test_validation_takes_its_images_from_training(digits_dir, tmp_path):
    validating = RealImages(spec_of("digits"), digits_dir, "validation")
    assert validating.training(1, seed=0)[1] == 1150
    assert sum(len(labels) for _, labels in validating.evaluation_pixels()) == 287
    validating.write_splits(tmp_path)
    train, measured = (
        set((tmp_path / f"{name}.txt").read_text().splitlines())
        for name in ("train", "validation")
    )
    assert (len(train), len(measured), len(train & measured)) == (1150, 287, 0)


@rows("count", [10, 25, 143])
def test_few_shots_are_balanced_and_seeded(digits, count):
    images, labels = digits.few_shot(count, seed=3)
    assert images.shape == (count, 16, 16, 1) and images.dtype == np.float32
    counts = np.bincount(labels, minlength=10)
    assert counts.max() - counts.min() <= 1
    np.testing.assert_array_equal(images, digits.few_shot(count, seed=3)[0])
    assert not np.array_equal(images, digits.few_shot(count, seed=4)[0])


def test_more_shots_than_images_are_refused(digits):
    with pytest.raises(RequestError, match="has only 1437 training images"):
        digits.few_shot(2000, seed=0)


def test_denormalising_undoes_normalising():
    for spec in SPECS.values():
        images = np.random.default_rng(0).uniform(size=(2, *spec.image_shape))
        normalised = spec.normalise(images)
        np.testing.assert_allclose(spec.denormalise(normalised), images, atol=1e-12)


def offline(*address):
    raise socket.gaierror


def test_a_data_set_that_cannot_be_fetched_says_how_to_get_it(tmp_path, monkeypatch):
    monkeypatch.setattr(socket, "getaddrinfo", offline)
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    cifar = RealImages(spec_of("cifar100"), str(tmp_path / "data"))
    message = (
        r"www\.cs\.toronto\.edu cannot be reached.*prepare_data --dataset=cifar100"
    )
    with pytest.raises(RequestError, match=message):
        cifar.evaluation()
    assert list(tmp_path.iterdir()) == []  # TFDS leaves a temporary folder behind


def test_tables_are_imported_without_tensorflow():
    code = (
        "import sys, cdfkd_tf.data.specs, cdfkd_tf.data.image_files\n"
        "import cdfkd_tf.runtime.multi_worker\n"
        "import cdfkd_tf.networks.aggregators, cdfkd_tf.networks.saved_model_check\n"
        "assert not {'tensorflow', 'keras'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
