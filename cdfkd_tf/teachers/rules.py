"""Rules by which the answers of several teachers become one answer.

Teachers of one distribution agree, and any mean will do. One that never saw a class
denies it everywhere, and vetoes the others in a mean of logits: then each is to be
heard on what it knows. How well a teacher knows a class stands, without any data, in
its last layer's columns: what speaks there for a class grows with the number of images
of it that were learned from (`Teacher.class_norms`); whether it is sure of an image,
in its entropy.

Importable without Keras.
"""

import dataclasses
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from cdfkd_tf.errors import RequestError

if TYPE_CHECKING:
    from keras import KerasTensor

RULES = {  # name -> what it is, for people
    "mean": "the mean of logits",
    "probabilities": "the mean of probabilities",
    "competence": "probabilities, weighted by each teacher's competence for a class "
    "and by how sure it is",
    "counts": "probabilities, weighted by how many images of a class each teacher "
    "learned from and by how sure it is",
}
# Exponents of competence and of the entropy: wide optima. The threshold stands between
# teachers of one distribution (1.07 to 1.12 measured) and skewed ones (1.68 to 2.11),
# see experiments/different_teachers.
POWER, SHARPNESS, ALIKE = 4.0, 4.0, 1.5
_ENOUGH = 100  # images per class, of which none shows one


@dataclasses.dataclass(frozen=True)
class Rule:
    """How the logits of T teachers, or of as many headers, become one row.

    Attributes:
        name: a key of `RULES`.
        evidence: why this one, for people.
        mask: `(T, C)` bool, which teacher knows which class; None: all know all.
        competence: `(T, C)`, at most 1, how well each knows each class; None: not
            asked for.
        weights: `(T, C)` of probabilities, each class's summing to 1; None with
            `mean`.
        sharpness: b, how much an unsure teacher counts less: exp(-b * entropy).
    """

    name: str = "mean"
    evidence: str = "given"
    mask: np.ndarray | None = None
    competence: np.ndarray | None = None
    weights: np.ndarray | None = None
    sharpness: float = 0.0

    def __call__(self, logits: "KerasTensor") -> "KerasTensor":
        """One row of logits.

        Args:
            logits: `(B, T, C)`; of headers whose number is not T: their plain mean.

        Returns:
            `(B, C)`; but with `mean`, logarithms of probabilities, centred.
        """
        from cdfkd_tf.networks.layers import log_of_mixture, log_shares
        from cdfkd_tf.teachers.class_map import mean_over_known

        if self.weights is None or len(self.weights) != logits.shape[1]:
            return mean_over_known(logits, self.mask)
        return log_of_mixture(log_shares(logits, *self.mixture, self.mask))

    @property
    def mixture(self) -> tuple[np.ndarray, float]:
        """Weights `(T, C)` and sharpness; with `mean` as if it were competence."""
        if self.weights is None:
            return _shares(self.competence**POWER), SHARPNESS
        return self.weights, self.sharpness

    def table(self) -> str:
        """Teachers in rows, classes in columns: competence, one digit after the point.

        Empty for more than 30 classes, or where there is nothing to tell.
        """
        if self.name == "mean" or self.competence.shape[1] > 30:
            return ""
        lines = [
            f"  teacher {index}: {' '.join(f'{a:3.1f}' if a else '  -' for a in row)}\n"
            for index, row in enumerate(self.competence)
        ]
        return "Competence, teachers by classes (1: what it knows best):\n" + "".join(
            lines
        )

    def __str__(self) -> str:
        return f"{RULES[self.name]} ({self.evidence})"


MEAN_OF_LOGITS = Rule()


def choose_rule(
    name: str,
    norms: Sequence[np.ndarray | None],
    known: np.ndarray,
    counts: np.ndarray | None = None,
) -> Rule:
    """The rule for these teachers.

    `auto` takes the counts if there are any; else the mean of logits for teachers that
    all know all classes about equally well, and competence for others.

    Args:
        name: a key of `RULES`, or `auto`.
        norms: per teacher its `class_norms` over the classes of the whole, `(C,)`;
            None where it shows none.
        known: `(T, C)` bool, which teacher knows which class.
        counts: `(T, C)`, how many images of a class each learned from, if told.

    Raises:
        RequestError: `counts` without any, or a class that no teacher saw.
    """
    mask, evidence = (None if known.all() else known), "given"
    competence = competence_of(norms, known)
    if name == "auto":
        name, evidence = _chosen(norms, competence, known, counts)
    if name == "mean":
        return Rule(name, evidence, mask, competence)
    if name == "probabilities":
        return Rule(name, evidence, mask, competence, _shares(known))
    if name == "competence":
        weights = _shares(competence**POWER * known)
        return Rule(name, evidence, mask, competence, weights, SHARPNESS)
    if counts is None:
        raise RequestError(
            "--ensemble=counts needs --teacher_counts: how many images of each class "
            "each teacher learned from. Give them, or use --ensemble=competence."
        )
    counts = np.where(known, counts, 0.0)
    if not counts.any(axis=0).all():
        unseen = int(np.argmin(counts.any(axis=0)))
        raise RequestError(
            f"--teacher_counts: no teacher learned from an image of class {unseen}. "
            "Expected at least one image of each class. Check their order."
        )
    competence = counts / np.maximum(counts.max(axis=1, keepdims=True), 1)
    return Rule(name, evidence, mask, competence, _shares(counts), SHARPNESS)


