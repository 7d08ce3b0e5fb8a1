"""Generated images kept with the teachers' answers, to be learned from many times.

The generator makes one batch per iteration; the teachers answer it once. The newest
images stand in a ring of fixed size, from which the student's steps draw.
"""

import itertools
from collections.abc import Iterator
from typing import Any

import keras
import numpy as np
import tensorflow as tf
from keras import KerasTensor, ops

from cdfkd_tf.distillation.bank import BankedImages, drawing_weights
from cdfkd_tf.distillation.fitting import FittedImages
from cdfkd_tf.distillation.image_source import Batch, GeneratedImages, ImageSource
from cdfkd_tf.teachers.ensemble import TeacherEnsemble, TeacherOutputs

_APART = 2**32  # on the seed: the draws' numbers are not those of the noise


class Ring(keras.layers.Layer):
    """The newest images and answers; the oldest give way.

    Args:
        size: N.
        image_shape: `(height, width, channels)`.
        answers: shapes of what is kept of one image, the logits' `(T, C)` first.

    Attributes:
        written: how many images it was ever given.
        classes: `(N,)`, of the teachers' mean, or that the images were asked for; -1:
            nothing there yet.
        images: `(N, *image_shape)`, normalised; half precision is finer than bytes.
    """

    def __init__(
        self, size: int, image_shape: tuple[int, ...], answers: list[tuple[int, ...]]
    ):
        super().__init__(name="ring", dtype=keras.config.floatx())
        # Whoever writes gives all replicas the same: nothing is left to aggregate.
        options = {"trainable": False, "aggregation": "only_first_replica"}

        def add(name, shape, dtype, initializer="zeros"):
            return self.add_weight(shape, initializer, dtype, name=name, **options)

        empty = keras.initializers.Constant(-1)
        self.written = add("written", (), "int64")
        self.classes = add("classes", (size,), "int32", empty)
        self.images = add("images", (size, *image_shape), "float16")
        self._names = [f"answers_{index}" for index in range(len(answers))]
        for name, shape in zip(self._names, answers):  # a checkpoint sees into no list
            setattr(self, name, add(name, (size, *shape), self.dtype))
        self.built = True

    @property
    def answers(self) -> list[keras.Variable]:
        """What is kept of the teachers, `(N, ...)` each, the logits first."""
        return [getattr(self, name) for name in self._names]

    def write(
        self, images: KerasTensor, answers: list[KerasTensor], classes: KerasTensor
    ) -> None:
        """Puts a batch in the place of the oldest; N is a multiple of B.

        Args:
            images: `(B, *image_shape)`, normalised.
            answers: `(B, ...)` each, as the constructor's, the logits first.
            classes: `(B,)`, of the teachers together.
        """
        size, batch = self.classes.shape[0], tf.shape(images)[0]
        written = tf.convert_to_tensor(self.written)
        place = tf.cast(written % size, "int32")
        kept = (self.images, self.classes, *self.answers)
        for variable, values in zip(kept, (images, classes, *answers), strict=True):
            # Of this replica's copy; `assign` would send the whole ring around.
            local = variable.value[place : place + batch]
            local.assign(tf.cast(values, variable.dtype))
        self.written.value[...].assign(written + tf.cast(batch, written.dtype))


