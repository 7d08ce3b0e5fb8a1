"""Images fitted to the teachers: each batch by gradient steps of its own.

Where the generator of `GeneratedImages` learns over the whole run, here every batch
starts anew, from noise or from a generator's weights, and is fitted to what the
`generator` weights of the method ask for.
"""

import abc
from collections.abc import Iterator, Sequence

import keras
import numpy as np
import tensorflow as tf
from keras import KerasTensor, ops

from cdfkd_tf.data.noise import latent_dataset, watching_noise
from cdfkd_tf.distillation.boosting import Boosting
from cdfkd_tf.distillation.image_source import (
    HELD_OUT_SEED,
    OBSERVED,
    Batch,
    ImageSource,
    Sampler,
    counted_images,
)
from cdfkd_tf.distillation.losses import Objective, Outputs
from cdfkd_tf.networks.generators import asked_classes
from cdfkd_tf.teachers.ensemble import TeacherEnsemble, TeacherOutputs

_PIXEL_RATE, _LATENT_RATE = 0.1, 0.01  # of Adam
_BETAS, _EPSILON = (0.5, 0.999), 1e-8
_JITTER = 2  # pixels, to each side


class FittedImages(ImageSource):
    """One batch of fitted images per iteration, for `ReplayedImages`; on one device.

    What is fitted are tensors, not variables: nothing of it is left for a checkpoint.

    Args:
        teachers: frozen.
        objective: what the images minimise.
        student: in inference mode, where a term reads it.
        image_shape: `(height, width, channels)`.
        num_classes: C; each image is asked for a class.
        num_steps: of Adam for each batch.
        batch_size: B.
        seed: of all the noise.
        boosting: what weighs the teachers; None: nothing does.
    """

    def __init__(
        self,
        teachers: TeacherEnsemble,
        objective: Objective,
        student: keras.Model,
        *,
        image_shape: tuple[int, ...],
        num_classes: int,
        num_steps: int,
        batch_size: int,
        seed: int,
        boosting: Boosting | None = None,
    ):
        super().__init__()
        self.boosting = boosting
        self.image_shape, self.objective = tuple(image_shape), objective
        self._teachers, self._student = teachers, student
        self._num_classes, self._num_steps = num_classes, num_steps
        self._batch_size, self._seed = batch_size, seed
        self.trackers, self.needs = objective.trackers, objective.needs

    @property
    @abc.abstractmethod
    def width(self) -> int:
        """Numbers of noise behind one image."""

    @abc.abstractmethod
    def start(
        self, noise: KerasTensor, seed: KerasTensor
    ) -> tuple[list[KerasTensor], list[float]]:
        """What is fitted, of noise `(B, width)`, and the learning rate of each.

        Args:
            noise: of the images.
            seed: `(2,)`, of what else is random.
        """

    @abc.abstractmethod
    def draw(self, values: Sequence[KerasTensor]) -> KerasTensor:
        """The images, `(B, *image_shape)`, of fitted values."""

    def vary(self, images: KerasTensor, seed: KerasTensor) -> KerasTensor:
        """The images as the teachers see them in one step; `seed`: `(2,)`."""
        return images

    def finish(self, values: Sequence[KerasTensor]) -> None:
        """Learns from the fitted values, shaped as of `start`; most do not."""

    def dataset(self, first_step: int) -> tf.data.Dataset:
        """Endless noise, `(B, 1, C + width)`: of classes, then of images."""
        return latent_dataset(
            self._batch_size,
            1,
            self._num_classes + self.width,
            seed=self._seed,
            first_step=first_step,
        )

    def next_batches(
        self, element: KerasTensor, earlier: TeacherOutputs | None = None
    ) -> Batch:
        """The images of the smallest loss on the way, `(1, B, *image_shape)`.

        Args:
            element: noise `(B, 1, C + width)`.
            earlier: the teachers' for images made before, where a term reads them.
        """
        noise = ops.cast(element[:, 0], keras.config.floatx())
        labels, seed = self.labels(element), self.seed_of(element)
        values, rates = self.start(noise[:, self._num_classes :], seed)
        shape = (element.shape[0] or tf.shape(element)[0], *self.image_shape)

        def fit(step, values, means, squares, least, best):
            with tf.GradientTape() as tape:
                tape.watch(values)
                images = self.draw(values)
                now = seed + [0, step]
                loss = self._loss(self.vary(images, now), labels, now, earlier)
            gradients = tape.gradient(loss, values)
            moved = [
                _adam(*parts, tf.cast(step + 1, loss.dtype))
                for parts in zip(values, gradients, means, squares, rates)
            ]
            best = tf.where(loss < least, images, best)
            return step + 1, *map(list, zip(*moved)), tf.minimum(loss, least), best

        zeros = [tf.zeros_like(value) for value in values]
        least = tf.constant(np.inf, values[0].dtype)
        _, values, _, _, _, best = tf.while_loop(
            lambda step, *_: step < self._num_steps,
            fit,
            [0, values, zeros, zeros, least, tf.zeros(shape, values[0].dtype)],
        )
        self.finish(values)
        return Batch(best[None])

    def labels(self, element: KerasTensor) -> KerasTensor:
        """The classes `(B,)` that a batch is asked for."""
        return asked_classes(element[:, 0], self._num_classes)

    def seed_of(self, element: KerasTensor) -> KerasTensor:
        """`(2,)`, bits of the noise: as random, and the same in a resumed run."""
        return tf.cast(element[0, 0, :2] * 2.0**16, tf.int32)

    def _loss(self, images, labels, seed, earlier) -> KerasTensor:
        teachers, views = self._teachers(images, self.needs), None
        if "views" in self.needs:
            views = self._teachers(pieces(images, seed))
        if self.boosting:
            weighted = self.boosting.weighted(teachers.logits)
            teachers = teachers._replace(logits=weighted)
        student = self._student(images, training=False)
        rule, where = self._teachers.rule, self.objective.method.adversarial_on
        logits = student["logits"], teachers.logits
        counted = counted_images(where, *map(self._teachers.combined, logits))
        fixed = rule, counted, labels, images, views, earlier
        return self.objective(Outputs(student, teachers, *fixed))


