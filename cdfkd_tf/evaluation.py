"""How good teachers, student and predictor are, on whatever batches are given."""

import collections
from collections.abc import Iterable
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from cdfkd_tf.data.specs import DatasetSpec
from cdfkd_tf.teachers.ensemble import TeacherEnsemble

Answers = dict[Any, np.ndarray]
Batches = Iterable[tuple[np.ndarray, np.ndarray | None]]


def ask(
    teachers: TeacherEnsemble,
    student: keras.Model,
    predictor: keras.Model,
    spec: DatasetSpec,
    batches: Batches,
) -> tuple[Answers, np.ndarray | None]:
    """Everybody's answers on the same images.

    Args:
        teachers: frozen.
        student: a stack of headers, on normalised images.
        predictor: images in [0, 1] to probabilities.
        spec: of the images.
        batches: of images `(B, height, width, channels)` in [0, 1] and labels `(B,)`,
            or None where there are none.

    Returns:
        `(n, C)` of `("teacher", i)`, `("header", h)`, `ensemble`, `student`,
        `predictor`; the labels `(n,)` or None.
    """

    @tf.function(reduce_retracing=True)
    def ask_teachers(images):
        return teachers(images).logits

    answers, labels = collections.defaultdict(list), []
    for pixels, truth in batches:
        images = np.asarray(spec.normalise(pixels), keras.config.floatx())
        said = ask_teachers(images).numpy()
        headers = student.predict_on_batch(images)["logits"]
        for index in range(said.shape[1]):
            answers["teacher", index].append(said[:, index])
        for header in range(headers.shape[1]):
            answers["header", header].append(headers[:, header])
        answers["ensemble"].append(said.mean(axis=1))
        answers["student"].append(headers.mean(axis=1))
        answers["predictor"].append(predictor.predict_on_batch(pixels))
        labels.append(truth)
    joined = {name: np.concatenate(parts) for name, parts in answers.items()}
    return joined, None if labels[0] is None else np.concatenate(labels)


def measure(
    answers: Answers,
    truth: np.ndarray | None,
    teachers: TeacherEnsemble,
    student: keras.Model,
) -> dict[str, Any]:
    """The measured part of results.json: teachers, ensemble, student, aggregator.

    Args:
        answers: from `ask`, as the next one; None: accuracies are None.
        truth: labels.
        teachers: whose names and sizes are told.
        student: likewise.
    """

    def share(name, against=truth):
        if against is None:
            return None
        return float(np.mean(answers[name].argmax(-1) == against))

    entries = [
        {
            "file": teacher.name,
            "parameters": parameter_count(teacher.model),
            "accuracy": share(("teacher", index)),
        }
        for index, teacher in enumerate(teachers.teachers)
    ]
    num_headers = student.output["logits"].shape[1]
    headers = [share(("header", header)) for header in range(num_headers)]
    return {
        "teachers": entries,
        "teacher_ensemble": {
            "parameters": sum(entry["parameters"] for entry in entries),
            "accuracy": share("ensemble"),
        },
        "student": {
            "parameters": parameter_count(student),
            "accuracy": share("student"),
            "header_accuracy": headers,
            "agreement": share("student", answers["ensemble"].argmax(-1)),
        },
        "aggregator": {
            "accuracy": share("predictor"),
            "mean_accuracy": share("student"),
        },
    }


def parameter_count(model: keras.Model) -> int:
    """Trainable parameters as papers count them, also of frozen networks."""
    statistics = ("moving_mean", "moving_variance")
    counted = [w.shape for w in model.weights if w.name not in statistics]
    return int(sum(np.prod(shape) for shape in counted))
