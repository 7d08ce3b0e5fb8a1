"""Loss terms: distances between student and teachers, and priors on images.

Each term is a row of `TERMS`: a pure function of `Outputs`, and what it needs. The
functions return one float32 scalar averaged over the batch (float64 where the networks
are). Where replicas train together, statistics of a batch are those of all replicas'
batches joined, which are equally large.
"""

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import keras
import numpy as np
import tensorflow as tf
from keras import KerasTensor, ops

from cdfkd_tf.distillation import numerics
from cdfkd_tf.distillation.methods import Method
from cdfkd_tf.runtime import fused_batchnorm
from cdfkd_tf.teachers.class_map import mean_over_known

FIRST_BN_WEIGHT = 5.0  # the first BatchNormalization of each teacher; the rest weigh 1
# Norms have no gradient at zero; under the root this keeps it finite.
_TINY = 1e-12
_ABSENT = -1e9  # logit of a class that a teacher does not know, within a softmax
MEAN = tf.distribute.ReduceOp.MEAN


@dataclasses.dataclass(frozen=True)
class Outputs:
    """What student and teachers return for one batch: all that a term may read.

    Attributes:
        student_logits: `(B, H, C)`.
        student_features: `(B, H, W)`, or H tensors mapped to teachers' widths.
        teacher_logits: `(B, T, C)`.
        teacher_features: T tensors `(B, W_i)`.
        teacher_bn: for each teacher, its BatchNormalizations in forward order, each
            as `(input, moving_mean, moving_variance)`; or, where it was computed
            already, their `statistics_gap`. Empty where not asked for.
        student_maps: the trunk's maps `(B, h, w, c)`, finest first, if a term reads
            them.
        teacher_maps: the same for each teacher.
        mask: `(T, C)`, whether a teacher knows a class; None: all know all.
    """

    student_logits: KerasTensor
    student_features: Any
    teacher_logits: KerasTensor
    teacher_features: Sequence[KerasTensor | None] = ()
    teacher_bn: Sequence[Any] = ()
    student_maps: Sequence[KerasTensor] = ()
    teacher_maps: Sequence[Sequence[KerasTensor]] = ()
    mask: np.ndarray | None = None


def l1(
    student_logits: KerasTensor,
    teacher_logits: KerasTensor,
    temperature: float = 1.0,
    mask: np.ndarray | None = None,
) -> KerasTensor:
    """Mean absolute difference, in logit units. Symmetric.

    Args:
        student_logits: `(..., C)`, unnormalised.
        teacher_logits: of the same shape.
        temperature: without effect here.
        mask: broadcastable to the logits; False: left out of the mean.

    Raises:
        ValueError: if the shapes differ.
    """
    _check_same_shape(student_logits, teacher_logits)
    gap = ops.abs(_exact(student_logits) - _exact(teacher_logits))
    if mask is None:
        return ops.mean(gap)
    return ops.sum(gap * mask) / ops.sum(ops.ones_like(gap) * mask)


def kl(
    student_logits: KerasTensor,
    teacher_logits: KerasTensor,
    temperature: float = 1.0,
    mask: np.ndarray | None = None,
) -> KerasTensor:
    """KL(teacher || student) of the softmaxes, in nats, averaged over all rows.

    Args:
        student_logits: `(..., C)`, unnormalised.
        teacher_logits: of the same shape.
        temperature: divides both logits; the result is multiplied by its square, so
            that gradients keep their size (Hinton et al., 2015).
        mask: broadcastable to the logits; False: left out of both softmaxes.

    Raises:
        ValueError: if the shapes differ.
    """
    _check_same_shape(student_logits, teacher_logits)
    student, teacher = _exact(student_logits), _exact(teacher_logits)
    if mask is not None:
        student = ops.where(mask, student, _ABSENT)
        teacher = ops.where(mask, teacher, _ABSENT)
    student = ops.log_softmax(student / temperature)
    teacher = ops.log_softmax(teacher / temperature)
    rows = ops.sum(ops.exp(teacher) * (teacher - student), axis=-1)
    return temperature**2 * ops.mean(rows)


