"""Distances between what the student says and what the teachers say, and priors.

Pure functions of tensors: no network, no weight, no flag. Each returns one float32
scalar averaged over the batch (float64 where the networks are); `methods.py` decides
what it weighs. Where replicas train together, statistics of a batch are those of all
replicas' batches joined, which are equally large.
"""

from collections.abc import Sequence

import keras
import numpy as np
import tensorflow as tf
from keras import KerasTensor, ops

from cdfkd_tf.runtime import fused_batchnorm as kernels

# Norms have no gradient at zero; under the root this keeps it finite.
_TINY = 1e-12
MEAN = tf.distribute.ReduceOp.MEAN


def l1(student_logits: KerasTensor, teacher_logits: KerasTensor) -> KerasTensor:
    """Mean absolute difference, in logit units. Symmetric.

    Args:
        student_logits: `(..., C)`, unnormalised.
        teacher_logits: of the same shape.

    Raises:
        ValueError: if the shapes differ.
    """
    _check_same_shape(student_logits, teacher_logits)
    gap = _exact(student_logits) - _exact(teacher_logits)
    return ops.mean(ops.abs(gap))


def kl(
    student_logits: KerasTensor, teacher_logits: KerasTensor, temperature: float = 1.0
) -> KerasTensor:
    """KL(teacher || student) of the softmaxes, in nats, averaged over all rows.

    Args:
        student_logits: `(..., C)`, unnormalised.
        teacher_logits: of the same shape.
        temperature: divides both logits; the result is multiplied by its square, so
            that gradients keep their size (Hinton et al., 2015).

    Raises:
        ValueError: if the shapes differ.
    """
    _check_same_shape(student_logits, teacher_logits)
    student = ops.log_softmax(_exact(student_logits) / temperature)
    teacher = ops.log_softmax(_exact(teacher_logits) / temperature)
    rows = ops.sum(ops.exp(teacher) * (teacher - student), axis=-1)
    return temperature**2 * ops.mean(rows)


def feature_gap(
    student_features: KerasTensor | list[KerasTensor],
    teacher_features: list[KerasTensor],
) -> KerasTensor:
    """L1 distance of pooled features, summed over width, averaged over headers.

    Args:
        student_features: `(B, H, W)`, or H tensors `(B, W_i)` of teachers' widths.
        teacher_features: H tensors `(B, W)`, one per header's teacher.

    Raises:
        ValueError: if a teacher's width is not W, or there are not H teachers.
    """
    if isinstance(student_features, list):
        gaps = [
            ops.mean(ops.sum(ops.abs(_exact(ours) - _exact(theirs)), axis=-1))
            for ours, theirs in zip(student_features, teacher_features, strict=True)
        ]
        return sum(gaps) / len(gaps)
    widths = [features.shape[-1] for features in teacher_features]
    headers, width = student_features.shape[1:]
    if widths != [width] * headers:
        raise ValueError(
            f"The feature term needs {headers} teachers with the student's feature "
            f"width {width}; the teachers have widths {widths}. Use "
            "--student_feature_weight=0, or a student of the teachers' width."
        )
    teacher = _exact(ops.stack(teacher_features, axis=1))
    gap = ops.abs(_exact(student_features) - teacher)
    return ops.mean(ops.sum(gap, axis=-1))


