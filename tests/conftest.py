"""Tiny networks and helpers that many tests share."""

import contextlib
import os

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import keras
import numpy as np
import pytest
import tensorflow as tf
from absl import flags as absl_flags
from cdfkd_tf.distillation.adversarial import AdversarialDistiller
from sklearn.datasets import load_digits
from sklearn.utils import Bunch

from cdfkd_tf import cli
from cdfkd_tf.data.prepare import prepared_builder
from cdfkd_tf.data.specs import spec_of
from cdfkd_tf.distillation.methods import METHODS, with_overrides
from cdfkd_tf.distillation.optimizers import CoupledSGD, PaperAdam
from cdfkd_tf.networks.classifiers import build_classifier
from cdfkd_tf.networks.generators import build_generator
from cdfkd_tf.networks.students import build_student
from cdfkd_tf.teachers.ensemble import TeacherEnsemble

SHAPE, CLASSES, LATENT = (8, 8, 1), 4, 6
TOY = (
    "--teacher=wrn10_1",
    "--num_teachers=2",
    "--teacher_width=0.25",
    "--teacher_epochs=1",
    "--teacher_batch_size=128",
    "--student=wrn10_1",
    "--student_width=0.25",
    "--generator_width=0.125",
    "--student_feature_weight=0",
    "--latent_size=8",
    "--student_rounds=2",
    "--epochs=2",
    "--steps_per_epoch=2",
    "--batch_size=8",
    "--milestones=1",
    "--aggregator_epochs=2",
    "--noreport",
)


# Whole runs take longest: what starts last must not keep one worker waiting.
LONGEST_FIRST = (
    "test_flagfiles",
    "test_search",
    "test_multi_worker",
    "test_mirrored",
    "test_kills",
    "test_rivals",
    "test_strangers",
    "test_strangers_learn",
    "export/test_format",
    "distillation/test_parity",
    "test_checkpoints",
    "test_adversarial",
    "test_api",
    "test_runs",
    "test_methods",
    "test_cli",
    "export/test_run",
)


def pytest_collection_modifyitems(items):
    def place(item):
        path = str(item.path.with_suffix(""))
        ranks = (i for i, name in enumerate(LONGEST_FIRST) if path.endswith(name))
        return next(ranks, len(LONGEST_FIRST))

    items.sort(key=place)


@pytest.fixture(scope="session")
def data_dir(tmp_path_factory):
    """A TFDS folder that the whole session shares, with a fifth of the digits."""
    return few_digits(tmp_path_factory.mktemp("tfds"))


def few_digits(folder):
    """`folder`, with a fifth of the digits prepared."""
    digits = load_digits()
    few = Bunch(images=digits.images[::5], target=digits.target[::5])
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("sklearn.datasets.load_digits", lambda: few)
        prepared_builder(spec_of("digits"), str(folder))
    return folder


@contextlib.contextmanager
def untraced():
    """What would be traced runs line by line: tracing a run takes most of its time."""
    tf.config.run_functions_eagerly(True)
    try:
        yield
    finally:
        tf.config.run_functions_eagerly(False)


@pytest.fixture
def eagerly():
    """This test is untraced."""
    with untraced():
        yield


@pytest.fixture(scope="module")
def all_eagerly():
    """All tests of a module are untraced, and what they share."""
    with untraced():
        yield


@pytest.fixture
def float64():
    """Networks, noise and losses in double precision, where rounding cannot drift."""
    before = keras.config.floatx(), keras.config.dtype_policy()
    keras.config.set_floatx("float64")
    keras.config.set_dtype_policy("float64")
    yield
    keras.config.set_floatx(before[0])
    keras.config.set_dtype_policy(before[1])


def tiny_distiller(method="cdfkd_mfs", num_teachers=2, seed=0, mixed=False, **kwargs):
    """An engine on 8x8 images with 4 classes, its weights drawn from `seed`.

    `mixed`: every second teacher is of another architecture.
    """
    keras.utils.set_random_seed(seed)
    row = with_overrides(
        METHODS[method], student_feature=0 if method == "cdfkd_mfs" else None
    )
    headers = 1 if row.sharing == "single" else num_teachers
    teachers = TeacherEnsemble(
        [
            build_classifier(
                "wrn16_1" if mixed and i % 2 else "wrn10_1", SHAPE, CLASSES
            )
            for i in range(num_teachers)
        ]
    )
    student = build_student(
        "wrn10_1", SHAPE, CLASSES, headers, sharing=row.sharing, width=0.5
    )
    generator = build_generator("dafl", SHAPE, LATENT, standardised=True)
    distiller = AdversarialDistiller(student, teachers, row, generator, **kwargs)
    distiller.compile(CoupledSGD(0.1), PaperAdam(1e-3))
    return distiller


def latents(rounds=3, batch=8, seed=0):
    """Noise `(B, R, Z)` for the tiny engine."""
    rng = np.random.default_rng(seed)
    return rng.standard_normal((batch, rounds, LATENT)).astype("float32")


def values_of(model):
    """Copies of all weights, by path."""
    return {weight.path: np.array(weight) for weight in model.weights}


def moved(before, after):
    """Paths of the weights that differ."""
    return {path for path in before if not np.array_equal(before[path], after[path])}


def run_main(*arguments):
    """The command line in this process; returns the exit code."""
    return cli.main(["main.py", *arguments], absl_flags.FlagValues())
