"""What moves beside generator and student in Co-Boosting (Dai et al., ICLR 2024)."""

import keras
import tensorflow as tf
from keras import KerasTensor, ops

from cdfkd_tf.teachers.ensemble import TeacherEnsemble

_RATE, _DECAY = 0.01, 0.99  # of the weights, and its factor per batch of images
_SOFTNESS = 4.0  # of the softmax that images are moved away from


class TeacherWeights(keras.layers.Layer):
    """One weight in [0, 1] per teacher, by which their logits are added up.

    Args:
        count: T.

    Attributes:
        values: `(T,)`, at first 1 / T each.
    """

    def __init__(self, count: int):
        super().__init__(name="teacher_weights", dtype=keras.config.floatx())
        start = keras.initializers.Constant(1 / count)
        self.values = self.add_weight((count,), start, trainable=False, name="values")
        self.built = True


class Boosting:
    """Weights of the teachers, and images moved away from what they answer.

    Args:
        teachers: frozen.
        step: 8 / 255 in normalised values, per channel.

    Attributes:
        weights: of the teachers.
    """

    def __init__(self, teachers: TeacherEnsemble, step: KerasTensor):
        self._teachers, self._step = teachers, step
        self.weights = TeacherWeights(len(teachers))

    def weighted(self, logits: KerasTensor) -> KerasTensor:
        """Logits `(..., T, C)` whose mean over the teachers is their weighted sum."""
        weights = tf.convert_to_tensor(self.weights.values)
        return logits * (weights * weights.shape[0])[:, None]

    def reweigh(
        self, logits: KerasTensor, labels: KerasTensor, batches: KerasTensor
    ) -> None:
        """Moves the weights one step along the sign of a cross-entropy's gradient.

        Args:
            logits: of all kept images, `(N, T, C)`.
            labels: `(N,)`, the classes they were asked for; -1: nothing there yet.
            batches: how many batches were kept so far.
        """
        joined = self._teachers.combined(self.weighted(logits))
        slopes = ops.softmax(joined) - ops.one_hot(labels, joined.shape[-1])
        slopes = slopes * ops.cast(labels >= 0, slopes.dtype)[:, None]
        gradient = ops.einsum("nc,ntc->t", slopes, logits)
        rate = _RATE * _DECAY ** ops.cast(batches, gradient.dtype)
        values = tf.convert_to_tensor(self.weights.values) - rate * ops.sign(gradient)
        self.weights.values.assign(ops.clip(values, 0.0, 1.0))

    def moved_away(self, images: KerasTensor, seed: KerasTensor) -> KerasTensor:
        """Images one step along the sign of the gradient of `r . softmax(z / 4)`.

        Args:
            images: `(B, height, width, channels)`, normalised.
            seed: `(2,)`, of r, uniform in (-1, 1) for each image and class.
        """
        with tf.GradientTape() as tape:
            tape.watch(images)
            joined = self._teachers.combined(
                self.weighted(self._teachers(images).logits)
            )
            shares = tf.nn.softmax(joined / _SOFTNESS)
            drawn = tf.random.stateless_uniform(
                tf.shape(shares), seed, -1, 1, dtype=shares.dtype
            )
            value = tf.reduce_sum(drawn * shares)
        return images + self._step * tf.sign(tape.gradient(value, images))
