"""Real images: TFDS data sets as pipelines of normalised batches."""

import contextlib
import io
import socket
from typing import NamedTuple

import numpy as np
import tensorflow as tf
import tensorflow_datasets as tfds

from cdfkd_tf.data.builders import digits  # registers the builder
from cdfkd_tf.data.specs import DatasetSpec
from cdfkd_tf.errors import RequestError

__all__ = ["RealImages", "Splits", "digits", "splits_for"]

_CACHE_BYTES = 2**30  # decoded images up to this size stay in memory
_SHUFFLE_BUFFER = 50_000


class Splits(NamedTuple):
    """TFDS names of the images to learn from and of those to measure on."""

    train: str
    evaluation: str


def splits_for(evaluation_split: str) -> Splits:
    """The two splits for `--evaluation_split=test` or `validation`.

    With `validation`, a fifth of the training images is measured on instead of the
    test split, and nothing learns from it. TFDS stores examples shuffled, so a slice
    is a random part. With `none` nobody measures.
    """
    if evaluation_split == "validation":
        return Splits("train[:80%]", "train[80%:]")
    return Splits("train", "test")


class RealImages:
    """The images of one data set, read through TensorFlow Datasets.

    Nothing is read before the first method is called.

    Args:
        spec: the data set.
        data_dir: TFDS folder; empty: the TFDS default.
        evaluation_split: `test` or `validation`, see `splits_for`.
    """

    def __init__(
        self, spec: DatasetSpec, data_dir: str = "", evaluation_split: str = "test"
    ):
        self.spec, self.data_dir = spec, data_dir
        self.splits = splits_for(evaluation_split)

    def training(self, batch_size: int, seed: int) -> tuple[tf.data.Dataset, int]:
        """Endless shuffled, augmented batches, and how many make one epoch.

        Args:
            batch_size: B; a remainder is left for the next epoch's shuffle.
            seed: of the order and the augmentation.

        Returns:
            A dataset of `(images, labels)`, normalised float32 `(B, *image_shape)`
            and int64 `(B,)`; steps per epoch.
        """
        dataset, count = self._read(self.splits.train)
        dataset = dataset.shuffle(min(count, _SHUFFLE_BUFFER), seed=seed).repeat()
        numbered = tf.data.Dataset.zip(tf.data.Dataset.counter(), dataset)

        def prepare(number, example):
            pixels, label = example
            return self.spec.normalise(self._augment(pixels, seed, number)), label

        batches = numbered.map(
            prepare, num_parallel_calls=tf.data.AUTOTUNE, deterministic=True
        ).batch(batch_size, drop_remainder=True)
        return batches.prefetch(2), max(1, count // batch_size)

    def evaluation(self, batch_size: int = 256) -> tf.data.Dataset:
        """Normalised `(images, labels)` of the evaluation split, once, in order."""
        dataset, _ = self._read(self.splits.evaluation)
        batches = dataset.batch(batch_size)
        return batches.map(lambda pixels, label: (self.spec.normalise(pixels), label))

    def evaluation_pixels(self) -> tuple[np.ndarray, np.ndarray]:
        """The evaluation split in [0, 1], `(n, *image_shape)`, and labels `(n,)`."""
        return _as_arrays(self._read(self.splits.evaluation)[0])

    def few_shot(self, count: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
        """`count` training images, as many of each class as can be.

        Args:
            count: how many in total.
            seed: of the choice.

        Returns:
            Normalised images `(count, *image_shape)` and labels `(count,)`, mixed.

        Raises:
            RequestError: if the training split has fewer images.
        """
        chosen = self._balanced_choice(count, seed)
        is_chosen = tf.scatter_nd(chosen[:, None], [True] * count, [chosen.max() + 1])
        dataset, _ = self._read(self.splits.train)
        few = (
            dataset.take(len(is_chosen))
            .enumerate()
            .filter(lambda index, _: is_chosen[index])
            .map(lambda _, example: (self.spec.normalise(example[0]), example[1]))
        )
        images, labels = _as_arrays(few)
        mixed = np.random.default_rng(seed).permutation(count)
        return images[mixed], labels[mixed]

    def _balanced_choice(self, count: int, seed: int) -> np.ndarray:
        """Indices of `count` training images, as many of each class as can be."""
        labels = self._prepared_builder().as_dataset(
            split=self.splits.train,
            as_supervised=True,
            decoders={"image": tfds.decode.SkipDecoding()},
        )
        labels = np.array([int(label) for _, label in labels.as_numpy_iterator()])
        if count > len(labels):
            raise RequestError(
                f"--real_samples={count}, but {self.spec.name} has only "
                f"{len(labels)} training images."
            )
        # Deal rank by rank: the first of each class, then the second of each ...
        order = np.random.default_rng(seed).permutation(len(labels))
        ranks = np.empty(len(labels), int)
        for label in np.unique(labels):
            members = order[labels[order] == label]
            ranks[members] = np.arange(len(members))
        return order[np.argsort(ranks[order], kind="stable")][:count]

    def _read(self, split: str) -> tuple[tf.data.Dataset, int]:
        """Pixels in [0, 1] of the networks' size with labels; how many there are."""
        builder = self._prepared_builder()
        count = builder.info.splits[split].num_examples
        dataset = builder.as_dataset(split=split, as_supervised=True)
        dataset = dataset.map(self._to_pixels, num_parallel_calls=tf.data.AUTOTUNE)
        if count * np.prod(self.spec.image_shape) * 4 <= _CACHE_BYTES:
            dataset = dataset.cache()
        return dataset, count

    def _to_pixels(self, image, label):
        height, width, channels = self.spec.image_shape
        pixels = tf.cast(image, tf.float32) / 255.0
        if image.shape[:2] != (height, width):
            pixels = tf.image.resize(pixels, (height, width))
        return tf.ensure_shape(pixels, (height, width, channels)), label

    def _augment(self, pixels, seed, number):
        """A random crop out of the padded image and a random flip, as specified."""
        pair = tf.stack([tf.constant(seed, tf.int64), number])
        if self.spec.crop_padding:
            border = [[self.spec.crop_padding] * 2] * 2 + [[0, 0]]
            pixels = tf.image.stateless_random_crop(
                tf.pad(pixels, border), self.spec.image_shape, seed=pair
            )
        if self.spec.flip:
            pixels = tf.image.stateless_random_flip_left_right(pixels, seed=pair + 1)
        return pixels

    def _prepared_builder(self) -> tfds.core.DatasetBuilder:
        spec, data_dir = self.spec, self.data_dir or None
        builder = tfds.builder(spec.tfds_name, data_dir=data_dir)
        if builder.is_prepared():
            return builder
        if spec.download_host and not _resolves(spec.download_host):
            where = f", data_dir={self.data_dir!r}" if self.data_dir else ""
            raise RequestError(
                f"Data set {spec.name} is not prepared in {builder.data_dir}, and "
                f"{spec.download_host} cannot be reached. On a machine with network "
                'run: python -c "import tensorflow_datasets as tfds; '
                f'tfds.load({spec.tfds_name!r}{where})" and copy that folder here. '
                "Given teachers are distilled without it by --evaluation_split=none."
            )
        print(f"Preparing {spec.name} in {builder.data_dir}", flush=True)
        tfds.disable_progress_bar()
        with contextlib.redirect_stdout(io.StringIO()):
            builder.download_and_prepare()
        return builder


def _as_arrays(dataset: tf.data.Dataset) -> tuple[np.ndarray, np.ndarray]:
    pixels, labels = zip(*dataset.as_numpy_iterator())
    return np.stack(pixels), np.asarray(labels)


def _resolves(host: str) -> bool:
    """Whether the network knows `host`; TFDS itself would try for minutes."""
    try:
        socket.getaddrinfo(host, 443)
    except OSError:
        return False
    return True