def bn_gap(
    norms: Sequence[tuple[KerasTensor, KerasTensor, KerasTensor]],
    weights: Sequence[float],
) -> KerasTensor:
    """How far a batch is from what BatchNormalizations saw in training.

    For each the Euclidean distance of the batch's biased variances from the stored
    ones, plus that of the means (Yin et al., DeepInversion, CVPR 2020, eq. 4,
    unsquared); the weighted sum of all.

    Args:
        norms: for each its input `(B, ..., channels)`, channels last, and its
            `moving_mean` and `moving_variance`, `(channels,)`.
        weights: one for each.
    """
    inputs, *stored = zip(*norms)
    widths = [tensor.shape[-1] for tensor in inputs]
    owners = np.repeat(np.arange(len(widths)), widths)
    total = 0.0
    # All layers' channels in one vector: a deep teacher has dozens of layers.
    for batch, values in zip(_moments(inputs), stored):
        values = ops.concatenate([_exact(value) for value in values])
        gaps = ops.square(batch - values)
        squares = ops.segment_sum(gaps, owners, num_segments=len(widths))
        norm = ops.sqrt(squares + _TINY)
        total = total + ops.sum(norm * ops.convert_to_tensor(weights, norm.dtype))
    return total


def _moments(tensors: Sequence[KerasTensor]) -> tuple[KerasTensor, KerasTensor]:
    """Means and biased variances over the batch, all replicas' if any, joined."""
    dtypes = {keras.backend.standardize_dtype(tensor.dtype) for tensor in tensors}
    if dtypes <= set(kernels.FUSED):
        means, variances = kernels.batch_moments(tensors)
    else:
        found = [
            ops.moments(_exact(tensor), list(range(len(tensor.shape) - 1)))
            for tensor in tensors
        ]
        means, variances = map(ops.concatenate, zip(*found))
    replicas = _replicas()
    if replicas:  # two messages for all layers together; each costs its delay
        own, means = means, replicas.all_reduce(MEAN, means)
        apart = ops.square(own - means)
        variances = replicas.all_reduce(MEAN, variances + apart)
    return means, variances


def confidence(logits: KerasTensor) -> KerasTensor:
    """Mean entropy of the predictions, in nats: small where they are sure.

    Args:
        logits: `(..., C)`, unnormalised.
    """
    log_probabilities = ops.log_softmax(_exact(logits))
    return ops.mean(_entropy(log_probabilities))


def balance(logits: KerasTensor) -> KerasTensor:
    """Negative entropy of the batch's mean prediction, in nats.

    Smallest, `-log C`, where every class is predicted equally often (Choi et al.,
    DFQ, CVPR Workshops 2020).

    Args:
        logits: `(B, ..., C)`, unnormalised; the mean runs over the batch.
    """
    log_probabilities = ops.log_softmax(_exact(logits))
    batch = ops.cast(ops.shape(logits)[0], log_probabilities.dtype)
    # log of the mean of exponentials: finite where a plain log would underflow.
    mean = ops.logsumexp(log_probabilities, axis=0) - ops.log(batch)
    replicas = _replicas()
    if replicas:
        # Around a common centre the exponentials stay finite, too.
        centre = replicas.all_reduce(MEAN, ops.stop_gradient(mean))
        shifted = ops.exp(mean - centre)
        mean = ops.log(replicas.all_reduce(MEAN, shifted)) + centre
    return -ops.mean(_entropy(mean))


def _replicas() -> tf.distribute.ReplicaContext | None:
    """Who trains together with this replica; None if it is alone."""
    context = tf.distribute.get_replica_context()
    together = context and context.num_replicas_in_sync > 1
    return context if together else None


def _entropy(log_probabilities: KerasTensor) -> KerasTensor:
    probabilities = ops.exp(log_probabilities)
    return -ops.sum(probabilities * log_probabilities, axis=-1)


def _exact(tensor: KerasTensor) -> KerasTensor:
    """In the precision of losses: the networks may compute in half of it."""
    return ops.cast(tensor, keras.config.floatx())


def _check_same_shape(student_logits: KerasTensor, teacher_logits: KerasTensor) -> None:
    if tuple(student_logits.shape) != tuple(teacher_logits.shape):
        raise ValueError(
            "Student and teachers must give logits of one shape. Received "
            f"student_logits.shape={tuple(student_logits.shape)}, "
            f"teacher_logits.shape={tuple(teacher_logits.shape)}. Check that there "
            "is one header per teacher and that all know the same classes."
        )
