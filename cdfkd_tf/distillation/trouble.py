"""Trouble that numbers hide: said once, with the remedy."""

import itertools
import math
import warnings
from collections.abc import Sequence

import numpy as np

from cdfkd_tf.errors import DistillationWarning

PATIENCE = 5  # epochs in a row before anything is said
_NEARLY_UNIFORM = 0.999  # share of the greatest possible entropy
_CHANCE = 0.05  # Cohen's kappa up to this is agreement by chance
_FEW_CLASSES = 0.1  # share of all classes


class TroubleWatch:
    """Looks at what the teachers say about generated images, epoch by epoch.

    Warns once of each: a teacher that answers uniformly, two teachers that agree no
    more than chance would have it, and a generator that shows few classes.

    Args:
        names: of the teachers, for the messages.
        patience: epochs in a row that a trouble must last.
    """

    def __init__(self, names: Sequence[str], patience: int = PATIENCE):
        self.names, self.patience = list(names), patience
        self._lasting: dict[str, int] = {}

    def see(self, logits: np.ndarray) -> None:
        """One epoch's answers, `(n, T, C)`; warns with `DistillationWarning`."""
        seen = [
            *self._uniform(logits),
            *self._disagreeing(logits.argmax(-1), logits.shape[-1]),
            *self._collapsed(logits.mean(1).argmax(-1), logits.shape[-1]),
        ]
        messages = dict(seen)
        self._lasting = {key: self._lasting.get(key, 0) + 1 for key in messages} | {
            key: math.inf for key, count in self._lasting.items() if count == math.inf
        }
        for key, message in messages.items():
            if self._lasting[key] >= self.patience and self._lasting[key] != math.inf:
                self._lasting[key] = math.inf  # said
                warnings.warn(message, DistillationWarning, stacklevel=2)

    def _uniform(self, logits):
        shifted = logits - logits.max(-1, keepdims=True)
        log_p = shifted - np.log(np.exp(shifted).sum(-1, keepdims=True))
        entropy = -(np.exp(log_p) * log_p).sum(-1).mean(0) / math.log(logits.shape[-1])
        for name, value in zip(self.names, entropy):
            if value > _NEARLY_UNIFORM:
                yield (
                    f"uniform {name}",
                    f"Teacher {name} gives all classes the same probability on every "
                    "generated image: there is nothing to learn from it. Does it "
                    "expect other pixel values (--teacher_input), or answer "
                    "probabilities (--teacher_output)?",
                )

    def _disagreeing(self, classes, num_classes):
        shares = np.stack(
            [np.bincount(column, minlength=num_classes) for column in classes.T]
        ) / len(classes)
        for one, two in itertools.combinations(range(len(self.names)), 2):
            chance = float(shares[one] @ shares[two])
            agreement = float(np.mean(classes[:, one] == classes[:, two]))
            if chance < 1 and (agreement - chance) / (1 - chance) <= _CHANCE:
                yield (
                    f"disagree {one} {two}",
                    f"Teachers {self.names[one]} and {self.names[two]} pick the same "
                    f"class on {agreement:.0%} of generated images, as chance would "
                    f"({chance:.0%}): do they list classes in the same order, and "
                    "expect these pixel values (--teacher_input)?",
                )

    def _collapsed(self, classes, num_classes):
        shares = np.bincount(classes, minlength=num_classes) / len(classes)
        in_use = effective_classes(shares)
        if in_use < max(1.5, _FEW_CLASSES * num_classes):
            yield (
                "collapse",
                f"The generator shows about {in_use:.1f} of {num_classes} classes "
                "(mode collapse): the student cannot learn the others. Try "
                "--generator_balance_weight=1, a larger --generator_bn_weight or a "
                "smaller --generator_learning_rate.",
            )


def effective_classes(shares: np.ndarray) -> float:
    """How many classes are as good as in use: the exponential of the entropy.

    Args:
        shares: of each class, summing to 1.
    """
    return math.exp(-sum(share * math.log(share) for share in shares if share))