DIVERGENCES = {"l1": l1, "kl": kl}


def feature_gap(
    student_features: KerasTensor | list[KerasTensor],
    teacher_features: Sequence[KerasTensor],
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
            ops.mean(ops.sum(ops.abs(_exact(student) - _exact(teacher)), axis=-1))
            for student, teacher in zip(student_features, teacher_features, strict=True)
        ]
        return sum(gaps) / len(gaps)
    widths = [features.shape[-1] for features in teacher_features]
    headers, width = student_features.shape[1:]
    if widths != [width] * headers:
        raise ValueError(
            f"The feature term needs {headers} teachers with the student's feature "
            f"width {width}; the teachers have widths {widths}. Use "
            "--student_loss=feature=0, or a student of the teachers' width."
        )
    teacher = _exact(ops.stack(list(teacher_features), axis=1))
    gap = ops.abs(_exact(student_features) - teacher)
    return ops.mean(ops.sum(gap, axis=-1))


def bn_gap(
    norms: Sequence[tuple[KerasTensor, KerasTensor, KerasTensor]],
    weights: Sequence[float],
) -> KerasTensor:
    """Distance of a batch from the statistics stored in BatchNormalizations.

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


def statistics_gap(layers: list[tuple[KerasTensor, ...]]) -> KerasTensor:
    """`bn_gap` of one teacher, its first layer weighing `FIRST_BN_WEIGHT`.

    Args:
        layers: its BatchNormalizations in forward order, see `Outputs.teacher_bn`.
    """
    return bn_gap(layers, [FIRST_BN_WEIGHT] + [1.0] * (len(layers) - 1))


def _moments(tensors: Sequence[KerasTensor]) -> tuple[KerasTensor, KerasTensor]:
    """Means and biased variances over the batch, all replicas' if any, joined."""
    means, variances = fused_batchnorm.batch_moments(tensors)
    replicas = _replicas()
    if replicas:  # two messages for all layers together; each costs its delay
        own, means = means, replicas.all_reduce(MEAN, means)
        apart = ops.square(own - means)
        variances = replicas.all_reduce(MEAN, variances + apart)
    return means, variances


def entropy(logits: KerasTensor) -> KerasTensor:
    """Mean entropy of the predictions, in nats: small where they are confident.

    Args:
        logits: `(..., C)`, unnormalised.
    """
    return ops.mean(_entropy(ops.log_softmax(_exact(logits))))


def negative_marginal_entropy(logits: KerasTensor) -> KerasTensor:
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


def attention_map_gap(
    student_maps: Sequence[KerasTensor],
    teacher_maps: Sequence[Sequence[KerasTensor]],
) -> KerasTensor:
    """Distance of spatial attention, over the resolutions that both have.

    A map's attention is the sum of its squared channels, scaled to norm 1; the squared
    Euclidean distance, averaged over images, teachers and resolutions (Zagoruyko and
    Komodakis, ICLR 2017, eq. 2, squared).

    Args:
        student_maps: `(B, h, w, c)` each.
        teacher_maps: the same for each teacher; channel counts may differ.

    Raises:
        ValueError: if no resolution is shared with any teacher.
    """
    gaps = []
    for maps in teacher_maps:
        by_size = {tuple(m.shape[1:3]): m for m in maps}
        for student in student_maps:
            teacher = by_size.get(tuple(student.shape[1:3]))
            if teacher is not None:
                gap = ops.square(_attention(student) - _attention(teacher))
                gaps.append(ops.mean(ops.sum(gap, axis=-1)))
    if not gaps:
        raise ValueError(
            "The attention term compares maps of one size; student and teachers share "
            "none. Use --student_loss=attention=0."
        )
    return sum(gaps) / len(gaps)


