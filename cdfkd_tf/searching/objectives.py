"""What a trial is judged by. Never the test split."""

import csv
import pathlib

import keras
import numpy as np

from cdfkd_tf.assembly import Assembly
from cdfkd_tf.config import RunConfig
from cdfkd_tf.distillation import BEST_SIGNAL
from cdfkd_tf.errors import RequestError, RunError
from cdfkd_tf.methods import METHODS
from cdfkd_tf.models.aggregation import build_aggregator
from cdfkd_tf.training.aggregation import fit_aggregator

HELD_OUT_ACCURACY = "held_out_accuracy"


def objective_of(config: RunConfig) -> str:
    """Name of the number that trials of this request are judged by; more is better.

    Raises:
        RequestError: neither real samples nor a generator to judge by.
    """
    if config.real_samples:
        return HELD_OUT_ACCURACY
    if not METHODS[config.method].generator:
        raise RequestError(
            f"--action=search with --method={config.method} has no invented images to "
            "judge by. Give labelled ones with --real_samples."
        )
    return BEST_SIGNAL


def judge(config: RunConfig, assembly: Assembly) -> float:
    """The objective of a distilled trial.

    With real samples: accuracy of student and aggregator on half of them, which the
    aggregator does not see (on all of them if it is the mean, which learns nothing).
    Without: agreement with the teachers on images of held-out noise, through this
    run's earlier generators, at the epoch whose student is kept.

    Args:
        config: the trial's.
        assembly: of the same.

    Raises:
        RunError: the student's answers are no numbers.
    """
    if not config.real_samples:
        return _last_agreement(config, assembly.workdir.history)
    student = assembly.load(assembly.workdir.student, "distill")
    images, labels = assembly.images.few_shot(config.real_samples, config.seed)
    one_header = student.output["logits"].shape[1] == 1
    kind = "mean" if one_header else config.aggregator
    aggregator = build_aggregator(kind, student)
    held_out = slice(0, None)
    if kind != "mean":
        half = max(1, len(labels) // 2)
        held_out = slice(0, half)
        keras.utils.set_random_seed(config.seed)
        fit_aggregator(
            aggregator,
            student,
            images[half:],
            labels[half:],
            epochs=config.aggregator_epochs,
            learning_rate=config.aggregator_learning_rate,
            seed=config.seed,
        )
    answers = student.predict(images[held_out], verbose=0)
    logits = np.asarray(aggregator(answers, training=False))
    if not np.isfinite(logits).all():
        raise RunError("The student answers NaN.")
    return float(np.mean(logits.argmax(-1) == labels[held_out]))


def _last_agreement(config: RunConfig, history: pathlib.Path) -> float:
    with history.open(newline="") as lines:
        values = [float(row[BEST_SIGNAL]) for row in csv.DictReader(lines)]
    return max(values) if config.keep_best else values[-1]
