"""Real images: TFDS data sets as pipelines of normalised batches."""

import functools
import pathlib
from collections.abc import Iterable, Iterator
from typing import Any, NamedTuple

import numpy as np
import tensorflow as tf
import tensorflow_datasets as tfds

from cdfkd_tf.data.prepare import prepared_builder
from cdfkd_tf.data.sampling import balanced_choice
from cdfkd_tf.data.specs import DatasetSpec
from cdfkd_tf.errors import RequestError
from cdfkd_tf.runtime.files import replacing

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

    @functools.cached_property
    def can_measure(self) -> bool:
        """Whether there are images to measure on; only an own folder may lack them."""
        return self._has(self.splits.evaluation)

    @property
    def class_names(self) -> list[str]:
        """In the order of the labels."""
        return self._prepared_builder().info.features["label"].names

    def _has(self, split: str) -> bool:
        """Only an own folder may lack a split."""
        return not self.spec.folder or split in self._prepared_builder().info.splits

    def training(
        self, batch_size: int, seed: int, first_batch: int = 0
    ) -> tuple[tf.data.Dataset, int]:
        """Endless shuffled, augmented batches, and how many make one epoch.

        Args:
            batch_size: B; a remainder is left for the next epoch's shuffle.
            seed: of the order and the augmentation.
            first_batch: how many batches an earlier process has taken.

        Returns:
            A dataset of `(images, labels)`, normalised float32 `(B, *image_shape)`
            and int64 `(B,)`; steps per epoch.
        """
        dataset, count = self._read(self.splits.train)
        dataset = dataset.shuffle(min(count, _SHUFFLE_BUFFER), seed=seed).repeat()
        numbered = tf.data.Dataset.zip(tf.data.Dataset.counter(), dataset)
        numbered = numbered.skip(first_batch * batch_size)

        def prepare(number, example):
            pixels, label = example
            return self.spec.normalise(self._augment(pixels, seed, number)), label

        batches = numbered.map(
            prepare, num_parallel_calls=tf.data.AUTOTUNE, deterministic=True
        ).batch(batch_size, drop_remainder=True)
        return batches.prefetch(2), max(1, count // batch_size)

    def evaluation(self, batch_size: int = 256) -> tf.data.Dataset:
        """Normalised `(images, labels)` of the evaluation split, once, in order."""
        batches = self._centred(self.splits.evaluation).batch(batch_size)
        return batches.map(lambda pixels, label: (self.spec.normalise(pixels), label))

    def evaluation_pixels(
        self, batch_size: int = 256
    ) -> Iterable[tuple[np.ndarray, np.ndarray]]:
        """The evaluation split in [0, 1], `(B, *image_shape)`, with labels `(B,)`.

        In order; can be gone through many times; no more than a few batches are in
        memory if the data set is large.
        """
        batches = self._centred(self.splits.evaluation).batch(batch_size).prefetch(2)
        return _Arrays(batches)

    def some_training_pixels(self, count: int, seed: list[int]) -> np.ndarray:
        """Up to `count` training images in [0, 1], drawn without their labels."""
        dataset = self._centred(self.splits.train)
        number = self._prepared_builder().info.splits[self.splits.train].num_examples
        drawn = np.random.default_rng(seed).permutation(number)[:count]
        return _as_arrays(_chosen(dataset, drawn))[0]

    def write_splits(self, directory: pathlib.Path) -> None:
        """Writes which images stand in which split, one line each: name, tab, class.

        The names are those of the original files where the data set tells them, else
        the place in the prepared files. What is there already is kept.

        Args:
            directory: gets `train.txt` and, of the images measured on, `test.txt` or
                `validation.txt`.
        """
        second = "validation" if "train" in self.splits.evaluation else "test"
        for name, split in zip(("train", second), self.splits):
            file = directory / f"{name}.txt"
            if not file.exists() and self._has(split):
                _write_lines(file, self._names(split))

    def write_few_shot(self, directory: pathlib.Path, count: int, seed: int) -> None:
        """Writes which training images `few_shot` draws, as `write_splits` does."""
        names = self._names(self.splits.train)
        chosen = sorted(self._balanced_choice(count, seed))
        _write_lines(directory / "few_shot.txt", [names[index] for index in chosen])

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
        few = _chosen(
            self._centred(self.splits.train), self._balanced_choice(count, seed)
        )
        pixels, labels = _as_arrays(few)
        mixed = np.random.default_rng(seed).permutation(count)
        images = self.spec.normalise(pixels).astype("float32")
        return images[mixed], labels[mixed]

    def _balanced_choice(self, count: int, seed: int) -> np.ndarray:
        """Indices of `count` training images, as many of each class as can be."""
        examples = self._undecoded(self.splits.train)
        labels = np.array([int(example["label"]) for example in examples])
        if count > len(labels):
            raise RequestError(
                f"--real_samples={count}, but {self.spec.name} has only "
                f"{len(labels)} training images. Give at most as many."
            )
        return balanced_choice(labels, count, seed)

    def _undecoded(self, split: str) -> Iterator[dict[str, Any]]:
        """All that TFDS knows of each example, in order, its image left encoded."""
        return (
            self._prepared_builder()
            .as_dataset(
                split=split,
                decoders={"image": tfds.decode.SkipDecoding()},
                read_config=tfds.ReadConfig(add_tfds_id=True),
            )
            .as_numpy_iterator()
        )

    def _names(self, split: str) -> list[str]:
        """One line per example: its name, a tab, its class."""
        class_of = self._prepared_builder().info.features["label"].int2str
        lines = []
        for example in self._undecoded(split):
            name = example.get("file_name") or example.get("tfds_id")
            if name is None:
                path = pathlib.Path(example["image/filename"].decode())
                name = "/".join(path.parts[-3:]).encode()
            name = name.decode()
            lines.append(f"{name}\t{class_of(int(example['label']))}")
        return lines

    def _centred(self, split: str) -> tf.data.Dataset:
        """Pixels in [0, 1] with labels, cropped in the centre where they are larger."""
        height, width, _ = self.spec.image_shape
        dataset, _ = self._read(split)
        if not self.spec.shorter_side:
            return dataset
        return dataset.map(
            lambda pixels, label: (
                tf.image.resize_with_crop_or_pad(pixels, height, width),
                label,
            ),
            num_parallel_calls=tf.data.AUTOTUNE,
        )

    def _read(self, split: str) -> tuple[tf.data.Dataset, int]:
        """Pixels in [0, 1] with labels, scaled as specified; how many there are."""
        builder = self._prepared_builder()
        if not self._has(split):
            raise RequestError(
                f"{self.spec.folder} has no images of split {split.split('[')[0]}, "
                "which this request learns from or measures on. Add the folder, or "
                "leave out what needs it."
            )
        count = builder.info.splits[split].num_examples
        dataset = builder.as_dataset(split=split, as_supervised=True)
        dataset = dataset.map(self._to_pixels, num_parallel_calls=tf.data.AUTOTUNE)
        if count * np.prod(self.spec.image_shape) * 4 <= _CACHE_BYTES:
            dataset = dataset.cache()
        return dataset, count

    def _to_pixels(self, image, label):
        height, width, channels = self.spec.image_shape
        pixels = tf.cast(image, tf.float32) / 255.0
        if self.spec.shorter_side:
            pixels = _scale_shorter_side(pixels, self.spec.shorter_side)
            return tf.ensure_shape(pixels, (None, None, channels)), label
        if image.shape[:2] != (height, width):
            pixels = tf.image.resize(pixels, (height, width))
        return tf.ensure_shape(pixels, (height, width, channels)), label

    def _augment(self, pixels, seed, number):
        """A random crop and a random flip, as specified."""
        pair = tf.stack([tf.constant(seed, tf.int64), number])
        if self.spec.crop_padding:
            border = [[self.spec.crop_padding] * 2] * 2 + [[0, 0]]
            pixels = tf.image.stateless_random_crop(
                tf.pad(pixels, border), self.spec.image_shape, seed=pair
            )
        if self.spec.shorter_side:
            pixels = tf.image.stateless_random_crop(
                pixels, self.spec.image_shape, seed=pair
            )
        if self.spec.flip:
            pixels = tf.image.stateless_random_flip_left_right(pixels, seed=pair + 1)
        return pixels

    def _prepared_builder(self) -> tfds.core.DatasetBuilder:
        return prepared_builder(self.spec, self.data_dir)


class _Arrays(Iterable):
    """A dataset's elements as NumPy arrays, each time anew."""

    def __init__(self, dataset: tf.data.Dataset):
        self.dataset = dataset

    def __iter__(self):
        return self.dataset.as_numpy_iterator()


def _scale_shorter_side(pixels, side):
    """Scaled, with its proportions, so that the shorter side measures `side`."""
    shape = tf.cast(tf.shape(pixels)[:2], tf.float32)
    size = tf.cast(tf.round(shape * side / tf.reduce_min(shape)), tf.int32)
    return tf.image.resize(pixels, size, antialias=True)


def _chosen(dataset: tf.data.Dataset, indices: np.ndarray) -> tf.data.Dataset:
    """The elements with these places, in the data set's order."""
    found = tf.scatter_nd(
        indices[:, None], [True] * len(indices), [int(indices.max()) + 1]
    )
    numbered = dataset.take(len(found)).enumerate()
    return numbered.filter(lambda i, _: found[i]).map(lambda _, element: element)


def _write_lines(file: pathlib.Path, lines: list[str]) -> None:
    with replacing(file) as temporary:
        temporary.write_text("\n".join(lines) + "\n")


def _as_arrays(dataset: tf.data.Dataset) -> tuple[np.ndarray, np.ndarray]:
    pixels, labels = zip(*dataset.as_numpy_iterator())
    return np.stack(pixels), np.asarray(labels)
