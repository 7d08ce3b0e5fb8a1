"""What a trial is judged by; never the test split."""

import pathlib
from collections.abc import Sequence
from typing import Any

import keras
import numpy as np

from cdfkd_tf.config import RunConfig
from cdfkd_tf.distillation.fit_aggregator import choose_aggregator
from cdfkd_tf.distillation.image_source import HELD_OUT_SEED
from cdfkd_tf.distillation.methods import METHODS
from cdfkd_tf.errors import RequestError, RunError
from cdfkd_tf.networks.aggregators import (
    AGGREGATORS,
    aggregator_kind,
    build_aggregator,
)
from cdfkd_tf.runtime.files import replacing
from cdfkd_tf.teachers.rules import Rule

POOL = "generated_pool.npz"  # within a trial's folder
_IMAGES = 256


def objective_name(config: RunConfig) -> str:
    """What trials of this request are judged by, in [0, 1]; more is better.

    Raises:
        RequestError: neither labelled samples nor generated images to judge by.
    """
    if config.labelled_samples:
        return "held_out_accuracy"
    if "real" in (config.images or METHODS[config.method].images):
        raise RequestError(
            f"--action=search with --method={config.method} has no generated images to "
            "judge by. Give labelled ones with --labelled_samples."
        )
    return "agreement_pooled"


def held_out_accuracy(run: Any, images: np.ndarray, labels: np.ndarray) -> float:
    """Accuracy of student and aggregator on images that the aggregator did not see.

    The first half is held out; all are, where the aggregator learns nothing.

    Args:
        run: `pipeline.steps.Run` of a distilled trial.
        images: normalised, `(n, height, width, channels)`, n at least 2.
        labels: `(n,)`.

    Raises:
        RunError: logits that are not finite.
    """
    config, student = run.config, run.network("student", "distill")
    kind, rule = config.aggregator, run.teachers.rule
    kind, held_out = aggregator_kind(kind, student, rule), slice(None)
    outputs = student.predict(images, batch_size=config.batch_size, verbose=0)
    if kind in AGGREGATORS and not AGGREGATORS[kind].learned:
        aggregator = build_aggregator(kind, student, rule)
    else:
        held_out = slice(max(1, len(labels) // 2))
        aggregator, _ = choose_aggregator(
            kind,
            student,
            rule,
            {name: part[held_out.stop :] for name, part in outputs.items()},
            labels[held_out.stop :],
            epochs=config.aggregator_epochs,
            learning_rate=config.aggregator_learning_rate,
            seed=config.seed,
        )
    judged = {name: part[held_out] for name, part in outputs.items()}
    logits = _finite(np.asarray(aggregator(judged, training=False)))
    return float(np.mean(logits.argmax(-1) == labels[held_out]))


def pooled_agreement(
    student: keras.Model, rule: Rule, trials: Sequence[pathlib.Path]
) -> float:
    """Share of all trials' generated images on which student and teachers agree.

    A trial's own images alone would tell nothing: those of a weak generator are easy
    to agree on. Every trial's count alike.

    Args:
        student: normalised images to logits `(B, H, C)`.
        rule: of its teachers, by which its headers are joined.
        trials: folders of distilled trials, each with the images that it kept.

    Raises:
        RunError: logits that are not finite.
    """
    shares = []
    for folder in trials:
        with np.load(folder / POOL, allow_pickle=False) as pool:
            logits = student.predict(pool["images"], verbose=0)["logits"]
            classes = np.asarray(rule(_finite(logits))).argmax(-1)
            shares.append(np.mean(classes == pool["classes"]))
    return float(np.mean(shares))


def keep_images(run: Any) -> None:
    """Writes a trial's generated images, and the teachers' classes, to judge all by.

    Images of held-out noise through its earlier generators, or through its last one if
    it was too short to keep any.

    Args:
        run: `pipeline.steps.Run` of a distilled trial.
    """
    if run.workdir.earlier_images.exists():
        with np.load(run.workdir.earlier_images, allow_pickle=False) as kept:
            images = np.concatenate(kept["images"])
            classes = np.concatenate(kept["classes"])
    else:
        pixels = run.unlabelled_images(_IMAGES, HELD_OUT_SEED)
        images = run.spec.normalise(pixels).astype("float32")
        mean = run.teachers.combined(run.teachers(images).logits)
        classes = np.asarray(mean).argmax(-1)
    with replacing(run.workdir.path / POOL) as temporary:
        np.savez(temporary, images=images, classes=classes)


def _finite(logits: np.ndarray) -> np.ndarray:
    if not np.isfinite(logits).all():
        raise RunError("The student's logits are not finite.")
    return logits
