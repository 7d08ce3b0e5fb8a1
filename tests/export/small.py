"""A small predictor, and its export with few images."""

import keras
import numpy as np

from cdfkd_tf.export.run import describe, export
from cdfkd_tf.networks.aggregators import build_aggregator, build_predictor
from cdfkd_tf.networks.students import build_student

IMAGES = np.random.default_rng(0).uniform(size=(20, 8, 8, 1)).astype("float32")
NAMES = ["ant", "bee", "cat", "dög"]


def predictor_with(
    kind="mean", backbone="wrn10_1", headers=1, sharing="multi_level", side=8, mask=None
):
    """A predictor whose statistics and scales are not those of a fresh network."""
    rng = np.random.default_rng(1)
    keras.utils.set_random_seed(0)
    shape = (side, side, 1)
    student = build_student(backbone, shape, 4, headers, width=0.5, sharing=sharing)
    aggregator = build_aggregator(kind, student, mask)
    for weight in (*student.weights, *aggregator.weights):
        positive = any(name in weight.path for name in ("variance", "gamma"))
        low, high = (0, 1) if positive else (-0.1, 0.1)
        weight.assign(weight + rng.uniform(low, high, weight.shape))
    return build_predictor(student, aggregator, (0.4,), (0.3,))


def export_small(predictor, directory, formats, labels=None, **options):
    """`export` on two batches; calibration on the same images."""
    parts = (slice(0, 12), slice(12, 20))
    batches = [(IMAGES[p], None if labels is None else labels[p]) for p in parts]
    arguments = {
        "batches": batches,
        "calibration_pool": lambda count, seed: IMAGES,
        "description": describe(
            dataset="toy",
            method="cdfkd_mfs",
            student="wrn10_1",
            class_names=NAMES,
            image_shape=(8, 8, 1),
        ),
    }
    return export(predictor, formats, directory, **{**arguments, **options})