def _attention(maps: KerasTensor) -> KerasTensor:
    energy = ops.sum(ops.square(_exact(maps)), axis=-1)
    energy = ops.reshape(energy, (-1, energy.shape[1] * energy.shape[2]))
    norm = ops.sqrt(ops.sum(ops.square(energy), axis=-1, keepdims=True) + _TINY)
    return energy / norm


def _replicas() -> tf.distribute.ReplicaContext | None:
    """The context of this replica if others train with it, else None."""
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


@dataclasses.dataclass(frozen=True)
class Term:
    """One thing that student or generator may minimise.

    Attributes:
        loss: `Outputs` of one batch, and the method, to a scalar.
        needs: what must be provided, see `build.unavailable`.
        roles: which of `student` and `generator` may minimise it.
    """

    loss: Callable[[Outputs, Method], KerasTensor]
    needs: frozenset[str] = frozenset()
    roles: tuple[str, ...] = ("student", "generator")


def _header(outputs: Outputs, method: Method) -> KerasTensor:
    """Divergence of each header from its own teacher, averaged over headers."""
    distance = DIVERGENCES[method.divergence]
    logits = outputs.student_logits, outputs.teacher_logits
    return distance(*logits, method.temperature, outputs.mask)


def _ensemble(outputs: Outputs, method: Method) -> KerasTensor:
    """Divergence of the mean header from the mean teacher."""
    headers = outputs.student_logits.shape[1]
    mask = outputs.mask if headers == outputs.teacher_logits.shape[1] else None
    return DIVERGENCES[method.divergence](
        mean_over_known(outputs.student_logits, mask),
        mean_over_known(outputs.teacher_logits, outputs.mask),
        method.temperature,
    )


def _bn(outputs: Outputs, method: Method) -> KerasTensor:
    """Distance from stored statistics, averaged over the teachers that have any."""
    gaps = [
        statistics_gap(given) if isinstance(given, list) else given
        for given in outputs.teacher_bn
        if not isinstance(given, list) or given
    ]
    return sum(gaps) / len(gaps)


TERMS = {
    "header": Term(_header, frozenset({"header_per_teacher"})),
    "feature": Term(
        lambda o, _: feature_gap(o.student_features, o.teacher_features),
        frozenset({"header_per_teacher", "features"}),
        roles=("student",),
    ),
    "ensemble": Term(_ensemble),
    "attention": Term(
        lambda o, _: attention_map_gap(o.student_maps, o.teacher_maps),
        frozenset({"feature_maps"}),
    ),
    # These depend on the images alone: nothing that a student could minimise.
    "bn": Term(_bn, frozenset({"bn_statistics"}), roles=("generator",)),
    "entropy": Term(lambda o, _: entropy(o.teacher_logits), roles=("generator",)),
    "balance": Term(
        lambda o, _: negative_marginal_entropy(o.teacher_logits), roles=("generator",)
    ),
}


class Objective:
    """What one role minimises: its weighted terms, and their running means.

    Args:
        role: `student` or `generator`; begins the metrics' names.
        method: whose row weighs the terms.

    Attributes:
        needs: all that its terms need.
        trackers: metric's name -> running mean of one term's true value.
    """

    def __init__(self, role: str, method: Method):
        self.role, self.method = role, method
        self.weights = {t: w for t, w in method.weights(role).items() if w}
        self.needs = frozenset().union(*(TERMS[t].needs for t in self.weights))
        self.trackers = {
            f"{role}_{term}": keras.metrics.Mean(name=f"{role}_{term}")
            for term in self.weights
        }

    def __call__(self, outputs: Outputs) -> KerasTensor:
        """The weighted sum of all terms; logs each term's true value."""
        total = 0.0
        for term, weight in self.weights.items():
            name = f"{self.role}_{term}"
            value = TERMS[term].loss(outputs, self.method)
            value = numerics.checked_term(value, name)
            self.trackers[name].update_state(value)
            total = total + weight * value
        return total
