"""Predictions and metrics of teachers, student and predictor on batches of images."""

import collections
import warnings
from collections.abc import Iterable, Sequence
from typing import Any

import keras
import numpy as np
import tensorflow as tf
from numpy.typing import ArrayLike

from cdfkd_tf.data.specs import DatasetSpec
from cdfkd_tf.errors import DistillationWarning, RequestError
from cdfkd_tf.networks.aggregators import header_weights
from cdfkd_tf.teachers.ensemble import TeacherEnsemble

Predictions = dict[Any, np.ndarray]
_MANY = 5  # images of a class that a teacher could have picked
Batches = Iterable[tuple[np.ndarray, ArrayLike | None]]


def predict_all(
    ensemble: TeacherEnsemble,
    student: keras.Model,
    predictor: keras.Model,
    spec: DatasetSpec,
    batches: Batches,
) -> tuple[Predictions, np.ndarray | None]:
    """Outputs of all networks for the same images, batch by batch.

    Args:
        ensemble: frozen teachers, on normalised images.
        student: a stack of headers, on normalised images.
        predictor: images in [0, 1] to probabilities.
        spec: of the images.
        batches: of images `(B, height, width, channels)` in [0, 1] and of labels as
            `as_labels` takes them, or None.

    Returns:
        `(n, C)` each: logits of `("teacher", i)`, `("header", h)`, `ensemble` and
        `student`, probabilities of `predictor`. And the labels `(n,)`, or None.

    Raises:
        RequestError: no images, or labels that do not fit them.
    """

    @tf.function(reduce_retracing=True)
    def predict_teachers(normalised):
        logits = ensemble(normalised).logits
        return logits, ensemble.combined(logits)

    parts, labels = collections.defaultdict(list), []
    for images, targets in batches:
        if not np.isfinite(images).all():
            raise RequestError(
                "Expected images in [0, 1]; got NaN or infinite values among those "
                f"from number {sum(map(len, parts['predictor']))} on."
            )
        normalised = np.asarray(spec.normalise(images), keras.config.floatx())
        teachers, mean = (x.numpy() for x in predict_teachers(normalised))
        headers = student.predict_on_batch(normalised)["logits"]
        for index in range(teachers.shape[1]):
            parts["teacher", index].append(teachers[:, index])
        for index in range(headers.shape[1]):
            parts["header", index].append(headers[:, index])
        parts["ensemble"].append(mean)
        parts["student"].append(np.asarray(ensemble.combined(headers)))
        parts["predictor"].append(predictor.predict_on_batch(images))
        if targets is not None:
            labels.append(as_labels(targets, len(images), spec.num_classes))
    if not parts:
        raise RequestError("There are no images to evaluate on; give at least one.")
    outputs = {name: np.concatenate(part) for name, part in parts.items()}
    if not labels:
        return outputs, None
    # Again, of all: some batches may have come without.
    num_images = len(outputs["predictor"])
    return outputs, as_labels(np.concatenate(labels), num_images, spec.num_classes)


def as_labels(labels: ArrayLike, num_images: int, num_classes: int) -> np.ndarray:
    """Labels as whole numbers `(n,)`.

    Args:
        labels: `(n,)` or `(n, 1)`, classes from 0 to `num_classes - 1`.
        num_images: n.
        num_classes: C.

    Raises:
        RequestError: another shape or length, values that are not whole or not
            classes.
    """
    try:
        given = np.array(np.asarray(labels).tolist())  # objects by what they are
    except ValueError:  # rows of unlike lengths
        given = np.array(labels, object)
    flat = given[:, 0] if given.ndim == 2 and given.shape[1] == 1 else given
    if given.shape == (num_images, num_classes):
        found = f"shape {given.shape}, one-hot rows? Give their argmax(-1)"
    elif flat.shape != (num_images,):
        found = f"shape {given.shape}"
    elif flat.dtype.kind == "O":
        found = f"{flat[0]!r}"
    elif flat.dtype.kind in "US":
        found = f"{str(flat[0])!r}, a name? Give its place in the list of classes"
    elif flat.dtype.kind not in "biuf":
        found = f"values of type {flat.dtype}"
    else:
        whole = flat == np.floor(flat)
        wrong = flat[~(whole & (flat >= 0) & (flat < num_classes))]
        if not len(wrong):
            return flat.astype("int64")
        found = f"the value {wrong[0]}"
    raise RequestError(
        f"Expected one label per image, {num_images} whole numbers from 0 to "
        f"{num_classes - 1}; got {found}."
    )


