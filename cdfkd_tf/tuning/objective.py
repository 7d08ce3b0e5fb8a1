"""What a trial is judged by. Never the test split."""

import pathlib
from collections.abc import Iterable

import keras
import numpy as np

from cdfkd_tf.assembly import HELD_OUT_SEED, Assembly
from cdfkd_tf.config import RunConfig
from cdfkd_tf.distillation.fit_aggregator import fit_aggregator
from cdfkd_tf.distillation.methods import METHODS
from cdfkd_tf.errors import RequestError, RunError
from cdfkd_tf.networks.aggregators import build_aggregator
from cdfkd_tf.runtime.files import replacing

HELD_OUT_ACCURACY = "held_out_accuracy"
POOLED_AGREEMENT = "agreement_pooled"
POOL = "invented_pool.npz"
_IMAGES = 256


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
    return POOLED_AGREEMENT


def judge(config: RunConfig, assembly: Assembly) -> float:
    """The objective of a distilled trial.

    With real samples: accuracy of student and aggregator on half of them, which the
    aggregator does not see (on all of them if it is the mean, which learns nothing).
    Without: agreement with the teachers on images of held-out noise, through the
    generators of all trials so far.

    Args:
        config: the trial's.
        assembly: of the same.

    Raises:
        RunError: the student's answers are no numbers.
    """
    if not config.real_samples:
        keep_images(assembly)
        folders = assembly.workdir.path.parent.glob(f"trial_*/{POOL}")
        return pooled_agreement(assembly, [file.parent for file in sorted(folders)])
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


def pooled_agreement(assembly: Assembly, trials: Iterable[pathlib.Path]) -> float:
    """Share of the trials' invented images on which the student says what they should.

    A trial's own images alone would tell nothing: those of a weak generator are easy
    to agree on. Every trial's count alike.

    Args:
        assembly: of a distilled trial.
        trials: folders of distilled trials, each with the images that it kept.

    Raises:
        RunError: the student's answers are no numbers.
    """
    student = assembly.load(assembly.workdir.student, "distill")
    shares = []
    for folder in trials:
        with np.load(folder / POOL, allow_pickle=False) as pool:
            classes, answers = pool["classes"], _answers(student, pool["images"])
        shares.append(np.mean(answers.argmax(-1) == classes))
    return float(np.mean(shares))


def keep_images(assembly: Assembly) -> None:
    """Leaves a trial's invented images, and the teachers' classes, for all to judge by.

    Those of held-out noise through its earlier generators, or, if it was too short to
    keep any, through its last one.

    Args:
        assembly: of a distilled trial.
    """
    workdir = assembly.workdir
    earlier = workdir.checkpoints / "earlier_images.npz"
    if earlier.exists():
        with np.load(earlier, allow_pickle=False) as kept:
            images = kept["images"].reshape(-1, *assembly.spec.image_shape)
            classes = kept["classes"].reshape(-1)
    else:
        pixels = assembly.unlabelled_pixels(_IMAGES, HELD_OUT_SEED)
        images = assembly.spec.normalise(pixels).astype("float32")
        classes = np.asarray(assembly.ask_ensemble(images)).argmax(-1)
    with replacing(workdir.path / POOL) as temporary:
        np.savez(temporary, images=images, classes=classes)


def _answers(student: keras.Model, images: np.ndarray) -> np.ndarray:
    """Mean header `(n, C)`."""
    logits = student.predict(images, verbose=0)["logits"].mean(axis=1)
    if not np.isfinite(logits).all():
        raise RunError("The student answers NaN.")
    return logits
