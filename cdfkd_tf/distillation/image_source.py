"""Where the images of a distillation come from.

An image source gives the student its batches, keeps what a checkpoint must hold of it,
and may learn itself between the student's steps. `methods.IMAGES` lists them by name.
"""

import abc
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple

import keras
import numpy as np
import tensorflow as tf
from keras import KerasTensor, ops

from cdfkd_tf.data.images import RealImages
from cdfkd_tf.data.noise import latent_dataset, watching_noise
from cdfkd_tf.distillation import numerics
from cdfkd_tf.distillation.losses import Objective, Outputs
from cdfkd_tf.distillation.recompute import recomputed
from cdfkd_tf.networks.generators import asked_classes
from cdfkd_tf.teachers.ensemble import TeacherEnsemble, TeacherOutputs

HELD_OUT_SEED = 4
OBSERVED = 256  # images behind each histogram and each agreement


class Batch(NamedTuple):
    """The batches of one iteration, stacked along a leading axis K.

    Attributes:
        images: `(K, B, height, width, channels)`, as `ImageSource.normalise` takes
            them.
        teachers: the teachers' outputs for them, each with the leading axis K; None:
            they are still to be computed.
    """

    images: KerasTensor
    teachers: TeacherOutputs | None = None


class ImageSource(abc.ABC):
    """What a distiller reads images from.

    Attributes:
        student_steps: K, batches (and student steps) per iteration.
        state: name -> network or optimiser that a checkpoint must hold.
        trackers: name -> metric of what the source itself minimises.
        needs: what its own step reads beside logits and features, see `losses.Term`.
    """

    student_steps = 1
    needs: frozenset[str] = frozenset()

    def __init__(self):
        self.state: dict[str, Any] = {}
        self.trackers: dict[str, keras.metrics.Metric] = {}

    @abc.abstractmethod
    def dataset(self, first_step: int) -> tf.data.Dataset:
        """What `fit` iterates over: one element per iteration, from a step on.

        An element holds whole batches, B first; replicas and hosts each get a part.

        Args:
            first_step: how many iterations are done already.
        """

    @abc.abstractmethod
    def next_batches(self, element: Any) -> Batch:
        """The images of one iteration, made of a replica's part of an element.

        Args:
            element: of `dataset`.
        """

    def normalise(self, images: KerasTensor) -> KerasTensor:
        """Images of one batch as the data set normalises them; most are already.

        Args:
            images: `(B, height, width, channels)`, as `next_batches` gives them.

        Returns:
            The same shape, floats.
        """
        return images

    def update(self, element: Any, student: keras.Model) -> None:  # noqa: B027
        """The source's own step after the student's; nothing where it does not learn.

        Args:
            element: the same as in `next_batches`.
            student: `normalised` to logits and features; it does not move.
        """

    def observe(self) -> Iterator[np.ndarray]:
        """Images of no training step, to look at and to measure agreement on.

        Returns:
            Batches `(b, height, width, channels)` no larger than those of a training
            step, normalised, the same noise at each call; none where there is nothing
            to see.
        """
        return iter(())


def counted_images(
    where: str, student: KerasTensor, teachers: KerasTensor
) -> KerasTensor | None:
    """True for the images that the divergences count; None: all.

    Args:
        where: `all`, or where the classes `agree` or `disagree`.
        student: the headers' mean, `(B, C)`.
        teachers: the teachers' mean, `(B, C)`.
    """
    if where == "all":
        return None
    agree = ops.equal(ops.argmax(student, axis=-1), ops.argmax(teachers, axis=-1))
    return agree if where == "agree" else ops.logical_not(agree)


class DatasetImages(ImageSource):
    """Real images of a data set, shuffled and augmented.

    Args:
        images: the data set.
        batch_size: B over all replicas.
        seed: of order and augmentation.
    """

    def __init__(self, images: RealImages, batch_size: int, seed: int):
        super().__init__()
        self._images, self._batch_size, self._seed = images, batch_size, seed

    def dataset(self, first_step: int) -> tf.data.Dataset:
        """Endless `(images, labels)`: `(B, *image_shape)` normalised and `(B,)`."""
        return self._images.training(self._batch_size, self._seed, first_step)[0]

    def next_batches(self, element: Any) -> Batch:
        """The element's images, `(1, B, *image_shape)`, as an iteration's one batch."""
        return Batch(element[0][None])


