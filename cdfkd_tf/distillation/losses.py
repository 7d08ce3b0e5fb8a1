"""Loss terms: distances between student and teachers, and priors on images.

Each term is a row of `TERMS`: a pure function of `Outputs`, and what it needs. The
functions return one float32 scalar averaged over the batch (float64 where the networks
are). Where replicas train together, statistics of a batch are those of all replicas'
batches joined, which are equally large.
"""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import keras
import numpy as np
import tensorflow as tf
from keras import KerasTensor, ops

from cdfkd_tf.distillation.methods import Method
from cdfkd_tf.distillation.numerics import NOT_FINITE
from cdfkd_tf.runtime import fused_batchnorm
from cdfkd_tf.teachers.hooks import TeacherOutputs
from cdfkd_tf.teachers.rules import MEAN_OF_LOGITS, Rule

FIRST_BN_WEIGHT = 5.0  # the first BatchNormalization of each teacher; the rest weigh 1
# Norms have no gradient at zero; under the root this keeps it finite.
_TINY = 1e-12
_ABSENT = -1e9  # logit of a class that a teacher does not know, within a softmax
_CONTRAST_TEMPERATURE = 0.1
MEAN = tf.distribute.ReduceOp.MEAN


@dataclasses.dataclass(frozen=True)
class Outputs:
    """What student and teachers return for one batch: all that a term may read.

    Attributes:
        student: `logits` `(B, H, C)`; `features` `(B, H, W)`, or H tensors mapped to
            teachers' widths; where a term reads them `maps`, the trunk's
            `(B, h, w, c)`, finest first.
        teachers: of an ensemble. In the place of a teacher's list of
            BatchNormalizations there may be their `BnGap`.
        rule: by which the teachers' logits, or the headers', become one row.
        counted: `(B,)`, factors of the images' divergences; None: all are 1.
        labels: `(B,)`, the classes that the images shall show; None: any.
        images: `(B, height, width, channels)`, normalised, where terms may read them.
        views: the teachers' for a piece of each image, where a term reads them.
        earlier: the teachers' for E images made before, where a term reads them.
    """

    student: Mapping[str, Any]
    teachers: TeacherOutputs
    rule: Rule = MEAN_OF_LOGITS
    counted: KerasTensor | None = None
    labels: KerasTensor | None = None
    images: KerasTensor | None = None
    views: TeacherOutputs | None = None
    earlier: TeacherOutputs | None = None

    @property
    def teacher_logits(self) -> KerasTensor:
        """`(B, T, C)`; so that softmaxes give no share to classes not known."""
        if self.rule.mask is None:
            return self.teachers.logits
        return ops.where(self.rule.mask, self.teachers.logits, _ABSENT)


def l1(
    student_logits: KerasTensor,
    teacher_logits: KerasTensor,
    temperature: float = 1.0,
    mask: np.ndarray | None = None,
    counted: KerasTensor | None = None,
) -> KerasTensor:
    """Mean absolute difference, in logit units. Symmetric.

    Args:
        student_logits: `(..., C)`, unnormalised.
        teacher_logits: of the same shape.
        temperature: without effect here.
        mask: broadcastable to the logits; False: left out of the mean.
        counted: `(B,)`, factors of the images; the mean is over all of them.

    Raises:
        ValueError: if the shapes differ.
    """
    _check_same_shape(student_logits, teacher_logits)
    gap = ops.abs(_exact(student_logits) - _exact(teacher_logits))
    gap = _times(gap, counted)
    if mask is None:
        return ops.mean(gap)
    return ops.sum(gap * mask) / ops.sum(ops.ones_like(gap) * mask)


