"""What a model answers: logits, probabilities, or what no teacher can answer."""

from collections.abc import Mapping, Sequence
from typing import Any

import keras
import numpy as np
from keras import KerasTensor, ops

from cdfkd_tf.errors import RequestError

# Kinds of rows (B, C). Log-probabilities are logits already.
LOGITS, PROBABILITIES, LOG_PROBABILITIES = (
    "logits",
    "probabilities",
    "log-probabilities",
)
# Answers that vary by this share of their spread are more noise than answer.
_NOISE, _VISIBLE = 0.5, 1e-3


def rows_of(answer: Any, names: Sequence[str] = ()) -> dict[str, KerasTensor]:
    """The outputs that have one row per image, `(B, C)` or `(B, 1, 1, C)`, by name.

    Args:
        answer: a tensor, or several in a list or a dict.
        names: of several in a list.

    Returns:
        Of a lone tensor under the name "".
    """
    if isinstance(answer, (list, tuple)):
        known = len(names) == len(answer)
        answer = dict(zip(names if known else map(str, range(len(answer))), answer))
    elif not isinstance(answer, Mapping):
        answer = {"": answer}
    rows = {}
    for name, value in answer.items():
        shape = getattr(value, "shape", ())
        if len(shape) == 2:
            rows[name] = value
        elif len(shape) > 2 and all(side == 1 for side in shape[1:-1]):
            rows[name] = ops.reshape(value, (-1, shape[-1]))
    return rows


def choose_rows(
    answer: Any, names: Sequence[str], num_classes: int | None, teacher: str
) -> str:
    """Which output of a model are the answers about the classes.

    Args:
        answer: as the model gives it, with values.
        names: of its outputs.
        num_classes: that are expected; None: any number from 2 on.
        teacher: what messages call it.

    Raises:
        RequestError: none, or several that might be.
    """
    rows = {name: np.asarray(row) for name, row in rows_of(answer, names).items()}
    fit = [n for n, row in rows.items() if row.shape[1] in (num_classes, None)]
    if num_classes is None or (len(rows) == 1 and not fit):
        fit = [name for name, row in rows.items() if row.shape[1] > 1]
    if len(fit) == 2:  # of logits and their softmax, the logits
        for one, two in (fit, fit[::-1]):
            alike = rows[one].shape == rows[two].shape
            if alike and np.allclose(softmax(rows[one]), rows[two], atol=1e-4):
                return one
    if len(fit) == 1:
        return fit[0]
    if list(rows.values()) and all(row.shape[1] == 1 for row in rows.values()):
        raise RequestError(one_number(teacher))
    shapes = keras.tree.map_structure(lambda value: tuple(value.shape), answer)
    raise RequestError(
        f"A teacher answers one row of at least two classes per image, (B, C); "
        f"{teacher} answers {shapes}. Save it with such a row alone: "
        "keras.Model(model.input, model.outputs[0])."
    )


def one_number(teacher: str) -> str:
    """How to make two classes of one number."""
    return (
        f"Teacher {teacher} answers one number per image; expected a row, one number "
        "per class. Save it with two: keras.layers.Concatenate()([1 - p, p]) of a "
        "probability p, ([0 * x, x]) of a logit x."
    )


def kind_of_rows(rows: np.ndarray, is_linear: bool, teacher: str) -> str:
    """Logits, probabilities or log-probabilities, by what rows `(B, C)` look like.

    Args:
        rows: answers to images that differ much.
        is_linear: whether the last layer is seen to have no activation.
        teacher: what messages call it.

    Raises:
        RequestError: separate sigmoids; shares of another whole than 1.
    """
    inside = rows.min() >= 0 and rows.max() <= 1
    if inside and np.allclose(rows.sum(-1), 1, atol=1e-2):
        return PROBABILITIES
    if rows.max() <= 1e-3 and np.allclose(np.exp(rows).sum(-1), 1, atol=1e-2):
        return LOG_PROBABILITIES
    if inside and not is_linear:
        raise RequestError(
            f"Teacher {teacher} answers separate sigmoids, one per class: all numbers "
            "are in [0, 1] and rows do not sum to 1; expected logits, or probabilities "
            "of classes that exclude each other. If they are to be taken for logits "
            "say --teacher_output=logits."
        )
    total, differ = rows.sum(-1), np.ptp(rows, axis=0).max() > 1e-3 * rows.max()
    if rows.min() >= 0 and differ and np.allclose(total, total[0], rtol=1e-2):
        raise RequestError(
            f"Teacher {teacher} answers rows that all sum to {total[0]:.4g}, as "
            "percentages or votes do; expected logits, or probabilities that sum to 1. "
            "Divide them before saving, or say --teacher_output=logits."
        )
    return LOGITS


def check_finite_rows(rows: np.ndarray, teacher: str) -> None:
    """Refuses answers that are NaN or infinite.

    Args:
        rows: `(n, C)`.
        teacher: what the message calls it.

    Raises:
        RequestError: some are.
    """
    if not np.isfinite(rows).all():
        raise RequestError(
            f"Teacher {teacher} answers NaN or infinite numbers for plain images, "
            "though its weights are finite. Does it divide by 0, or compute in float16?"
        )


def variation(once: np.ndarray, again: np.ndarray, teacher: str) -> float:
    """How much answers to the same images differ, as a share of their spread.

    Args:
        once: answers `(n, C)`.
        again: answers to the same images.
        teacher: what the message calls it.

    Returns:
        Mean absolute difference over the deviation between images; 0 up to 0.001.

    Raises:
        RequestError: it is above 0.5, answers are mostly noise.
    """
    spread = float(np.std(once, axis=0).mean())
    share = float(np.abs(once - again).mean()) / max(spread, 1e-9)
    if share > _NOISE:
        raise RequestError(
            f"Teacher {teacher} answers the same images differently each time, by "
            f"{share:.0%} of how its answers differ between images: dropout or "
            "augmentation was left on. Save it as model(images, training=False)."
        )
    return share if share > _VISIBLE else 0.0


def softmax(rows: np.ndarray) -> np.ndarray:
    """Softmax of each row of logits `(..., C)`."""
    powers = np.exp(rows - rows.max(-1, keepdims=True))
    return powers / powers.sum(-1, keepdims=True)
