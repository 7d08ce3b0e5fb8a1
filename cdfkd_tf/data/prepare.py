"""Prepared TFDS data sets: found, made from the files at hand, or refused."""

import contextlib
import importlib
import io
import pathlib
import shutil
import socket
import tempfile
from urllib.parse import urlsplit

import filelock
import tensorflow as tf
import tensorflow_datasets as tfds
from etils import epath
from tensorflow_datasets.core.download import resource
from tensorflow_datasets.core.download.resource import get_dl_fname

from cdfkd_tf.data.builders.image_folder import FolderExamples
from cdfkd_tf.data.specs import DatasetSpec
from cdfkd_tf.errors import RequestError, reason

for _name in ("caltech101", "digits", "mini_imagenet", "mnist_5k"):
    # Importing it registers its builder.
    importlib.import_module(f"cdfkd_tf.data.builders.{_name}")

# Copies go round whose bytes are compressed anew; what they hold is the same.
_RECOMPRESSED = ("fashion_mnist",)


class TfdsExamples:
    """The examples of a prepared TFDS data set; an image is decoded on demand.

    Args:
        builder: from `prepared_builder`.
    """

    def __init__(self, builder: tfds.core.DatasetBuilder):
        self._builder = builder
        self.class_names = builder.info.features["label"].names

    def count(self, split: str) -> int:
        """How many examples `split` has."""
        return self._builder.info.splits[split].num_examples

    def read(self, split: str) -> tf.data.Dataset:
        """Scalars `{"image": encoded bytes, "label": int64, ...}`, in order."""
        return self._builder.as_dataset(
            split=split,
            decoders={"image": tfds.decode.SkipDecoding()},
            read_config=tfds.ReadConfig(add_tfds_id=True),
        )

    def decode(self, encoded: tf.Tensor) -> tf.Tensor:
        """The image of one example, of its scalar bytes.

        Returns:
            `(height, width, channels)` in [0, 1], float32.
        """
        pixels = self._builder.info.features["image"].decode_example(encoded)
        return tf.cast(pixels, tf.float32) / 255.0

    def name(self, example: dict) -> str:
        """What an element of `read`, as NumPy values, is called.

        The original file where the data set tells it, else the place in TFDS's files.
        """
        return example.get("file_name", example["tfds_id"]).decode()


def open_examples(spec: DatasetSpec, data_dir: str) -> TfdsExamples | FolderExamples:
    """The examples of a data set, prepared first if need be.

    Raises:
        RequestError: as `prepared_builder`.
    """
    if spec.folder:
        return FolderExamples(spec)
    return TfdsExamples(prepared_builder(spec, data_dir))


def prepared_builder(spec: DatasetSpec, data_dir: str) -> tfds.core.DatasetBuilder:
    """The TFDS builder of a data set, its examples on disk.

    Args:
        spec: the data set.
        data_dir: TFDS folder; empty: the TFDS default.

    Raises:
        RequestError: the data set is not prepared and its files cannot be had, or are
            broken; the message says what to do and names the file.
    """
    builder = _builder(spec.tfds_name or spec.name, data_dir)
    if builder.is_prepared():
        return builder
    downloads = pathlib.Path(builder.data_dir_root) / "downloads"
    manual = downloads / "manual"
    for url, file in (builder.url_infos or {}).items():
        host = urlsplit(url).hostname
        names = get_dl_fname(url, file.checksum), f"manual/{file.filename}"
        if spec.name in _RECOMPRESSED and (downloads / names[1]).is_file():
            _take_as(downloads / names[0], downloads / names[1], url, file)
            manual = downloads  # where TFDS does not find, and hash, the files
        at_hand = any((downloads / name).exists() for name in names)
        if not at_hand and not _resolves(host):
            where = f" --data_dir={data_dir}" if data_dir else ""
            raise RequestError(
                f"Data set {spec.name} is not prepared in {builder.data_dir}, and "
                f"{host} cannot be reached. On a machine with network run: python -m "
                f"cdfkd_tf.tools.prepare_data --dataset={spec.name}{where} and copy "
                "that folder here. Given teachers are distilled without it by "
                "--evaluation_split=none."
            )
    print(f"Preparing {spec.name} in {builder.data_dir}", flush=True)
    tfds.disable_progress_bar()
    try:
        downloads.mkdir(parents=True, exist_ok=True)
        # Runs that are started together: one prepares, the others wait and read.
        with filelock.FileLock(downloads / f".{builder.name}.lock"):
            builder = _builder(spec.tfds_name or spec.name, data_dir)
            if builder.is_prepared():
                return builder
            _prepare(builder, downloads, manual)
    except RequestError:
        raise
    except Exception as error:  # archives break in many ways
        raise RequestError(
            f"Cannot prepare {spec.name} from the files in {downloads}: "
            f"{type(error).__name__}: {reason(error)} Remove the broken file and "
            "fetch it again."
        ) from error
    return builder


def _prepare(builder, downloads: pathlib.Path, manual: pathlib.Path) -> None:
    """Writes the examples; without a word of TFDS's."""
    with contextlib.redirect_stdout(io.StringIO()):
        builder.download_and_prepare(
            download_dir=downloads,
            download_config=tfds.download.DownloadConfig(
                manual_dir=manual, try_download_gcs=False
            ),
        )


def _take_as(cached: pathlib.Path, given: pathlib.Path, url: str, file) -> None:
    """Lets TFDS find a file under the name of its download, unhashed."""
    shutil.copyfile(given, cached)
    resource.write_info_file(
        url=url,
        path=epath.Path(cached),
        dataset_name="",
        original_fname=file.filename,
        url_info=file,
    )


def _builder(name: str, data_dir: str) -> tfds.core.DatasetBuilder:
    """As TFDS makes it, which leaves an empty temporary folder each time."""
    before = tempfile.tempdir
    with tempfile.TemporaryDirectory() as scratch:
        tempfile.tempdir = scratch
        try:
            return tfds.builder(name, data_dir=data_dir or None)
        finally:
            tempfile.tempdir = before


def _resolves(host: str) -> bool:
    """Whether the network knows `host`; TFDS itself would try for minutes."""
    try:
        socket.getaddrinfo(host, 443)
    except OSError:
        return False
    return True
