"""Optimisers with the arithmetic of the published runs, and their schedules."""

import math

import keras
from keras import ops


class CoupledSGD(keras.optimizers.SGD):
    """SGD whose weight decay joins the gradient before momentum, as PyTorch's does.

    `g += l2 * w; v = momentum * v + g; w -= lr * v`. Keras's `weight_decay` is
    decoupled, and its buffer holds the learning rate, so that a drop acts late.

    Args:
        learning_rate: a number; schedules set it from outside.
        momentum: above 0.
        l2: decay on every trainable variable, BatchNormalization and biases included.
        nesterov: step along `g + momentum * v`.
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
        # Keras calls this with gradients that are already summed over replicas.
        dtype = variable.dtype
        learning_rate = ops.cast(learning_rate, dtype)
        gradient = ops.cast(gradient, dtype) + self.l2 * variable
        buffer = self.momentums[self._get_variable_index(variable)]
        velocity = buffer * self.momentum + gradient
        self.assign(buffer, velocity)
        step = gradient + self.momentum * velocity if self.nesterov else velocity
        self.assign_sub(variable, learning_rate * step)

    def get_config(self):
        return {**super().get_config(), "l2": self.l2}


def learning_rate_factor(
    epoch: int, *, schedule: str, epochs: int, milestones: tuple[int, ...]
) -> float:
    """What both learning rates are multiplied by in `epoch` (counted from 0).

    Args:
        epoch: the epoch about to start.
        schedule: `steps`: a tenth at each milestone; `cosine`: half a cosine to 0.
        epochs: length of the run.
        milestones: epochs at which `steps` drops.
    """
    if schedule == "cosine":
        return 0.5 * (1 + math.cos(math.pi * epoch / epochs))
    return 0.1 ** sum(epoch >= milestone for milestone in milestones)


class LearningRates(keras.callbacks.Callback):
    """Sets the learning rates at the start of each epoch, from the epoch alone.

    Args:
        optimizers: all that follow the schedule; each starts at its present rate.
        schedule, epochs, milestones: see `learning_rate_factor`.
    """

    def __init__(self, optimizers, *, schedule, epochs, milestones=()):
        super().__init__()
        self.starts = [(item, float(item.learning_rate)) for item in optimizers]
        self.factor = {
            "schedule": schedule, "epochs": epochs, "milestones": milestones
        }

    def on_epoch_begin(self, epoch, logs=None):
        factor = learning_rate_factor(epoch, **self.factor)
        for optimizer, start in self.starts:
            optimizer.learning_rate.assign(start * factor)