def pieces(images: KerasTensor, seed: KerasTensor) -> KerasTensor:
    """Of each image a square piece of a quarter of its area or more, enlarged.

    Every other one or so is mirrored.

    Args:
        images: `(B, height, width, channels)`.
        seed: `(2,)`.
    """
    count = tf.shape(images)[0]
    drawn = tf.random.stateless_uniform([4, count], seed)
    side = tf.sqrt(0.25 + 0.75 * drawn[0])
    top, left = (1 - side) * drawn[1], (1 - side) * drawn[2]
    mirrored = drawn[3] < 0.5
    starts = tf.where(mirrored, left + side, left)
    ends = tf.where(mirrored, left, left + side)
    boxes = tf.stack([top, starts, top + side, ends], axis=1)
    size = images.shape[1:3]
    found = tf.image.crop_and_resize(images, boxes, tf.range(count), size)
    return tf.cast(found, images.dtype)


def _adam(value, gradient, mean, square, rate, step):
    """Kingma and Ba, ICLR 2015, algorithm 1: new value, mean and mean square."""
    first, second = _BETAS
    mean = first * mean + (1 - first) * gradient
    square = second * square + (1 - second) * gradient**2
    deviation = tf.sqrt(square / (1 - second**step)) + _EPSILON
    return value - rate * mean / (1 - first**step) / deviation, mean, square


