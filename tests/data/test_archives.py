"""Every data set is read from its real upstream format, offline."""

import pathlib
from contextlib import nullcontext

import numpy as np
import pytest

from cdfkd_tf.data import prepare
from cdfkd_tf.data.images import RealImages
from cdfkd_tf.data.sampling import stratified_split
from cdfkd_tf.data.specs import spec_of
from cdfkd_tf.errors import RequestError
from tests.data import archives
from tests.toys import run_main


def read(name, data_dir):
    images = RealImages(spec_of(name), str(data_dir))
    batches, _ = images.training(8, seed=0)
    train = next(iter(batches))
    pixels, labels = map(np.concatenate, zip(*images.evaluation_pixels()))
    return images, train, pixels, labels


def lines_of(file):
    return file.read_text().splitlines()


@pytest.mark.slow
def test_cifar100_from_its_binary_tar(tmp_path):
    archives.make_cifar100(tmp_path)
    _, (train, _), pixels, labels = read("cifar100", tmp_path)
    assert train.shape == (8, 32, 32, 3) and pixels.shape == (200, 32, 32, 3)
    np.testing.assert_array_equal(np.bincount(labels), [2] * 100)  # fine labels
    record = archives.cifar_records(200, 100, 1)[2 : 2 + 3072]
    first = np.frombuffer(record, "uint8").reshape(3, 32, 32).transpose(1, 2, 0) / 255
    assert np.isclose(pixels, first, atol=1e-6).all((1, 2, 3)).sum() == 1


def test_cifar10_from_its_binary_tar(tmp_path):
    archives.make_cifar10(tmp_path)
    _, (train, _), pixels, labels = read("cifar10", tmp_path)
    assert train.shape == (8, 32, 32, 3) and pixels.shape == (60, 32, 32, 3)
    np.testing.assert_array_equal(np.bincount(labels), [6] * 10)


@pytest.mark.slow
def test_mnist_from_its_idx_files(tmp_path, monkeypatch):
    archives.make_mnist(tmp_path, monkeypatch)
    _, (train, _), pixels, labels = read("mnist", tmp_path)
    assert train.shape == (8, 32, 32, 1) and pixels.shape == (20, 32, 32, 1)
    np.testing.assert_array_equal(np.bincount(labels), [2] * 10)


@pytest.fixture(scope="module")
def caltech(tmp_path_factory):
    data_dir = tmp_path_factory.mktemp("caltech")
    archives.make_caltech101(data_dir)
    return RealImages(spec_of("caltech101"), str(data_dir))