def compute_metrics(
    outputs: Predictions,
    labels: np.ndarray | None,
    ensemble: TeacherEnsemble,
    student: keras.Model,
) -> dict[str, Any]:
    """The measured part of results.json.

    Args:
        outputs: from `predict_all`, `(n, C)` each.
        labels: likewise, `(n,)`; None: accuracies are None.
        ensemble: whose teachers' names and sizes are reported.
        student: likewise.

    Returns:
        `teachers`, `teacher_ensemble`, `student`, `aggregator`; accuracies and
        agreement in [0, 1], parameters counted. A teacher's or a header's class is
        one of those that it knows; what it does not know counts as an error.
        `task_accuracy`, where teachers know different classes: among those of a
        teacher that knows the image's class alone.
    """

    def accuracy(name, targets=labels, known=True):
        if targets is None:
            return None
        classes = np.where(known, outputs[name], -np.inf).argmax(-1)
        return float(np.mean(classes == targets))

    def among_known(name):
        """Over all pairs of an image and a teacher that knows its class: whether the
        class is right among those that the teacher knows."""
        if labels is None or ensemble.mask is None:
            return None
        right, pairs = 0, 0
        for knows in ensemble.mask:
            own = knows[labels]
            classes = np.where(knows, outputs[name][own], -np.inf).argmax(-1)
            right, pairs = right + np.sum(classes == labels[own]), pairs + own.sum()
        return float(right / max(pairs, 1))

    num_headers = student.output["logits"].shape[1]
    known = [True] * len(ensemble) if ensemble.mask is None else ensemble.mask
    of_headers = known if num_headers == len(ensemble) else [True] * num_headers
    teachers = [
        {
            "file": teacher.name,
            "parameters": parameter_count(teacher.model),
            "accuracy": accuracy(("teacher", index), known=known[index]),
            **teacher.facts,
        }
        for index, teacher in enumerate(ensemble.teachers)
    ]
    headers = [accuracy(("header", h), known=k) for h, k in enumerate(of_headers)]
    return {
        "teachers": teachers,
        "teacher_ensemble": {
            "parameters": sum(entry["parameters"] for entry in teachers),
            "accuracy": accuracy("ensemble"),
            "task_accuracy": among_known("ensemble"),
            "rule": ensemble.rule.name,
            "rule_evidence": ensemble.rule.evidence,
            "competence": ensemble.rule.competence.round(3).tolist(),
        },
        "student": {
            "parameters": parameter_count(student),
            "accuracy": accuracy("student"),
            "task_accuracy": among_known("student"),
            "header_accuracy": headers,
            "agreement": accuracy("student", outputs["ensemble"].argmax(-1)),
        },
        "aggregator": {
            "accuracy": accuracy("predictor"),
            "mean_accuracy": accuracy("student"),
        },
    }


def warn_of_unknown_classes(
    outputs: Predictions,
    labels: np.ndarray | None,
    ensemble: TeacherEnsemble,
    class_names: Sequence[str],
) -> None:
    """Warns of teachers that never pick a class of which there are many images.

    Args:
        outputs: from `predict_all`, `(n, C)` each.
        labels: likewise, `(n,)`; None: there is nothing to warn of.
        ensemble: the teachers.
        class_names: C names.
    """
    if labels is None:
        return
    counts = np.bincount(labels, minlength=len(class_names))
    for index, teacher in enumerate(ensemble.teachers):
        known = True if ensemble.mask is None else ensemble.mask[index]
        picked = np.where(known, outputs["teacher", index], -np.inf).argmax(-1)
        never = np.bincount(picked, minlength=len(counts)) == 0
        never &= (counts >= _MANY) & known
        if never.any():
            names = [str(class_names[c]) for c in np.flatnonzero(never)]
            warnings.warn(
                f"Teacher {teacher.name} never picks {', '.join(names[:10])}"
                f"{' ...' if len(names) > 10 else ''}, {len(names)} of "
                f"{len(counts)} classes, on {len(labels)} images that show them. Does "
                "it know these classes, and list its classes in this order?",
                DistillationWarning,
                stacklevel=2,
            )


def observe(
    predictor: keras.Model,
    outputs: Predictions,
    labels: np.ndarray | None,
    class_names: Sequence[str],
    batches: Batches,
    generated: Iterable[np.ndarray] | None = None,
) -> dict[str, Any]:
    """What observations.json holds: what the report shows beyond results.json.

    Args:
        predictor: from `build_predictor`.
        outputs: from `predict_all`, of `batches`.
        labels: likewise; None: the ensemble's classes stand for them.
        class_names: C names.
        batches: the same as there, gone through once more.
        generated: batches `(b, height, width, channels)` in [0, 1]; None: none.

    Returns:
        `classes`; `confusion` `(C, C)` counts, rows as `confusion_rows` says, columns
        the predictor's; `header_weights` `(H,)`, and `(C, H)` by class with None for
        classes without images; `invented_classes`: how many generated images the
        predictor puts into each class, or None.
    """
    num_classes = len(class_names)
    rows = outputs["ensemble"].argmax(-1) if labels is None else labels
    confusion = np.zeros((num_classes, num_classes), int)
    np.add.at(confusion, (rows, outputs["predictor"].argmax(-1)), 1)
    weights = np.concatenate([header_weights(predictor, x) for x, _ in batches])
    by_class = [
        weights[rows == label].mean(axis=0).round(4).tolist()
        if (rows == label).any()
        else None
        for label in range(num_classes)
    ]
    counts = None
    if generated is not None:
        found = [predictor.predict_on_batch(x).argmax(-1) for x in generated]
        counts = np.bincount(np.concatenate(found), minlength=num_classes).tolist()
    return {
        "classes": list(class_names),
        "confusion_rows": "teachers" if labels is None else "labels",
        "confusion": confusion.tolist(),
        "header_weights": weights.mean(axis=0).round(4).tolist(),
        "header_weights_by_class": by_class,
        "invented_classes": counts,
    }


def parameter_count(model: keras.Model) -> int:
    """Trainable parameters as papers count them, also of frozen networks."""
    statistics = ("moving_mean", "moving_variance")
    counted = [w.shape for w in model.weights if w.name not in statistics]
    return int(sum(np.prod(shape) for shape in counted))