class InvertedImages(FittedImages):
    """Pixels fitted from noise (Yin et al., DeepInversion, CVPR 2020).

    Each step sees the images shifted by up to two pixels and, every other step or so,
    mirrored.
    """

    @property
    def width(self) -> int:
        """One number per pixel and channel."""
        return int(np.prod(self.image_shape))

    def start(
        self, noise: KerasTensor, seed: KerasTensor
    ) -> tuple[list[KerasTensor], list[float]]:
        """The pixels, `(B, *image_shape)`, standard normal, and Adam's rate."""
        return [tf.reshape(noise, (-1, *self.image_shape))], [_PIXEL_RATE]

    def draw(self, values: Sequence[KerasTensor]) -> KerasTensor:
        """The pixels `(B, *image_shape)` as they are."""
        return values[0]

    def vary(self, images: KerasTensor, seed: KerasTensor) -> KerasTensor:
        """All `(B, height, width, channels)` shifted and mirrored alike."""
        shifts = 2 * _JITTER + 1
        drawn = tf.random.stateless_uniform([3], seed, 0, 2 * shifts, tf.int32)
        images = tf.roll(images, drawn[:2] % shifts - _JITTER, axis=[1, 2])
        return tf.where(drawn[2] % 2 == 1, images[:, :, ::-1], images)


class LatentImages(FittedImages):
    """Latents and a copy of the generator fitted together, from where the last ended.

    The generator itself moves towards each end by one step of its optimiser: it
    becomes a start from which few steps are enough (Fang et al., Up to 100x faster
    data-free knowledge distillation, AAAI 2022).

    Args:
        generator: noise `(B, Z)` to normalised images.
        optimizer: of the generator; the copy is fitted at its learning rate, too.
        fresh: whether the copy starts each time from fresh weights, and the latents
            move at its rate (Zhang et al., DENSE, NeurIPS 2022).
        **options: as in `FittedImages`.
    """

    def __init__(
        self,
        generator: keras.Model,
        optimizer: keras.optimizers.Optimizer,
        *args,
        fresh: bool = False,
        **options,
    ):
        self.generator, self.optimizer = generator, optimizer
        first = generator.trainable_variables if fresh else ()
        self._first = [tf.constant(np.array(weight)) for weight in first]
        super().__init__(*args, image_shape=generator.output_shape[1:], **options)
        self.state = {"generator": generator, "generator_optimizer": optimizer}
        optimizer.build(generator.trainable_variables)
        self._sample = Sampler(generator, self._batch_size)

    @property
    def width(self) -> int:
        """Z."""
        return self.generator.input_shape[-1]

    def start(
        self, noise: KerasTensor, seed: KerasTensor
    ) -> tuple[list[KerasTensor], list[float]]:
        """Latents `(B, Z)`; the generator's weights, or fresh ones; the rates."""
        weights = list(map(tf.convert_to_tensor, self.generator.trainable_variables))
        if self._first:  # mixed within a layer they are another draw of the same kind
            weights = [
                tf.reshape(
                    tf.random.experimental.stateless_shuffle(
                        tf.reshape(first, [-1]), seed + [1, place]
                    ),
                    first.shape,
                )
                for place, first in enumerate(self._first)
            ]
        rate = self.optimizer.learning_rate
        latent_rate = rate if self._first else _LATENT_RATE
        return [noise, *weights], [latent_rate] + [rate] * len(weights)

    def draw(self, values: Sequence[KerasTensor]) -> KerasTensor:
        """What the copy makes of the latents, `(B, *image_shape)`."""
        latents, *weights = values
        still = list(map(tf.convert_to_tensor, self.generator.non_trainable_variables))
        return self.generator.stateless_call(weights, still, latents, training=True)[0]

    def finish(self, values: Sequence[KerasTensor]) -> None:
        """Moves the generator: the way back from the ends is its gradient.

        That is Reptile (Nichol et al., 2018). Of a generator that starts afresh each
        time the end is kept, to be looked at.

        Args:
            values: fitted latents, which are not read, and weights.
        """
        weights = self.generator.trainable_variables
        if self._first:
            for weight, end in zip(weights, values[1:], strict=True):
                weight.assign(end)
            return
        ways = [weight - end for weight, end in zip(weights, values[1:], strict=True)]
        self.optimizer.apply(ways, weights)

    def observe(self) -> Iterator[np.ndarray]:
        """Images of held-out noise, from which the fitting would start.

        Batches as of `ImageSource.observe`.
        """
        seeds = [self._seed, HELD_OUT_SEED]
        return self._sample.batches(watching_noise(OBSERVED, self.width, seeds))