class GeneratedImages(ImageSource):
    """Images of a generator that learns to find where student and teachers disagree.

    Args:
        generator: noise `(B, Z)` to normalised images; always in training mode.
        teachers: frozen.
        objective: what the generator minimises.
        optimizer: of the generator.
        student_steps: K, before each generator step.
        batch_size: B over all replicas.
        seed: of all the noise.
        clip_gradients: largest global norm of the generator's gradient; 0: any.
        recompute: the teachers in the generator step's backward pass, see
            recompute.py.
        num_classes: C, of a generator that is asked for classes; 0: it is not.
        mean_decay: of the generator's running mean, which makes every other image for
            the student; 0: none.
        updates_statistics: whether the generator step updates the student's
            BatchNormalization moving statistics, as the published code does. It only
            blurs what inference will use, so the default is not to.
    """

    def __init__(
        self,
        generator: keras.Model,
        teachers: TeacherEnsemble,
        objective: Objective,
        optimizer: keras.optimizers.Optimizer,
        *,
        student_steps: int,
        batch_size: int,
        seed: int,
        clip_gradients: float = 0.0,
        recompute: bool = False,
        num_classes: int = 0,
        mean_decay: float = 0.0,
        updates_statistics: bool = False,
    ):
        super().__init__()
        self.generator, self.objective, self.optimizer = generator, objective, optimizer
        self.image_shape = generator.output_shape[1:]
        self.student_steps = student_steps
        self._teachers, self._recompute = teachers, recompute
        self._batch_size, self._seed = batch_size, seed
        self._clip, self._updates_statistics = clip_gradients, updates_statistics
        self.state = {"generator": generator, "generator_optimizer": optimizer}
        self.trackers, self.needs = objective.trackers, objective.needs
        optimizer.build(generator.trainable_variables)
        self._sample = Sampler(generator, batch_size)
        self._num_classes, self._mean_decay = num_classes, mean_decay
        self._samples = [self._sample]
        if mean_decay:
            self.mean = keras.models.clone_model(generator)
            self.mean.set_weights(generator.get_weights())
            self.state["generator_mean"] = self.mean
            self._samples.append(Sampler(self.mean, batch_size))

    def dataset(self, first_step: int) -> tf.data.Dataset:
        """Endless noise `(B, K + 1, Z)`: the student's K batches, the generator's."""
        return latent_dataset(
            self._batch_size,
            self.student_steps + 1,
            self.generator.input_shape[-1],
            seed=self._seed,
            first_step=first_step,
        )

    def next_batches(self, element: KerasTensor) -> Batch:
        """Images for the student's K steps, without gradient.

        The generator runs batch by batch: its BatchNormalizations use the statistics
        of one batch.

        Args:
            element: noise `(B, K + 1, Z)`; the last of each row is for `update`.

        Returns:
            Normalised images `(K, B, height, width, channels)`.
        """
        # As one function K calls are traced once; replicas cannot meet within one.
        alone = tf.distribute.get_strategy().num_replicas_in_sync == 1
        batches, count = [], len(self._samples)
        for step in range(self.student_steps):
            parts = [
                (sample.traced if alone else sample.generate)(element[n::count, step])
                for n, sample in enumerate(self._samples)
            ]
            rows = ops.stack(parts, axis=1) if count > 1 else parts[0]
            batches.append(ops.reshape(rows, (-1, *rows.shape[-3:])))
        return Batch(ops.stop_gradient(ops.stack(batches)))

    def update(self, element: KerasTensor, student: keras.Model) -> None:
        """Moves the generator alone; student and teachers only pass gradients.

        Args:
            element: noise `(B, K + 1, Z)`, of which the last is read.
            student: normalised images to logits and features.
        """
        statistics = [] if self._updates_statistics else student.non_trainable_variables
        with restoring(statistics):
            numerics.minimise(
                lambda: self._loss(element[:, -1], student),
                self.optimizer,
                self.generator.trainable_variables,
                clip=self._clip,
            )
        if self._mean_decay:
            self._follow()

    def _follow(self) -> None:
        """Moves the running mean towards the generator."""
        weights = self.generator.trainable_variables
        for mean, weight in zip(self.mean.trainable_variables, weights, strict=True):
            gap = tf.convert_to_tensor(weight) - tf.convert_to_tensor(mean)
            # Of this replica's copy; all make the same step.
            mean.value[...].assign(mean + (1 - self._mean_decay) * gap)

    def _loss(self, noise: KerasTensor, student: keras.Model) -> KerasTensor:
        images, needs = self.generator(noise, training=True), self.objective.needs
        if self._recompute:
            teachers, images = recomputed(self._teachers, images, needs)
        else:
            teachers = self._teachers(images, needs)
        if not self.objective.method.teacher_gradient:
            teachers = teachers._replace(logits=ops.stop_gradient(teachers.logits))
        outputs = student(images, training=True)
        logits = outputs["logits"], teachers.logits
        counted = counted_images(
            self.objective.method.adversarial_on,
            *map(self._teachers.combined, logits),
        )
        count, rule = self._num_classes, self._teachers.rule
        labels = asked_classes(noise, count) if count else None
        return self.objective(Outputs(outputs, teachers, rule, counted, labels, images))

    def observe(self) -> Iterator[np.ndarray]:
        """Images of held-out noise, see `ImageSource.observe`; nothing moves."""
        width, seeds = self.generator.input_shape[-1], [self._seed, HELD_OUT_SEED]
        return self._sample.batches(watching_noise(OBSERVED, width, seeds))


@contextmanager
def restoring(variables: Sequence[keras.Variable]) -> Iterator[None]:
    """Gives variables of any shape back their values, when the block ends well."""
    before = [tf.identity(variable.value) for variable in variables]
    yield
    for variable, value in zip(variables, before):
        variable.assign(value)


class Sampler:
    """Generates any number of images without moving anything.

    Args:
        generator: noise to normalised images, in training mode as while it learned.
        batch_size: images at once, whose statistics normalise.

    Call arguments:
        noise: `(n, Z)`. Returns normalised images `(n, height, width, channels)`.
    """

    def __init__(self, generator: keras.Model, batch_size: int):
        self._generator, self._batch_size = generator, batch_size
        self.traced = tf.function(self.generate, reduce_retracing=True)

    def generate(self, noise: KerasTensor) -> KerasTensor:
        """Images `(n, height, width, channels)` of `(n, Z)`; moving statistics move."""
        return self._generator(noise, training=True)

    def __call__(self, noise: np.ndarray) -> np.ndarray:
        return np.concatenate(list(self.batches(noise)))

    def batches(self, noise: np.ndarray) -> Iterator[np.ndarray]:
        """What a call gives, `batch_size` images at a time; nothing moves."""
        for start in range(0, len(noise), self._batch_size):
            with restoring(self._generator.non_trainable_variables):
                images = self.traced(noise[start:][: self._batch_size])
            yield images.numpy()
