"""Optimisers with the arithmetic of the published runs, and their schedules."""

import math
from collections.abc import Mapping

import keras
import tensorflow as tf
from keras import ops

from cdfkd_tf.runtime import keras_internals


class CoupledSGD(keras.optimizers.SGD):
    """SGD whose weight decay joins the gradient before momentum, as PyTorch's does.

    `g += l2 * w; v = momentum * v + g; w -= lr * v`. Keras's `weight_decay` is
    decoupled, and its buffer holds the learning rate, so that a drop acts late.

    Args:
        learning_rate: a number; schedules set it from outside.
        momentum: above 0.
        l2: decay on every trainable variable, BatchNormalization and biases included.
        nesterov: step along `g + momentum * v`.

    Raises:
        ValueError: if momentum is not above 0.
    """

    def __init__(
        self,
        learning_rate: float = 0.1,
        momentum: float = 0.9,
        l2: float = 5e-4,
        nesterov: bool = False,
        **kwargs,
    ):
        if not momentum > 0:
            raise ValueError(f"momentum must be above 0; got {momentum}.")
        super().__init__(
            learning_rate=learning_rate, momentum=momentum, nesterov=nesterov, **kwargs
        )
        self.l2 = l2

    def update_step(self, gradient, variable, learning_rate):
        # Keras calls this with gradients that are already summed over replicas. One
        # operation after the decay, where the formula in words would be twenty.
        dtype = variable.dtype
        buffer = self.momentums[keras_internals.variable_index(self, variable)]
        tf.raw_ops.ResourceApplyMomentum(
            var=_handle(variable),
            accum=_handle(buffer),
            lr=ops.cast(learning_rate, dtype),
            grad=ops.cast(gradient, dtype) + self.l2 * variable,
            momentum=self.momentum,
            use_nesterov=self.nesterov,
            use_locking=True,
        )

    def get_config(self):
        return {**super().get_config(), "l2": self.l2}


class PaperAdam(keras.optimizers.Adam):
    """Adam with epsilon where its paper and PyTorch put it.

    `w -= lr * m_hat / (sqrt(v_hat) + epsilon)` (Kingma and Ba, ICLR 2015, algorithm
    1). Keras adds epsilon before the bias correction, which makes it some thirty
    times larger in the first steps, and corrects in float32, which is off by 1e-5:
    both part from the published trajectory.
    """

    def __init__(self, learning_rate: float = 1e-3, epsilon: float = 1e-8, **kwargs):
        super().__init__(learning_rate=learning_rate, epsilon=epsilon, **kwargs)

    def update_step(self, gradient, variable, learning_rate):
        # The operation's own epsilon is not corrected, and its corrections are in
        # float32: both are made here, so that it needs none. It works in place.
        dtype, steps = variable.dtype, ops.cast(self.iterations + 1, "float64")
        first, second = (
            1 - ops.power(ops.convert_to_tensor(beta, "float64"), steps)
            for beta in (self.beta_1, self.beta_2)
        )
        m, v = keras_internals.adam_slots(self, variable)
        rate = ops.cast(learning_rate, "float64") * ops.sqrt(second) / first
        tf.raw_ops.ResourceApplyAdam(
            var=_handle(variable),
            m=_handle(m),
            v=_handle(v),
            beta1_power=ops.zeros((), dtype),
            beta2_power=ops.zeros((), dtype),
            lr=ops.cast(rate, dtype),
            beta1=ops.convert_to_tensor(self.beta_1, dtype),
            beta2=ops.convert_to_tensor(self.beta_2, dtype),
            epsilon=ops.cast(self.epsilon * ops.sqrt(second), dtype),
            grad=ops.cast(gradient, dtype),
            use_locking=True,
        )


def _handle(variable: keras.Variable | tf.Variable) -> tf.Tensor:
    """What TensorFlow's own operations know a variable, or this replica's part, by."""
    if isinstance(variable, keras.Variable):
        variable = variable.value
    return variable.handle


def learning_rate_factor(
    epoch: int, *, schedule: str, epochs: int, milestones: tuple[int, ...]
) -> float:
    """What a learning rate is multiplied by in `epoch` (counted from 0).

    Args:
        epoch: the epoch about to start.
        schedule: `steps`: a tenth at each milestone; `cosine`: half a cosine to 0;
            `constant`: 1.
        epochs: length of the run.
        milestones: epochs at which `steps` drops.
    """
    if schedule == "cosine":
        return 0.5 * (1 + math.cos(math.pi * epoch / epochs))
    if schedule == "constant":
        return 1.0
    return 0.1 ** sum(epoch >= milestone for milestone in milestones)


class LearningRates(keras.callbacks.Callback):
    """Sets the learning rates at the start of each epoch, from the epoch alone.

    Args:
        optimizers: name -> an optimiser, its rate before any drop, and its schedule,
            see `learning_rate_factor`.
        epochs: length of the run.
        milestones: epochs.
    """

    def __init__(
        self,
        optimizers: Mapping[str, tuple[keras.optimizers.Optimizer, float, str]],
        epochs: int,
        milestones: tuple[int, ...] = (),
    ):
        super().__init__()
        self.optimizers = dict(optimizers)
        self.epochs, self.milestones = epochs, milestones

    def on_epoch_begin(self, epoch, logs=None):
        for optimizer, rate, schedule in self.optimizers.values():
            factor = learning_rate_factor(
                epoch,
                schedule=schedule,
                epochs=self.epochs,
                milestones=self.milestones,
            )
            optimizer.learning_rate.assign(rate * factor)
