"""A small predictor, and its export with few images."""

import keras
import numpy as np
from keras import layers

from cdfkd_tf.data.specs import plain_spec
from cdfkd_tf.export.run import describe, export
from cdfkd_tf.networks.aggregators import build_aggregator, build_predictor
from cdfkd_tf.networks.students import build_student
from cdfkd_tf.teachers.rules import choose_rule

IMAGES = np.random.default_rng(0).uniform(size=(20, 8, 8, 1)).astype("float32")
NAMES = ["ant", "bee", "cat", "dög"]


def predictor_with(
    kind="mean",
    backbone="wrn10_1",
    headers=1,
    sharing="multi_level",
    side=8,
    mask=None,
    width=0.5,
):
    """A predictor whose statistics and scales are not those of a fresh network."""
    rng = np.random.default_rng(1)
    keras.utils.set_random_seed(0)
    shape = (side, side, 1)
    student = build_student(backbone, shape, 4, headers, width=width, sharing=sharing)
    known = np.ones((headers, 4), bool) if mask is None else np.array(mask, bool)
    norms = list(np.random.default_rng(2).uniform(1, 3, known.shape))
    rule = choose_rule("competence" if kind == "competence" else "mean", norms, known)
    aggregator = build_aggregator(kind, student, rule)
    for weight in (*student.weights, *aggregator.weights):
        positive = any(name in weight.path for name in ("variance", "gamma"))
        low, high = (0, 1) if positive else (-0.1, 0.1)
        weight.assign(weight + rng.uniform(low, high, weight.shape))
    return build_predictor(student, aggregator, (0.4,), (0.3,))


def own_predictor(part=None, *, shape=(None, None, 1), dtype="float32"):
    """A predictor on somebody's backbone, which has `part` between two convolutions.

    The backbone may take images of any size, and compute in another precision.
    """
    keras.utils.set_random_seed(0)
    keras.config.set_dtype_policy(dtype)
    x = image = keras.Input(shape)
    x = layers.Conv2D(4, 3, strides=2, padding="same", name="first")(x)
    x = part(x) if part else x
    x = layers.BatchNormalization()(layers.Conv2D(8, 3, padding="same")(x))
    squeezed = layers.Dense(8)(layers.Flatten()(layers.GlobalAveragePooling2D()(x)))
    x = layers.Multiply()([x, layers.Reshape((1, 1, 8))(squeezed)])
    backbone = keras.Model([image], x, name="backbone")
    keras.config.set_dtype_policy("float32")
    x = image = keras.Input((8, 8, 1), name="image")
    x = layers.GlobalAveragePooling2D()(backbone(x))
    x = layers.Softmax(dtype="float32")(layers.Dense(4, dtype="float32")(x))
    model = keras.Model(image, x)
    rng = np.random.default_rng(1)
    for weight in model.weights:
        weight.assign(weight + rng.uniform(0, 0.2, weight.shape))
    return model


def export_small(predictor, directory, formats, labels=None, **options):
    """`export` on two batches; calibration on the same images."""
    parts = (slice(0, 12), slice(12, 20))
    batches = [(IMAGES[p], None if labels is None else labels[p]) for p in parts]
    arguments = {
        "batches": batches,
        "calibration_pool": lambda count, seed: IMAGES,
        "description": describe(
            plain_spec("toy", (8, 8, 1), 4), NAMES, method="cdfkd_mfs", student="a"
        ),
    }
    return export(predictor, formats, directory, **{**arguments, **options})
