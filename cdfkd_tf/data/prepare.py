"""Prepared TFDS data sets: found, made from what is there, or asked for in one line."""

import contextlib
import io
import pathlib
import socket

import tensorflow_datasets as tfds

# Importing a builder registers it.
from cdfkd_tf.data.builders import caltech101, digits, mini_imagenet  # noqa: F401
from cdfkd_tf.data.builders.image_folder import FolderOfImages
from cdfkd_tf.data.specs import DatasetSpec
from cdfkd_tf.errors import RequestError, reason


def prepared_builder(spec: DatasetSpec, data_dir: str) -> tfds.core.DatasetBuilder:
    """The data set's builder, its examples on disk.

    Args:
        spec: the data set.
        data_dir: TFDS folder; empty: the TFDS default.

    Raises:
        RequestError: the data set is not prepared and its files cannot be had, or are
            broken; the message says what to do and names the file.
    """
    if spec.folder:
        return FolderOfImages(spec.folder, spec.image_shape[-1])
    builder = tfds.builder(spec.tfds_name, data_dir=data_dir or None)
    if builder.is_prepared():
        return builder
    downloads = pathlib.Path(builder.data_dir_root) / "downloads"
    if not _is_at_hand(spec, downloads) and not _resolves(spec.download_host):
        raise RequestError(
            f"Data set {spec.name} is not prepared in {builder.data_dir}, and "
            f"{spec.download_host} cannot be reached. On a machine with network run: "
            f"{command(spec, data_dir)} and copy that folder here. Given teachers are "
            "distilled without it by --evaluation_split=none."
        )
    print(f"Preparing {spec.name} in {builder.data_dir}", flush=True)
    tfds.disable_progress_bar()
    try:
        with contextlib.redirect_stdout(io.StringIO()):
            builder.download_and_prepare(
                download_dir=downloads,
                download_config=tfds.download.DownloadConfig(
                    manual_dir=downloads / "manual", try_download_gcs=False
                ),
            )
    except RequestError:
        raise
    except Exception as error:  # archives break in many ways
        raise RequestError(
            f"Cannot prepare {spec.name} from the files in {downloads}: "
            f"{type(error).__name__}: {reason(error, 400)} Remove the broken file and "
            "fetch it again."
        ) from error
    return builder


def command(spec: DatasetSpec, data_dir: str) -> str:
    """The shell command that prepares the data set on a machine with network."""
    where = f" --data_dir={data_dir}" if data_dir else ""
    return f"python -m cdfkd_tf.tools.prepare_data --dataset={spec.name}{where}"


def _is_at_hand(spec: DatasetSpec, downloads: pathlib.Path) -> bool:
    """Whether nothing needs to be fetched."""
    return not spec.download_host or any(downloads.glob(f"*{spec.archive}*"))


def _resolves(host: str) -> bool:
    """Whether the network knows `host`; TFDS itself would try for minutes."""
    try:
        socket.getaddrinfo(host, 443)
    except OSError:
        return False
    return True