def test_caltech101_has_no_background_and_a_stratified_split(caltech, tmp_path):
    caltech.write_splits(tmp_path)
    train, test = lines_of(tmp_path / "train.txt"), lines_of(tmp_path / "test.txt")
    assert len(train) + len(test) == 606 and not set(train) & set(test)
    assert not any("BACKGROUND" in line for line in train + test)
    assert {line.split("\t")[1] for line in test} <= {
        f"class_{index:03}" for index in range(101)
    }
    names = sorted(
        f"class_{index:03}/image_{image:04}.jpg\tclass_{index:03}"
        for index in range(101)
        for image in range(1, 7)
    )
    chosen = stratified_split([index // 6 for index in range(606)])["test"]
    assert sorted(test) == [names[index] for index in chosen]


@pytest.mark.slow
def test_caltech101_images_are_scaled_by_the_shorter_side_and_cropped(caltech):
    (images, _), _ = next(iter(caltech.training(4, 0)[0])), None
    assert images.shape == (4, 128, 128, 3)
    pixels, _ = next(iter(caltech.evaluation_pixels(4)))
    assert pixels.shape == (4, 128, 128, 3)
    example, _ = caltech._decode(next(iter(caltech._read("test")[0])))
    assert min(example.shape[:2]) == 128 and max(example.shape[:2]) == 142  # 36x40
    left = (142 - 128) // 2
    np.testing.assert_array_equal(pixels[0], example[:, left : left + 128])


def test_mini_imagenet_pools_the_three_lists(tmp_path):
    archives.make_mini_imagenet(tmp_path)
    images, (train, _), pixels, labels = read("mini_imagenet", tmp_path)
    assert train.shape == (8, 224, 224, 3) and pixels.shape == (120, 224, 224, 3)
    images.write_splits(tmp_path / "splits")
    test = lines_of(tmp_path / "splits/test.txt")
    assert len(test) == 120 and len(lines_of(tmp_path / "splits/train.txt")) == 480
    classes = {line.split("\t")[1] for line in test}
    assert {"n00000000", "n00000070", "n00000099"} & classes
    assert len(set(labels)) > 90


@pytest.mark.slow
def test_few_shots_can_be_audited(caltech, tmp_path):
    caltech.write_few_shot(tmp_path, 101, seed=0)
    lines = lines_of(tmp_path / "few_shot.txt")
    caltech.write_splits(tmp_path)
    assert len({line.split("\t")[1] for line in lines}) == 101
    assert set(lines) <= set(lines_of(tmp_path / "train.txt"))


def assert_refused(name, data_dir, *words):
    with pytest.raises(RequestError) as caught:
        RealImages(spec_of(name), str(data_dir)).evaluation()
    message = str(caught.value)
    assert "\n" not in message
    for word in words:
        assert word in message, message


def test_a_truncated_archive_is_named(tmp_path):
    archive = archives.make_cifar100(tmp_path)
    archive.write_bytes(archive.read_bytes()[:100_000])
    assert_refused("cifar100", tmp_path, archive.name, "fetch it again")


@pytest.mark.slow
def test_a_truncated_caltech_archive_is_named(tmp_path):
    archive = archives.make_caltech101(tmp_path)
    archive.write_bytes(archive.read_bytes()[:50_000])
    assert_refused("caltech101", tmp_path, archive.name, "fetch it again")


@pytest.mark.slow
def test_a_class_folder_without_images_is_named(tmp_path):
    archives.make_caltech101(tmp_path, empty_class=True)
    assert_refused("caltech101", tmp_path, "class_007", "has no image")


@pytest.mark.slow
def test_a_list_that_names_a_missing_image_is_named(tmp_path):
    root = archives.make_mini_imagenet(tmp_path, per_class=2)
    missing = next((root / "images").glob("n00000070*.jpg"))
    missing.unlink()
    assert_refused("mini_imagenet", tmp_path, "val.csv", missing.name)


@pytest.mark.slow
def test_a_list_without_its_columns_is_named(tmp_path):
    root = archives.make_mini_imagenet(tmp_path, per_class=2)
    (root / "test.csv").write_text("file;class\n")
    assert_refused("mini_imagenet", tmp_path, "test.csv", "columns filename and label")


def test_mini_imagenet_says_where_its_files_go(tmp_path):
    where = pathlib.Path("downloads/manual/mini_imagenet")
    assert_refused("mini_imagenet", tmp_path, str(where), "train.csv", "images")


def test_a_broken_archive_is_one_line_and_exit_code_2(tmp_path, capsys):
    archive = archives.make_cifar100(tmp_path)
    archive.write_bytes(b"no archive")
    code = run_main(
        "--dataset=cifar100",
        "--action=train_teachers",
        f"--data_dir={tmp_path}",
        f"--workdir={tmp_path / 'run'}",
    )
    error = capsys.readouterr().err
    assert code == 2
    assert error.startswith("error: ") and error.count("\n") == 1
    assert archive.name in error


def test_training_goes_on_where_an_earlier_process_stopped(tmp_path):
    archives.make_cifar10(tmp_path)
    images = RealImages(spec_of("cifar10"), str(tmp_path))
    whole = [batch for batch, _ in images.training(60, seed=1)[0].take(6)]
    rest = [batch for batch, _ in images.training(60, 1, first_batch=4)[0].take(2)]
    for ours, theirs in zip(rest, whole[4:]):
        np.testing.assert_array_equal(ours, theirs)


def test_of_runs_started_together_one_prepares(tmp_path, monkeypatch):
    archives.make_cifar10(tmp_path)
    written = {}

    def times():
        files = tmp_path.rglob("*.tfrecord*")
        return {file: file.stat().st_mtime_ns for file in files}

    class AnotherIsFirst:
        def __init__(self, file):
            self.file = file

        def __enter__(self):
            with monkeypatch.context() as real:
                real.setattr(prepare.filelock, "FileLock", lambda _: nullcontext())
                prepare.prepared_builder(spec_of("cifar10"), str(tmp_path))
            written.update(times())

        def __exit__(self, *_):
            pass

    monkeypatch.setattr(prepare.filelock, "FileLock", AnotherIsFirst)
    builder = prepare.prepared_builder(spec_of("cifar10"), str(tmp_path))
    assert builder.info.splits["train"].num_examples > 0
    assert written and times() == written
