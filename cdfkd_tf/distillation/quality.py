"""How well a student learned, as far as images of no training step can tell.

Nothing but agreement can be measured without labelled images. It is taken where the
teachers agree with each other, as they mostly do on real images and seldom on drawn
ones; where they know different things, or there is but one, on what they are sure of.
The rest tells nothing of a student. Each class counts alike, less what guessing gives:
most images fall into one class, and real ones do not.
"""

import warnings
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
import tensorflow as tf

from cdfkd_tf.config import RunConfig
from cdfkd_tf.data.specs import DatasetSpec
from cdfkd_tf.data.transfer_set import kinds_of
from cdfkd_tf.distillation.distiller import Distiller
from cdfkd_tf.distillation.methods import IMAGES
from cdfkd_tf.errors import DistillationWarning
from cdfkd_tf.teachers.rules import Rule

# Fitted on two data sets, see experiments/better_images/README.md: students that agree
# with their teachers on 68 % or less of real images stay below, on 78 % or more above.
POOR = 0.75
_VOTES = 0.75  # of the teachers that know a class, for them to agree on it
_SURE = 0.9  # probability from which one teacher, or the rule for unlike ones, is sure
# Sources by which a student is judged; noise is none of them.
_NAMES = {"own": "new images of its own kinds", "procedural": "images by formula"}
_SHOWN = 256  # images of each other source
_SEED = 20_000_003  # on the run's, for images that no training step saw
_MANY = 4  # images of a class, for the class to count as seen


def beyond_chance(ours: np.ndarray, theirs: np.ndarray) -> float | None:
    """Mean over their classes of the agreement: 1 always, 0 as guessing would.

    Classes of fewer than `_MANY` images are left out.

    Args:
        ours: classes `(n,)`.
        theirs: likewise.

    Returns:
        None if fewer than two classes are left.
    """
    classes = np.flatnonzero(np.bincount(theirs) >= _MANY)
    if len(classes) < 2:
        return None
    agreement = np.mean([np.mean(ours[theirs == c] == c) for c in classes])
    return float((agreement - 1 / len(classes)) / (1 - 1 / len(classes)))


def agreed(logits: np.ndarray, rule: Rule) -> np.ndarray:
    """On which images the teachers' answer can be held against a student.

    Where at least three quarters of them say what all together do. Teachers that know
    different things have no need to say the same, and one alone agrees with itself
    everywhere: there, where the joint answer is sure.

    Args:
        logits: of the teachers, `(n, T, C)`.
        rule: by which they become one.

    Returns:
        `(n,)`, bool.
    """
    joined = np.asarray(rule(logits))
    if logits.shape[1] == 1 or rule.sharpness:
        shares = np.exp(joined - np.max(joined, axis=-1, keepdims=True))
        return np.max(shares, axis=-1) > _SURE * np.sum(shares, axis=-1)
    known = np.ones(logits.shape[1:], bool) if rule.mask is None else rule.mask
    picked, together = np.where(known, logits, -np.inf).argmax(-1), joined.argmax(-1)
    votes = picked == together[:, None]
    return votes.sum(axis=1) >= _VOTES * known[:, together].sum(axis=0)