def kl(
    student_logits: KerasTensor,
    teacher_logits: KerasTensor,
    temperature: float = 1.0,
    mask: np.ndarray | None = None,
    counted: KerasTensor | None = None,
) -> KerasTensor:
    """KL(teacher || student) of the softmaxes, in nats, averaged over all rows.

    Args:
        student_logits: `(..., C)`, unnormalised.
        teacher_logits: of the same shape.
        temperature: divides both logits; the result is multiplied by its square, so
            that gradients keep their size (Hinton et al., 2015).
        mask: broadcastable to the logits; False: left out of both softmaxes.
        counted: `(B,)`, factors of the images; the mean is over all of them.

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
    return temperature**2 * ops.mean(_times(rows, counted))


def _times(values: KerasTensor, counted: KerasTensor | None) -> KerasTensor:
    if counted is None:
        return values
    counted = ops.cast(counted, values.dtype)
    return values * ops.reshape(counted, (-1, *[1] * (len(values.shape) - 1)))


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
    layers: Sequence[tuple[KerasTensor, KerasTensor, KerasTensor]],
) -> KerasTensor:
    """Distance of a batch from the statistics stored in BatchNormalizations.

    For each the Euclidean distance of the batch's biased variances from the stored
    ones, plus that of the means (Yin et al., DeepInversion, CVPR 2020, eq. 4,
    unsquared); the sum of all, the first one weighing `FIRST_BN_WEIGHT`.

    Args:
        layers: of one teacher, in forward order: for each its input
            `(B, ..., channels)`, channels last, and its `moving_mean` and
            `moving_variance`, `(channels,)`.
    """
    inputs, *stored = zip(*layers)
    widths = [tensor.shape[-1] for tensor in inputs]
    owners = np.repeat(np.arange(len(widths)), widths)
    weights = np.array([FIRST_BN_WEIGHT] + [1.0] * (len(widths) - 1))
    total = 0.0
    # All layers' channels in one vector: a deep teacher has dozens of layers.
    for batch, values in zip(_moments(inputs), stored):
        gaps = ops.square(_exact(batch) - ops.concatenate(list(map(_exact, values))))
        squares = ops.segment_sum(gaps, owners, num_segments=len(widths))
        norms = ops.sqrt(squares + _TINY)
        total = total + ops.sum(norms * ops.convert_to_tensor(weights, norms.dtype))
    return total


class BnGap(NamedTuple):
    """What `bn_gap` is of a teacher with so many BatchNormalizations.

    Attributes:
        value: a scalar.
        layers: their number.
    """

    value: KerasTensor
    layers: int


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


def cross_entropy(
    logits: KerasTensor, labels: KerasTensor | None = None
) -> KerasTensor:
    """Mean negative logarithm of the labels' probability, in nats.

    Args:
        logits: `(B, C)`, unnormalised.
        labels: `(B,)`; None: the likeliest classes (Chen et al., DAFL, ICCV 2019,
            eq. 3).
    """
    labels = ops.argmax(logits, axis=-1) if labels is None else labels
    chosen = ops.one_hot(labels, logits.shape[-1], dtype=keras.config.floatx())
    return -ops.mean(ops.sum(chosen * ops.log_softmax(_exact(logits)), axis=-1))


def hard_cross_entropy(logits: KerasTensor, labels: KerasTensor) -> KerasTensor:
    """As `cross_entropy`, each image times 1 - p of its label, a constant.

    What is right already counts little (Dai et al., Co-Boosting, ICLR 2024).

    Args:
        logits: `(B, C)`, unnormalised.
        labels: `(B,)`.
    """
    chosen = ops.one_hot(labels, logits.shape[-1], dtype=keras.config.floatx())
    values = ops.sum(chosen * ops.log_softmax(_exact(logits)), axis=-1)
    return -ops.mean(ops.stop_gradient(1 - ops.exp(values)) * values)


def total_variation(images: KerasTensor) -> KerasTensor:
    """How rough images are: Euclidean norms of the differences between neighbours.

    Summed over right, lower and both diagonal neighbours, averaged over images
    (Yin et al., DeepInversion, CVPR 2020, R_TV as their code has it).

    Args:
        images: `(B, height, width, channels)`.
    """
    right, down = images[:, :, 1:] - images[:, :, :-1], images[:, 1:] - images[:, :-1]
    falling = images[:, 1:, 1:] - images[:, :-1, :-1]
    rising = images[:, 1:, :-1] - images[:, :-1, 1:]
    return sum(map(length, (right, down, falling, rising)))


def length(tensor: KerasTensor) -> KerasTensor:
    """Mean over the batch of the Euclidean norm. `tensor`: `(B, ...)`."""
    axes = tuple(range(1, len(tensor.shape)))
    squares = ops.sum(ops.square(_exact(tensor)), axis=axes)
    return ops.mean(ops.sqrt(squares + _TINY))


def contrast(
    views: KerasTensor, originals: KerasTensor, earlier: KerasTensor
) -> KerasTensor:
    """How hard it is to tell by a view which image it is of, in nats.

    Cross-entropy over all images, by the views' scalar products with them (InfoNCE;
    Fang et al., IJCAI 2021, at their temperature): small where images are unlike.

    Args:
        views: `(B, W)`, of length 1.
        originals: `(B, W)`, of the same images.
        earlier: `(E, W)`, of other images.
    """
    known = ops.concatenate([originals, earlier])
    alike = ops.matmul(views, ops.transpose(known)) / _CONTRAST_TEMPERATURE
    return -ops.mean(ops.diagonal(ops.log_softmax(alike, axis=-1)))


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
    logits = outputs.student["logits"], outputs.teachers.logits
    return DIVERGENCES[method.divergence](
        *logits, method.temperature, outputs.rule.mask, outputs.counted
    )


def _ensemble(outputs: Outputs, method: Method) -> KerasTensor:
    """Divergence of the headers from the teachers, joined by the teachers' rule."""
    logits = outputs.student["logits"], outputs.teachers.logits
    joined = map(outputs.rule, logits)
    return DIVERGENCES[method.divergence](
        *joined, method.temperature, counted=outputs.counted
    )