class ReplayedImages(ImageSource):
    """Batches drawn from a ring of generated images, alone or mixed with a fixed bank.

    Each replica generates its share of a batch and asks the teachers for it; then all
    keep the whole, so that a batch is drawn as on one device.

    Args:
        generated: where new images come from, one batch per iteration.
        teachers: frozen.
        size: N, rounded to whole batches.
        student_steps: K, batches drawn per iteration.
        batch_size: B over all replicas.
        seed: of the draws.
        features: whether the student reads the teachers' features.
        fixed: images to mix in: each comes from there as often as its bank is larger
            than what the ring holds; None: none.
    """

    def __init__(
        self,
        generated: GeneratedImages | FittedImages,
        teachers: TeacherEnsemble,
        *,
        size: int,
        student_steps: int,
        batch_size: int,
        seed: int,
        features: bool = False,
        fixed: BankedImages | None = None,
    ):
        super().__init__()
        self.generated, self.fixed, self.student_steps = generated, fixed, student_steps
        self._teachers, self._features = teachers, features
        self._batch_size, self._seed = batch_size, seed
        widths = [teacher.feature_width for teacher in teachers.teachers]
        num_classes = teachers.class_map.num_classes
        self.ring = Ring(
            max(1, size // batch_size) * batch_size,
            generated.image_shape,
            [
                (len(teachers), num_classes),
                *((width,) for width in widths if features and width),
            ],
        )
        self._boosting = getattr(generated, "boosting", None)
        self.state = {**generated.state, "ring": self.ring}
        if self._boosting:
            self.state["teacher_weights"] = self._boosting.weights
        self.trackers, self.needs = generated.trackers, generated.needs

    def dataset(self, first_step: int) -> tf.data.Dataset:
        """Endless `(noise, places)`, and elements of `fixed`.

        Noise as of `generated`; places in [0, 1), `(B, K, 2)`.
        """
        shape = [self._batch_size, self.student_steps, 2]

        def draw(step):
            seed = tf.stack([tf.constant(self._seed + _APART, tf.int64), step])
            return tf.random.stateless_uniform(shape, seed, dtype="float64")

        parts = [
            self.generated.dataset(first_step),
            tf.data.Dataset.counter(first_step).map(draw),
        ]
        if self.fixed:
            parts.append(self.fixed.dataset(first_step))
        return tf.data.Dataset.zip(tuple(parts))

    def next_batches(self, element: Any) -> Batch:
        """One new batch goes into the ring; then K are drawn.

        Args:
            element: this replica's part of one of `dataset`.

        Returns:
            Images `(K, B, height, width, channels)` in half precision, logits
            `(K, B, T, C)` and features `(K, B, W_i)`, if kept.
        """
        noise, places, *others = element
        earlier = [self._earlier(places)] if "views" in self.needs else []
        images = self.generated.next_batches(noise, *earlier).images[0]
        labels = None
        if self._boosting:
            labels = self.generated.labels(noise)
            images = self._boosting.moved_away(images, self.generated.seed_of(noise))
        self._keep(images, labels)
        if self._boosting:
            batches = self.ring.written.value // self._batch_size
            logits = tf.convert_to_tensor(self.ring.answers[0])
            self._boosting.reweigh(logits, self.ring.classes.value, batches)
        kept = self._drawn(places[..., 0])
        if self.fixed:
            images, *answers = others[0]
            others = [self.fixed.normalise(images), *answers]
            filled = tf.minimum(self.ring.written.value, self.ring.classes.shape[0])
            filled = tf.cast(filled, places.dtype)
            ours = places[..., 1] < filled / (filled + len(self.fixed.bank))
            kept = [
                tf.where(
                    tf.reshape(ours, [*ours.shape, *[1] * (len(a.shape) - 2)]),
                    a,
                    tf.cast(b, a.dtype),
                )
                for a, b in zip(kept, others, strict=True)
            ]
        images, logits, *features = (ops.swapaxes(each, 0, 1) for each in kept)
        if self._boosting:
            logits = self._boosting.weighted(logits)
        return Batch(images, TeacherOutputs(logits, features, [], []))

    def _earlier(self, places: KerasTensor) -> TeacherOutputs:
        """Answers to B of the kept images; zeros while there is none."""
        filled = tf.minimum(self.ring.written.value, self.ring.classes.shape[0])
        chosen = tf.cast(places[:, 0, 1] * tf.cast(filled, places.dtype), "int32")
        kept = map(tf.convert_to_tensor, self.ring.answers)
        logits, *features = (tf.gather(each, chosen) for each in kept)
        return TeacherOutputs(logits, features, [], [])

    def _keep(self, images: KerasTensor, labels: KerasTensor | None = None) -> None:
        # The teachers see what the student will see.
        images = ops.cast(images, "float16")
        outputs = self._teachers(self.normalise(images))
        known = [each for each in outputs.features if each is not None]
        values = [images, outputs.logits, *(known if self._features else ())]
        context = tf.distribute.get_replica_context()
        if context.num_replicas_in_sync > 1:
            values = [context.all_gather(each, axis=0) for each in values]
        images, logits, *features = values
        if labels is None:
            labels = ops.argmax(self._teachers.combined(logits), axis=-1)
        self.ring.write(images, [logits, *features], labels)

    def _drawn(self, places: KerasTensor) -> list[KerasTensor]:
        """Images and answers for places in [0, 1), evenly over the classes."""
        num_classes = self.ring.answers[0].shape[-1]
        weights = drawing_weights(self.ring.classes.value, num_classes)
        bounds = tf.cumsum(weights)
        where = tf.reshape(places, [-1]) * bounds[-1]
        chosen = tf.searchsorted(bounds, where, side="right")
        chosen = tf.reshape(chosen, tf.shape(places))
        kept = (self.ring.images, *self.ring.answers)
        return [tf.gather(tf.convert_to_tensor(each), chosen) for each in kept]

    def normalise(self, images: KerasTensor) -> KerasTensor:
        """Images `(B, ...)`, normalised in half precision, in that of the losses."""
        return ops.cast(images, keras.config.floatx())

    def update(self, element: Any, student: keras.Model) -> None:
        """The generator's own step, see `GeneratedImages.update`."""
        self.generated.update(element[0], student)

    def observe(self) -> Iterator[np.ndarray]:
        """Images of held-out noise; and of the mixed-in kinds, held out, too.

        Of a source that has none to show: what it made last. Batches as of
        `ImageSource.observe`.
        """
        fixed = self.fixed.observe() if self.fixed else ()
        seen = itertools.chain(self.generated.observe(), fixed)
        first = next(seen, None)
        if first is None:
            last = int(self.ring.written.value) % self.ring.classes.shape[0]
            first = np.array(self.ring.images)[last - self._batch_size :]
            first = first[: self._batch_size].astype("float32")
        return itertools.chain([first], seen)
