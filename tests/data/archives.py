"""Small archives in the upstream file formats, placed where TFDS finds a download.

TFDS keeps a fetched file under a name made of its address and registered checksum, and
does not hash it again: a small archive under that name goes through the real parser.
"""

import csv
import gzip
import io
import pathlib
import struct
import tarfile
import zipfile

import numpy as np
import tensorflow_datasets as tfds
from etils import epath
from PIL import Image
from tensorflow_datasets.core.download import checksums, resource

from cdfkd_tf.data.builders.caltech101 import BACKGROUND
from cdfkd_tf.data.builders.caltech101 import URL as CALTECH_URL

CIFAR_URL = "https://www.cs.toronto.edu/~kriz/cifar-{}-binary.tar.gz"
MNIST_URL = "https://storage.googleapis.com/cvdf-datasets/mnist/{}.gz"


def place(data_dir, url: str, content: bytes) -> pathlib.Path:
    """Puts `content` where TFDS looks for what it fetched from `url`."""
    known = checksums.get_all_url_infos() | tfds.builder_cls("caltech101").url_infos
    info = known[url]
    path = (
        epath.Path(data_dir) / "downloads" / resource.get_dl_fname(url, info.checksum)
    )
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)
    resource.write_info_file(
        url=url,
        path=path,
        dataset_name="test",
        original_fname=info.filename or path.name,  # TFDS unpacks by its ending
        url_info=info,
    )
    return pathlib.Path(path)


def pack(files: dict[str, bytes]) -> bytes:
    """A tar.gz of these files."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w:gz") as archive:
        for name, content in files.items():
            member = tarfile.TarInfo(name)
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
    return buffer.getvalue()


def jpeg(seed: int, size: tuple[int, int] = (40, 36)) -> bytes:
    pixels = np.random.default_rng(seed).integers(0, 256, (*size[::-1], 3), "uint8")
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "JPEG")
    return buffer.getvalue()


def cifar_records(count: int, num_classes: int, seed: int) -> bytes:
    """Label bytes, then 3072 bytes of pixels, channels first."""
    rng = np.random.default_rng(seed)
    records = []
    for index in range(count):
        labels = [index % num_classes]
        if num_classes == 100:
            labels = [labels[0] // 5, *labels]  # coarse, then fine
        pixels = rng.integers(0, 256, 3072, "uint8").tobytes()
        records.append(bytes(labels) + pixels)
    return b"".join(records)


def make_cifar100(data_dir, count: int = 700) -> pathlib.Path:
    names = {"coarse": 20, "fine": 100}
    files = {
        f"cifar-100-binary/{kind}_label_names.txt": "".join(
            f"{kind}{index}\n" for index in range(number)
        ).encode()
        for kind, number in names.items()
    }
    files["cifar-100-binary/train.bin"] = cifar_records(count, 100, 0)
    files["cifar-100-binary/test.bin"] = cifar_records(200, 100, 1)
    return place(data_dir, CIFAR_URL.format(100), pack(files))


def make_cifar10(data_dir) -> pathlib.Path:
    names = "".join(f"class{index}\n" for index in range(10)).encode()
    files = {"cifar-10-batches-bin/batches.meta.txt": names}
    for index in range(1, 6):
        name = f"cifar-10-batches-bin/data_batch_{index}.bin"
        files[name] = cifar_records(40, 10, index)
    files["cifar-10-batches-bin/test_batch.bin"] = cifar_records(60, 10, 9)
    return place(data_dir, CIFAR_URL.format(10), pack(files))


def make_mnist(data_dir, monkeypatch, train: int = 60, test: int = 20) -> None:
    """IDX files. TFDS has MNIST's 60,000 and 10,000 fixed: told otherwise here."""
    from tensorflow_datasets.image_classification import mnist

    monkeypatch.setattr(mnist, "_TRAIN_EXAMPLES", train)
    monkeypatch.setattr(mnist, "_TEST_EXAMPLES", test)
    rng = np.random.default_rng(0)
    for part, count in (("train", train), ("t10k", test)):
        pixels = rng.integers(0, 256, (count, 28, 28), "uint8").tobytes()
        images = struct.pack(">IIII", 2051, count, 28, 28) + pixels
        labels = struct.pack(">II", 2049, count) + bytes(i % 10 for i in range(count))
        url = MNIST_URL.format(f"{part}-images-idx3-ubyte")
        place(data_dir, url, gzip.compress(images))
        url = MNIST_URL.format(f"{part}-labels-idx1-ubyte")
        place(data_dir, url, gzip.compress(labels))


def make_caltech101(data_dir, *, empty_class: bool = False) -> pathlib.Path:
    """A zip with a tar.gz of class folders, the background class among them."""
    folders = [BACKGROUND, *(f"class_{index:03}" for index in range(101))]
    root, files = "101_ObjectCategories", {}
    for number, folder in enumerate(folders):
        is_empty = empty_class and folder == "class_007"
        for index in range(6):
            name = f"{root}/{folder}/image_{index + 1:04}.jpg"
            if is_empty:
                name = name.replace(".jpg", ".txt")
            files[name] = jpeg(100 * number + index)
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        archive.writestr("caltech-101/101_ObjectCategories.tar.gz", pack(files))
    return place(data_dir, CALTECH_URL, buffer.getvalue())


def make_mini_imagenet(data_dir, per_class: int = 6) -> pathlib.Path:
    """images/ and three CSV files whose classes are disjoint; returns the folder."""
    root = pathlib.Path(data_dir) / "downloads/manual/mini_imagenet"
    (root / "images").mkdir(parents=True)
    first = 0
    for name, number in (("train", 64), ("val", 16), ("test", 20)):
        rows = []
        for label in range(first, first + number):
            for index in range(per_class):
                file = f"n{label:08}{index:08}.jpg"
                (root / "images" / file).write_bytes(jpeg(10 * label + index))
                rows.append((file, f"n{label:08}"))
        first += number
        with (root / f"{name}.csv").open("w", newline="") as table:
            csv.writer(table).writerows([("filename", "label"), *rows])
    return root