def look(distiller: Distiller, config: RunConfig, spec: DatasetSpec) -> dict[str, Any]:
    """What results.json says of a finished distillation under `quality`.

    Args:
        distiller: with the student to keep.
        config: the request.
        spec: of the images.

    Returns:
        `images`, what they were made of, in a sentence; `kinds`, kind -> share, and
        `class_counts`, how many of them the teachers put into each class, where
        images were kept; `agreement`, source -> `share`, `beyond_chance` and this
        `where_teachers_agree`, on images of no training step; `poor` and its likely
        `causes`.
    """
    images = distiller.method.images
    source, bank = distiller.source, getattr(distiller.source, "bank", None)
    shown = {"own": source.observe() if bank is None else source.held_out()}
    for other in sorted({"procedural", "noise"} - set(images)):
        kinds = kinds_of([other], "").values()
        drawn = [
            draw(_SHOWN // len(kinds), spec.image_shape, config.seed + _SEED)
            for draw in kinds
        ]
        shown[other] = _normalised(np.concatenate(drawn), config.batch_size, spec)
    agreement = {s: _agreement(distiller, batches) for s, batches in shown.items()}
    counts = None if bank is None else bank.class_counts.tolist()
    found = {
        "images": " and ".join(map(IMAGES.get, images)),
        "kinds": getattr(bank, "shares", None),
        "class_counts": counts,
        "agreement": {source: row for source, row in agreement.items() if row},
    }
    found["poor"] = agreement["own"] is not None and _worst(found)[1] < POOR
    found["causes"] = _causes(distiller, config, found) if found["poor"] else []
    return found


def _worst(found: Mapping[str, Any]) -> tuple[str, float]:
    """The source on which student and teachers are furthest apart, and how near.

    Own images of one class, or none on which the teachers agree, teach nothing: 0. A
    generator's own images can be easy: those by formula count, too.
    """
    near = {
        source: row["where_teachers_agree"]
        for source, row in found["agreement"].items()
        if source in _NAMES
    }
    near["own"] = max(0.0, near["own"] or 0.0)
    near = {source: value for source, value in near.items() if value is not None}
    return min(near.items(), key=lambda item: item[1])


def _normalised(images, size, spec) -> Iterable[np.ndarray]:
    for start in range(0, len(images), size):
        yield np.asarray(spec.normalise(images[start:][:size] / 255), "float32")


def _agreement(distiller, batches) -> dict[str, float | None] | None:
    teachers, pairs = distiller.teachers, []
    for images in batches:
        logits = distiller.student(tf.constant(images), training=False)["logits"]
        theirs = teachers.answers(images).logits
        both = [np.argmax(teachers.combined(x), -1) for x in (logits, theirs)]
        pairs.append((*both, agreed(theirs, teachers.rule)))
    if not pairs:
        return None
    ours, theirs, sure = (np.concatenate(classes) for classes in zip(*pairs))
    return {
        "share": float(np.mean(ours == theirs)),
        "beyond_chance": beyond_chance(ours, theirs),
        "where_teachers_agree": beyond_chance(ours[sure], theirs[sure]),
    }


def _causes(distiller, config, found) -> list[str]:
    counts, own = found["class_counts"], found["agreement"]["own"]
    causes = []
    if own["where_teachers_agree"] is None and len(distiller.teachers) > 1:
        causes.append(
            "the teachers agree with each other on hardly any image, or on those of "
            "one class (of teachers that know different things: are sure of): one of "
            "them may expect other pixel values (--teacher_input)"
        )
    causes += [
        f"the pixel values of teacher {teacher.name}, {teacher.reading.values}, are "
        "guessed (--teacher_input)"
        for teacher in distiller.teachers.teachers
        if teacher.reading.guessed
    ]
    if counts and (unseen := sum(count < _MANY for count in counts)):
        causes.append(
            f"the teachers see hardly any image of {unseen} of {len(counts)} classes: "
            "the images are unlike theirs (--transfer_images=FOLDER adds any pictures)"
        )
    longer = "--minutes" if config.minutes else "--epochs"
    return [*causes, f"too few updates of the student (a larger {longer})"]


def describe(quality: Mapping[str, Any]) -> str:
    """The findings of `look` in a sentence; warns of a poor result."""
    shares = [
        f"{row['share']:.0%} of {_NAMES.get(name, name)}"
        for name, row in quality["agreement"].items()
    ]
    if quality["poor"]:
        source, near = _worst(quality)
        warnings.warn(
            f"The student is poor: on {_NAMES[source]} on which the teachers "
            "agree (those that know different things: are sure), all classes counted "
            f"alike, so does the student on only {near:.0%} "
            f"beyond chance (good ones on more than {POOR:.0%}). Likely causes: "
            f"{'; '.join(quality['causes'])}.",
            DistillationWarning,
            stacklevel=2,
        )
    return f"The student agrees with its teachers on {', '.join(shares) or 'nothing'}."
