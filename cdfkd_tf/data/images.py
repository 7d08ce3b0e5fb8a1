"""Real images: data sets on disk as pipelines of batches."""

import functools
import pathlib
from collections.abc import Iterable

import numpy as np
import tensorflow as tf
import tensorflow_datasets as tfds

from cdfkd_tf.data.prepare import FolderExamples, TfdsExamples, open_examples
from cdfkd_tf.data.sampling import balanced_choice
from cdfkd_tf.data.specs import DatasetSpec
from cdfkd_tf.errors import RequestError
from cdfkd_tf.runtime.files import replacing
from cdfkd_tf.runtime.input_pipelines import untuned

_SHUFFLE_BUFFER = 50_000


class RealImages:
    """The images of one data set. Nothing is read before the first method is called.

    Args:
        spec: the data set.
        data_dir: TFDS folder; empty: the TFDS default.
        evaluation_split: what is measured on: `test`, or `validation`, a fifth of the
            training images, from which nothing learns then. Examples are stored
            shuffled, so a slice is a random part.
        cache_bytes: a split whose decoded images need no more than this stays in
            memory, decoded.
    """

    def __init__(
        self,
        spec: DatasetSpec,
        data_dir: str = "",
        evaluation_split: str = "test",
        cache_bytes: int = 2**30,
    ):
        self.spec, self._data_dir, self._cache_bytes = spec, data_dir, cache_bytes
        self._train, self._measured = "train", "test"
        if evaluation_split == "validation":
            self._train, self._measured = "train[:80%]", "train[80%:]"

    @functools.cached_property
    def _examples(self) -> TfdsExamples | FolderExamples:
        return open_examples(self.spec, self._data_dir)

    @functools.cached_property
    def can_measure(self) -> bool:
        """Whether there are images to measure on; only an own folder may lack them."""
        return self._has(self._measured)

    @property
    def class_names(self) -> list[str]:
        """In the order of the labels."""
        return self._examples.class_names

    def training(
        self, batch_size: int, seed: int, first_batch: int = 0
    ) -> tuple[tf.data.Dataset, int]:
        """Endless shuffled, augmented batches, and how many make one epoch.

        Args:
            batch_size: B; a remainder is left for the next epoch's shuffle.
            seed: of the order and the augmentation.
            first_batch: how many batches an earlier process has taken; they are
                skipped before they are decoded (or where they are kept decoded).

        Returns:
            A dataset of `(normalised, labels)`, float32 `(B, *image_shape)` and int64
            `(B,)`; steps per epoch.

        Raises:
            RequestError: there are no training images, see also `prepared_builder`.
        """
        examples, count = self._read(self._train)
        fits = self._fits(count)
        if fits:
            examples = _map(examples, self._decode).cache()
        examples = examples.shuffle(min(count, _SHUFFLE_BUFFER), seed=seed).repeat()
        numbered = tf.data.Dataset.zip(tf.data.Dataset.counter(), examples)
        numbered = numbered.skip(first_batch * batch_size)

        def prepare(number, example):
            pixels, label = example if fits else self._decode(example)
            return self.spec.normalise(self._augment(pixels, seed, number)), label

        batches = _map(numbered, prepare).batch(batch_size, drop_remainder=True)
        return batches.prefetch(2), max(1, count // batch_size)

    def evaluation(self, batch_size: int = 256) -> tf.data.Dataset:
        """`(normalised, labels)` of the evaluation split, batched, once, in order."""
        batches = self._evaluation().batch(batch_size)
        return batches.map(lambda pixels, label: (self.spec.normalise(pixels), label))

    def evaluation_pixels(
        self, batch_size: int = 256
    ) -> Iterable[tuple[np.ndarray, np.ndarray]]:
        """The evaluation split in [0, 1], `(B, *image_shape)`, with labels `(B,)`.

        In order; can be gone through many times; no more than a few batches are in
        memory if the data set is large.
        """
        return tfds.as_numpy(self._evaluation().batch(batch_size).prefetch(2))

    def some_training_pixels(self, count: int, seed: list[int]) -> np.ndarray:
        """Up to `count` training images, drawn without their labels.

        Returns:
            `(n, *image_shape)` in [0, 1], float32.

        Raises:
            RequestError: there are none.
        """
        _, total = self._read(self._train)
        drawn = np.random.default_rng(seed).permutation(total)[:count]
        return self._chosen(drawn)[0]

    def some_labelled(
        self, count: int, seed: int
    ) -> tuple[np.ndarray, np.ndarray, str] | None:
        """Up to `count` images to try a teacher on, in random order.

        Returns:
            Normalised images, labels `(n,)`, and what they are: `training images`;
            without any, of those that are measured on; None if there are none at all.
        """
        trains = self._has(self._train)
        if not (trains or self.can_measure):
            return None
        split = self._train if trains else self._measured
        drawn = np.random.default_rng(seed).permutation(self._read(split)[1])[:count]
        pixels, labels = self._chosen(np.sort(drawn), split)
        mixed = np.random.default_rng(seed).permutation(len(labels))
        normalised = self.spec.normalise(pixels).astype("float32")
        what = "training images" if trains else "evaluation images, for want of others"
        return normalised[mixed], labels[mixed], what

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
        pixels, labels = self._chosen(self._balanced(count, seed))
        mixed = np.random.default_rng(seed).permutation(count)
        return self.spec.normalise(pixels).astype("float32")[mixed], labels[mixed]

    def write_splits(self, directory: pathlib.Path) -> None:
        """Writes which images are in which split, one line each: name, tab, class.

        Args:
            directory: gets `train.txt` and, of the images measured on, `test.txt` or
                `validation.txt`; files that are there are kept.
        """
        measured = "test" if self._measured == "test" else "validation"
        for name, split in (("train", self._train), (measured, self._measured)):
            file = directory / f"{name}.txt"
            if not file.exists() and self._has(split):
                _write_lines(file, self._names(split))

    def write_few_shot(self, directory: pathlib.Path, count: int, seed: int) -> None:
        """Writes which training images `few_shot` draws, as `write_splits` does."""
        names = self._names(self._train)
        chosen = sorted(self._balanced(count, seed))
        _write_lines(directory / "few_shot.txt", [names[index] for index in chosen])

    def _has(self, split: str) -> bool:
        # TFDS's data sets are only opened where their images are needed.
        return not self.spec.folder or self._examples.count(split) > 0

    def _read(self, split: str) -> tuple[tf.data.Dataset, int]:
        """The examples of a split, in order and undecoded; how many there are."""
        if not self._has(split):
            raise RequestError(
                f"{self.spec.folder} has no images of split {split.split('[')[0]}, "
                "which this request learns from or measures on. Add the folder, or "
                "leave out what needs it."
            )
        return self._examples.read(split), self._examples.count(split)

    def _fits(self, count: int) -> bool:
        return count * np.prod(self.spec.image_shape) * 4 <= self._cache_bytes

    def _evaluation(self) -> tf.data.Dataset:
        examples, count = self._read(self._measured)
        images = _map(examples, self._decode_centred)
        return images.cache() if self._fits(count) else images

    def _decode(self, example):
        """Pixels in [0, 1] and label; scaled, but not yet cropped."""
        (height, width, channels), side = self.spec.image_shape, self.spec.shorter_side
        pixels = self._examples.decode(example["image"])
        if pixels.shape[:2] == (height, width):
            pass
        elif side:  # scaled with its proportions
            shape = tf.cast(tf.shape(pixels)[:2], tf.float32)
            size = tf.cast(tf.round(shape * side / tf.reduce_min(shape)), tf.int32)
            pixels = resize(pixels, size)
            height = width = None
        else:
            pixels = resize(pixels, (height, width))
        return tf.ensure_shape(pixels, (height, width, channels)), example["label"]

    def _decode_centred(self, example):
        """Pixels in [0, 1] and label, cropped in the centre where they are larger."""
        pixels, label = self._decode(example)
        height, width, _ = self.spec.image_shape
        return tf.image.resize_with_crop_or_pad(pixels, height, width), label

    def _augment(self, pixels, seed, number):
        """A random crop and a random flip, as specified."""
        pair = tf.stack([tf.constant(seed, tf.int64), number])
        padding = self.spec.augmentation.crop_padding
        if padding:
            pixels = tf.pad(pixels, [[padding] * 2, [padding] * 2, [0, 0]])
        if padding or self.spec.shorter_side:
            pixels = tf.image.stateless_random_crop(
                pixels, self.spec.image_shape, seed=pair
            )
        if self.spec.augmentation.horizontal_flip:
            pixels = tf.image.stateless_random_flip_left_right(pixels, seed=pair + 1)
        return pixels

    def _balanced(self, count: int, seed: int) -> np.ndarray:
        """Places of `count` training images, as many of each class as can be."""
        examples, total = self._read(self._train)
        if count > total:
            raise RequestError(
                f"--labelled_samples={count}, but {self.spec.name} has only {total} "
                "training images. Give at most as many."
            )
        labels = [int(example["label"]) for example in examples.as_numpy_iterator()]
        return balanced_choice(np.array(labels), count, seed)

    def _chosen(
        self, places: np.ndarray, split: str = ""
    ) -> tuple[np.ndarray, np.ndarray]:
        """Pixels and labels of the (training) images with these places, in order."""
        examples, _ = self._read(split or self._train)
        wanted = np.zeros(places.max() + 1, bool)
        wanted[places] = True
        is_wanted = tf.constant(wanted)
        numbered = examples.take(len(wanted)).enumerate()
        few = numbered.filter(lambda number, _: is_wanted[number])
        few = _map(few, lambda _, example: self._decode_centred(example))
        pixels, labels = zip(*few.as_numpy_iterator())
        return np.stack(pixels), np.asarray(labels)

    def _names(self, split: str) -> list[str]:
        examples, names = self._read(split)[0], self.class_names
        return [
            f"{self._examples.name(example)}\t{names[int(example['label'])]}"
            for example in examples.as_numpy_iterator()
        ]


def resize(pixels: tf.Tensor, size: tuple[int, int] | tf.Tensor) -> tf.Tensor:
    """Bilinear and, where it shrinks, averaging (antialias), as Pillow resizes.

    Args:
        pixels: `(height, width, channels)`.
        size: new height and width.
    """
    return tf.image.resize(pixels, size, antialias=True)


def _map(dataset: tf.data.Dataset, function) -> tf.data.Dataset:
    """In parallel, a thread for each core, in order."""
    return untuned(dataset.map(function, tf.data.AUTOTUNE, deterministic=True))


def _write_lines(file: pathlib.Path, lines: list[str]) -> None:
    with replacing(file) as temporary:
        text = "\n".join(lines) + "\n"
        temporary.write_text(text, encoding="utf-8", errors="surrogateescape")
