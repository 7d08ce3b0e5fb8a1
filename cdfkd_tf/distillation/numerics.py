"""Finite checks, gradient clipping, loss scaling.

The checks are operations of the step's graph and end it with an error that names what
went wrong. XLA leaves such operations out without a word: what it compiles must be
checked outside, by `check_finite` on what it moved.
"""

import re
from collections.abc import Callable, Sequence

import keras
import numpy as np
import tensorflow as tf
from keras import KerasTensor

NOT_FINITE = "not finite: "  # before a name, in the error of the very step
_LEAST_SCALE = 2.0**-20  # a gradient that overflows even so is not finite


def check_finite(parts: dict[str, keras.Model | keras.optimizers.Optimizer]) -> None:
    """Ends the step with an error where a network or a gradient is not finite.

    Reads every weight once, moving statistics included.

    Args:
        parts: networks and optimisers by name, as `Distiller.state`.
    """
    for name, part in parts.items():
        if isinstance(part, keras.Model):
            norm = tf.linalg.global_norm(
                [weight.value for weight in part.weights if is_float(weight)]
            )
            _require(tf.math.is_finite(norm), f"{name}_weights")
        elif is_scaled(part):
            scale = tf.convert_to_tensor(part.dynamic_scale)
            role = name.removesuffix("_optimizer")
            _require(scale >= _LEAST_SCALE, f"{role}_gradient")


def is_float(variable: keras.Variable) -> bool:
    """Whether a variable of any shape may be trained: counters are whole numbers."""
    return keras.backend.is_float_dtype(variable.dtype)


def is_scaled(optimizer: keras.optimizers.Optimizer) -> bool:
    """Whether the optimiser scales the loss and skips gradients that overflow."""
    return isinstance(optimizer, keras.optimizers.LossScaleOptimizer)


class SkippedUpdates(keras.callbacks.Callback):
    """Logs `<role>_skipped`: updates left out so far because gradients overflowed.

    Args:
        parts: as `Distiller.state`; optimisers that scale no loss are passed over.
        updates: optimiser's name -> its updates in one epoch, skipped ones included.
    """

    def __init__(self, parts: dict, updates: dict[str, int]):
        super().__init__()
        self.counted = {
            name: (part, updates[name])
            for name, part in parts.items()
            if is_scaled(part)
        }

    def on_epoch_end(self, epoch, logs=None):
        for name, (optimizer, updates) in self.counted.items():
            done = int(keras.ops.convert_to_numpy(optimizer.iterations))
            role = name.removesuffix("_optimizer")
            logs[f"{role}_skipped"] = (epoch + 1) * updates - done


def minimise(
    loss: Callable[[], KerasTensor],
    optimizer: keras.optimizers.Optimizer,
    variables: Sequence[keras.Variable],
    *,
    clip: float = 0.0,
) -> None:
    """Moves `variables` by one gradient step, see `apply_gradients`.

    Args:
        loss: computes a scalar, averaged over this replica's batch.
        optimizer: of these variables.
        variables: what moves.
        clip: largest global norm of the gradient; 0: any.
    """
    with tf.GradientTape() as tape:
        # Inside the tape: replicas sum gradients, low precision scales them.
        replicas = tf.distribute.get_strategy().num_replicas_in_sync
        value = optimizer.scale_loss(loss() / replicas)
    apply_gradients(optimizer, tape.gradient(value, variables), variables, clip=clip)


def apply_gradients(
    optimizer: keras.optimizers.Optimizer,
    gradients: Sequence[KerasTensor | None],
    variables: Sequence[keras.Variable],
    *,
    clip: float = 0.0,
) -> None:
    """Moves `variables`; replicas clip, and skip, by the gradient of the whole batch.

    Keras's own clipping and its test for overflow look at one replica's gradient,
    before replicas meet.

    Args:
        optimizer: of these variables.
        gradients: one per variable and shaped like it, of the scaled loss, to be
            summed over replicas; None: the loss does not depend on it.
        variables: what moves.
        clip: largest global norm of the unscaled gradient; 0: any.
    """
    scaled = is_scaled(optimizer)
    if clip or scaled:
        gradients = _joined(gradients)
    if clip:
        replicas = tf.distribute.get_strategy().num_replicas_in_sync
        limit = clip / replicas  # as `_joined` leaves them
        if scaled:
            limit = limit * tf.convert_to_tensor(optimizer.dynamic_scale)
        # A norm that is no number makes all of them NaN: they are skipped, or seen.
        gradients, _ = tf.clip_by_global_norm(gradients, limit)
    optimizer.apply(gradients, variables)


def _joined(gradients: Sequence[KerasTensor | None]) -> list[KerasTensor | None]:
    """The same mean for every replica: summed again on applying, it is the sum."""
    context = tf.distribute.get_replica_context()
    if context.num_replicas_in_sync == 1:
        return list(gradients)
    known = [gradient for gradient in gradients if gradient is not None]
    means = iter(context.all_reduce(tf.distribute.ReduceOp.MEAN, known))
    return [None if gradient is None else next(means) for gradient in gradients]


def _require(condition: tf.Tensor, name: str) -> None:
    tf.debugging.Assert(condition, [f"{NOT_FINITE}{name}"])


def what_failed(error: tf.errors.InvalidArgumentError, parts: dict) -> str | None:
    """What a check of this file found, for people; None: the error is another's.

    Args:
        error: that ended the step.
        parts: as in `check_finite`.
    """
    found = re.search(rf"{NOT_FINITE}(\w+)", str(error))
    if not found:
        return None
    name = found[1]
    if name.endswith("_gradient"):
        return f"{name} overflows however small the loss scale is"
    if name.endswith("_weights"):
        where, value = _first_not_finite(parts[name.removesuffix("_weights")])
        return f"{name} became {value} (first in {where})"
    value = re.search(r"had (NaN|-?Inf)", str(error))
    return f"{name} became {value[1] if value else 'no number'}"


def _first_not_finite(network: keras.Model) -> tuple[str, str]:
    for weight in network.weights:
        values = keras.ops.convert_to_numpy(weight)
        if not np.isfinite(values).all():
            return weight.path, "NaN" if np.isnan(values).any() else "Inf"
    return "their norm", "Inf"  # squares overflow before numbers do