def _bn(outputs: Outputs, method: Method) -> KerasTensor:
    """Distance from stored statistics, averaged over the teachers that have any."""
    gaps = [gap.value for gap in _gaps(outputs)]
    return sum(gaps) / len(gaps)


def _bn_mean(outputs: Outputs, method: Method) -> KerasTensor:
    """The same as a mean over layers: its size depends on no teacher's depth."""
    gaps = [value / (FIRST_BN_WEIGHT + n - 1) for value, n in _gaps(outputs)]
    return sum(gaps) / len(gaps)


def _gaps(outputs: Outputs) -> list[BnGap]:
    return [
        bn if isinstance(bn, BnGap) else BnGap(bn_gap(bn), len(bn))
        for bn in outputs.teachers.bn
        if bn
    ]


def _cross_entropy(outputs: Outputs, method: Method) -> KerasTensor:
    """Of the teachers' mean, for the classes asked of the generator, else its own."""
    joined = outputs.rule(outputs.teachers.logits)
    return cross_entropy(joined, outputs.labels)


def _hard_cross_entropy(outputs: Outputs, method: Method) -> KerasTensor:
    """The same, of images that are asked for a class."""
    joined = outputs.rule(outputs.teachers.logits)
    labels = ops.argmax(joined, axis=-1) if outputs.labels is None else outputs.labels
    return hard_cross_entropy(joined, labels)


def _contrast(outputs: Outputs, method: Method) -> KerasTensor:
    """By the mean of the teachers' cosines."""
    seen = outputs.views, outputs.teachers, outputs.earlier
    return contrast(*map(_directions, seen))


def _directions(teachers: TeacherOutputs) -> KerasTensor:
    """Features, of teachers without any all logits, with length 1 in sum: `(B, W)`."""
    known = [each for each in teachers.features if each is not None]
    rows = list(map(_exact, known or ops.unstack(teachers.logits, axis=1)))
    squares = [ops.sum(ops.square(row), axis=-1, keepdims=True) for row in rows]
    rows = [row / ops.sqrt(s + _TINY) for row, s in zip(rows, squares)]
    return ops.concatenate(rows, axis=-1) / len(rows) ** 0.5


TERMS = {
    "header": Term(_header, frozenset({"header_per_teacher"})),
    "feature": Term(
        lambda o, _: feature_gap(o.student["features"], o.teachers.features),
        frozenset({"header_per_teacher", "features"}),
        roles=("student",),
    ),
    "ensemble": Term(_ensemble),
    "attention": Term(
        lambda o, _: attention_map_gap(o.student["maps"], o.teachers.maps),
        frozenset({"feature_maps"}),
    ),
    # These depend on the images alone: nothing that a student could minimise.
    "bn": Term(_bn, frozenset({"bn_statistics"}), roles=("generator",)),
    "bn_mean": Term(_bn_mean, frozenset({"bn_statistics"}), roles=("generator",)),
    "cross_entropy": Term(_cross_entropy, roles=("generator",)),
    "hard_cross_entropy": Term(_hard_cross_entropy, roles=("generator",)),
    "total_variation": Term(
        lambda o, _: total_variation(o.images), roles=("generator",)
    ),
    "contrast": Term(_contrast, frozenset({"views"}), roles=("generator",)),
    "l2": Term(lambda o, _: length(o.images), roles=("generator",)),
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
        if role == "generator" and method.generator_temperature:
            temperature = method.generator_temperature
            method = dataclasses.replace(method, temperature=temperature)
        self.role, self.method = role, method
        self.weights = {t: w for t, w in method.weights(role).items() if w}
        self.needs = frozenset().union(*(TERMS[t].needs for t in self.weights))
        self.trackers = {
            f"{role}_{term}": keras.metrics.Mean(name=f"{role}_{term}")
            for term in self.weights
        }

    def __call__(self, outputs: Outputs) -> KerasTensor:
        """The weighted sum of all terms, a scalar; logs each term's true value.

        Raises:
            tf.errors.InvalidArgumentError: as it runs, a term that is not finite.
        """
        total = 0.0
        for term, weight in self.weights.items():
            name = f"{self.role}_{term}"
            value = TERMS[term].loss(outputs, self.method)
            value = tf.debugging.check_numerics(value, f"{NOT_FINITE}{name}")
            self.trackers[name].update_state(value)
            total = total + weight * value
        return total
