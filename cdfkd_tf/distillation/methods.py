"""The comparison: what each method makes student and generator minimise.

A method is a row: term -> weight per player. An adversarial term is a term with a
negative weight.
"""

import dataclasses
from collections.abc import Mapping

from keras import KerasTensor, ops

from cdfkd_tf.distillation import losses
from cdfkd_tf.errors import RequestError

FIRST_BN_WEIGHT = 5.0  # the first BatchNormalization of each teacher; the rest weigh 1


@dataclasses.dataclass(frozen=True)
class Answers:
    """What the networks say about one batch.

    Attributes:
        student_logits: `(B, H, C)`.
        student_features: `(B, H, W)`, or H tensors mapped to teachers' widths.
        teacher_logits: `(B, T, C)`.
        teacher_features: T tensors `(B, W_i)`.
        teacher_bn: for each teacher, its BatchNormalizations in forward order, each
            as `(input, moving_mean, moving_variance)`; or, where they were measured
            already, their `statistics_gap`. Empty where not asked for.
    """

    student_logits: KerasTensor
    student_features: KerasTensor | list[KerasTensor]
    teacher_logits: KerasTensor
    teacher_features: list[KerasTensor]
    teacher_bn: list[list[tuple[KerasTensor, ...]] | KerasTensor]


@dataclasses.dataclass(frozen=True)
class Method:
    """One row of the comparison.

    Attributes:
        divergence: `l1` on logits or `kl` on softmaxes.
        student: term -> weight in what the student minimises.
        generator: the same for the generator; empty: there is none, and the student
            learns from real images.
        sharing: how the student's headers share layers.
        teacher_gradient: whether the generator's divergences see the teachers'
            gradient, or take their logits for constants.
        temperature: of the softmaxes of `kl`.
    """

    divergence: str
    student: Mapping[str, float]
    generator: Mapping[str, float]
    sharing: str
    teacher_gradient: bool = True
    temperature: float = 1.0

    def distance(self, student: KerasTensor, teacher: KerasTensor) -> KerasTensor:
        """The method's divergence of two tensors of logits `(..., C)`."""
        if self.divergence == "l1":
            return losses.l1(student, teacher)
        return losses.kl(student, teacher, self.temperature)


# A method with one header learns from the mean of all teachers; its published form is
# the case of one teacher.
METHODS = {
    "cdfkd_mfs": Method(
        divergence="l1",
        student={"header": 1.0, "feature": 0.2, "ensemble": 5.0},
        generator={"header": -1.0, "bn": 0.1},
        sharing="multi_level",
    ),
    "cdfkd": Method(
        divergence="kl",
        student={"header": 1.0, "ensemble": 1.0},
        generator={"header": -1.0, "ensemble": -1.0, "bn": 0.1},
        sharing="split",
        teacher_gradient=False,
    ),
    "dfed": Method(
        divergence="l1",
        student={"ensemble": 1.0},
        generator={"ensemble": -1.0, "bn": 0.1},
        sharing="single",
    ),
    "dfad": Method(
        divergence="l1",
        student={"ensemble": 1.0},
        generator={"ensemble": -1.0},
        sharing="single",
    ),
    "dfq": Method(
        divergence="kl",
        student={"ensemble": 1.0},
        generator={"ensemble": -1.0, "bn": 0.1, "confidence": 0.1, "balance": 0.1},
        sharing="single",
    ),
    "kd": Method(
        divergence="kl", student={"ensemble": 1.0}, generator={}, sharing="single"
    ),
}


def _header(answers: Answers, method: Method) -> KerasTensor:
    """Divergence of each header from its own teacher, averaged over headers."""
    return method.distance(answers.student_logits, answers.teacher_logits)


def _ensemble(answers: Answers, method: Method) -> KerasTensor:
    """Divergence of the mean header from the mean teacher."""
    return method.distance(
        ops.mean(answers.student_logits, axis=1),
        ops.mean(answers.teacher_logits, axis=1),
    )


def _feature(answers: Answers, method: Method) -> KerasTensor:
    return losses.feature_gap(answers.student_features, answers.teacher_features)


def _bn(answers: Answers, method: Method) -> KerasTensor:
    """Distance from stored statistics, averaged over the teachers that have any."""
    gaps = [
        statistics_gap(given) if isinstance(given, list) else given
        for given in answers.teacher_bn
        if not isinstance(given, list) or given
    ]
    return sum(gaps) / len(gaps)


def statistics_gap(layers: list[tuple[KerasTensor, ...]]) -> KerasTensor:
    """How far a batch is from what all BatchNormalizations of one teacher saw.

    Args:
        layers: its BatchNormalizations in forward order, see `Answers.teacher_bn`.
    """
    return losses.bn_gap(layers, [FIRST_BN_WEIGHT] + [1.0] * (len(layers) - 1))


def _confidence(answers: Answers, method: Method) -> KerasTensor:
    return losses.confidence(answers.teacher_logits)


def _balance(answers: Answers, method: Method) -> KerasTensor:
    return losses.balance(answers.teacher_logits)


TERMS = {
    "header": _header,
    "feature": _feature,
    "ensemble": _ensemble,
    "bn": _bn,
    "confidence": _confidence,
    "balance": _balance,
}


def terms_of(
    answers: Answers, weights: Mapping[str, float], method: Method
) -> dict[str, KerasTensor]:
    """The true (unweighted) value of each term that weighs something."""
    return {
        name: TERMS[name](answers, method) for name, weight in weights.items() if weight
    }


def with_overrides(method: Method, **weights: float | None) -> Method:
    """The method with some weights replaced.

    Args:
        method: the row to start from.
        **weights: `student_header=0.5` and the like; None leaves the method's own.

    Raises:
        RequestError: if a player has no such term to weigh, or there is no such
            player.
    """
    players = {"student": dict(method.student), "generator": dict(method.generator)}
    for key, weight in weights.items():
        if weight is None:
            continue
        player, _, term = key.partition("_")
        if player not in players or term not in TERMS:
            raise RequestError(
                f"No term {key!r}. Terms: {', '.join(sorted(TERMS))}, for student or "
                "generator."
            )
        if not players[player]:
            if weight == 0:
                continue
            raise RequestError(
                f"--{key}_weight={weight}, but this method learns from real images "
                f"and has no {player}. Leave the flag out, or choose another --method."
            )
        players[player][term] = weight
    if not any(players["student"].values()):
        raise RequestError(
            "The student has nothing to learn: all its weights are 0. Give one of "
            "--student_header_weight, --student_ensemble_weight a value above 0."
        )
    return dataclasses.replace(method, **players)