def doubts(
    rule: Rule, logits: np.ndarray, names: Sequence[str], class_names: Sequence[str]
) -> list[str]:
    """What answers to many images say against a rule, in sentences.

    Args:
        rule: of the teachers.
        logits: `(n, T, C)`.
        names: of the teachers.
        class_names: C names.
    """
    found = []
    known = np.ones(rule.competence.shape, bool) if rule.mask is None else rule.mask
    # Where a rule knows already that a teacher does not know a class, no news.
    least = 0.8 if rule.name in ("competence", "counts") and rule.mask is None else 0
    picked = np.where(known, logits, -np.inf).argmax(-1)
    for index, (name, knows) in enumerate(zip(names, known)):
        shares = np.bincount(picked[:, index], minlength=len(knows)) / len(picked)
        competence = rule.competence[index]
        never = [
            str(class_names[c])
            for c in np.flatnonzero(knows & (shares == 0) & (competence > least))
        ]
        if never and len(picked) >= _ENOUGH * len(knows):
            found.append(
                f"Teacher {name} never answers {', '.join(never[:10])}, which it is "
                f"said to know, to any of {len(picked)} images."
            )
        by_class = rule.name == "competence" and rule.mask is None
        if by_class and np.ptp(competence) and np.ptp(shares) and len(shares) > 3:
            fit = np.corrcoef(competence, np.sqrt(shares))[0, 1]
            if fit < -0.2:
                found.append(
                    f"What teacher {name} answers ({fit:.2f}, correlated with what its "
                    "weights say it knows) does not bear its competence out. Give "
                    "--teacher_counts, or --ensemble=probabilities."
                )
    if rule.name == "competence" and len(known) > 1 and known.all():
        far = unlikeness(rule.competence)
        if far < 1.1:
            found.append(
                f"Competence is flat ({far:.2f} of 1): all teachers seem to know all "
                "classes alike, or do not show it, and only their being sure counts."
            )
    return found


def competence_of(norms: Sequence[np.ndarray | None], known: np.ndarray) -> np.ndarray:
    """`(T, C)`: each teacher's norms as shares of its largest; 1 where unknown."""
    rows = [
        np.ones(len(classes)) if row is None else np.where(classes, row, 0.0)
        for row, classes in zip(norms, known)
    ]
    largest = np.array([max(float(row.max()), 1e-12) for row in rows])
    return np.where(known, np.stack(rows) / largest[:, None], 0.0)


def unlikeness(competence: np.ndarray) -> float:
    """T times the largest share that a teacher has in a class: 1 where all are equal.

    Of many classes the mean of the largest tenth: single ones stand out by chance.

    Args:
        competence: `(T, C)`.
    """
    largest = np.sort(_shares(competence).max(axis=0))
    return float(len(competence) * largest[-max(1, len(largest) // 10) :].mean())


def _chosen(norms, competence, known, counts) -> tuple[str, str]:
    """A rule's name, and why it."""
    if len(known) == 1:
        return "mean", "there is one teacher"
    if counts is not None:
        return "counts", "label counts were given"
    if not known.all():
        return "competence", "teachers know different classes"
    if all(row is None for row in norms):
        return "mean", (
            "guessed: no teacher shows a last layer, wide enough, to tell what it "
            "knows by; if they differ say --ensemble=competence"
        )
    far = unlikeness(competence)
    verdict = f"the most competent teacher of a class stands {far:.2f} times above the"
    if far > ALIKE:
        return "competence", f"teachers differ: {verdict} mean, more than {ALIKE:g}"
    return "mean", f"teachers are alike: {verdict} mean, at most {ALIKE:g}"


def _shares(weights: np.ndarray) -> np.ndarray:
    """Of each class over the teachers, summing to 1."""
    weights = np.asarray(weights, "float64")
    return weights / np.maximum(weights.sum(axis=0), 1e-30)
