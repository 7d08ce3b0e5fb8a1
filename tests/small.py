"""The smallest networks that have all parts: seconds to trace, even on replicas."""

import keras
import numpy as np
from cdfkd_tf.distillation.adversarial import AdversarialDistiller
from keras import layers, ops

from cdfkd_tf.distillation.distiller import Distiller
from cdfkd_tf.distillation.methods import METHODS, with_overrides
from cdfkd_tf.distillation.optimizers import CoupledSGD, PaperAdam
from cdfkd_tf.teachers.ensemble import TeacherEnsemble

SHAPE, CLASSES, LATENT, WIDTH = (4, 4, 1), 3, 6, 5


def small_teacher(seed, depth=1):
    """A convolution and a BatchNormalization that has seen something, or several."""
    rng = np.random.default_rng(seed)
    x = images = keras.Input(SHAPE)
    for _ in range(depth):
        x = layers.Conv2D(WIDTH, 3, padding="same")(x)
        x = layers.ReLU()(layers.BatchNormalization()(x))
    x = layers.Dense(CLASSES)(layers.GlobalAveragePooling2D()(x))
    model = keras.Model(images, x)
    model.set_weights([rng.uniform(0.1, 1, w.shape) for w in model.get_weights()])
    return model


def small_student(num_headers, dropout=0.0):
    x = images = keras.Input(SHAPE)
    x = layers.Conv2D(4, 3, padding="same", use_bias=False)(x)
    x = layers.ReLU()(layers.BatchNormalization()(x))
    x = layers.Dropout(dropout)(x)
    features = [
        layers.Dense(WIDTH)(layers.GlobalAveragePooling2D()(x))
        for _ in range(num_headers)
    ]
    logits = [layers.Dense(CLASSES)(feature) for feature in features]
    stack = {"logits": ops.stack(logits, 1), "features": ops.stack(features, 1)}
    return keras.Model(images, stack)


def small_generator():
    noise = keras.Input((LATENT,))
    x = layers.Reshape(SHAPE)(layers.Dense(int(np.prod(SHAPE)))(noise))
    return keras.Model(noise, layers.BatchNormalization(scale=False, center=False)(x))


def small_distiller(
    method="cdfkd_mfs", *, num_teachers=2, dropout=0.0, clip_gradients=0.0, **kwargs
):
    """An engine of these; its weights are the same at each call."""
    keras.utils.set_random_seed(0)
    weights = {"student_feature": 0.2} if method == "cdfkd_mfs" else {}
    row = with_overrides(METHODS[method], **weights)
    teachers = TeacherEnsemble(
        [small_teacher(index, depth=1 + index) for index in range(num_teachers)]
    )
    student = small_student(1 if row.sharing == "single" else num_teachers, dropout)
    if not row.generator:
        distiller = Distiller(student, teachers, row, **kwargs)
        distiller.compile(CoupledSGD(0.02), clip_gradients=clip_gradients)
        return distiller
    distiller = AdversarialDistiller(
        student, teachers, row, small_generator(), **kwargs
    )
    # Small steps: large ones blow rounding up tenfold per update.
    optimizers = CoupledSGD(0.02), PaperAdam(1e-3)
    distiller.compile(*optimizers, clip_gradients=clip_gradients)
    return distiller


def small_latents(rounds=3, batch=8, seed=0):
    rng = np.random.default_rng(seed)
    return rng.standard_normal((batch, rounds, LATENT)).astype(keras.config.floatx())


def state_values(distiller):
    """Name -> all variables of each network and optimiser."""
    return {
        name: [np.array(variable) for variable in part.variables]
        for name, part in distiller.state.items()
    }


def largest_difference(ours, theirs):
    return {
        name: max(float(np.abs(a - b).max()) for a, b in zip(ours[name], theirs[name]))
        for name in ours
    }


def small_run(folder):
    """Flags of a run of such networks, whose files go into `folder`."""
    teachers = [folder / f"teacher{index}.keras" for index in range(2)]
    for index, file in enumerate(teachers):
        small_teacher(index).save(file)
    images = keras.Input(SHAPE)
    maps = layers.Conv2D(4, 3, strides=2, padding="same")(images)
    student = folder / "small_student.keras"
    keras.Model(images, layers.BatchNormalization()(maps)).save(student)
    return [
        "--dataset=none",
        "--image_shape=4,4,1",
        f"--teachers={','.join(map(str, teachers))}",
        f"--student={student}",
        "--student_headers=multi_level",
        "--student_feature_weight=0",
        "--generator_width=0.05",
        "--latent_size=4",
        "--student_rounds=2",
        "--epochs=2",
        "--steps_per_epoch=3",
        "--batch_size=8",
        "--student_learning_rate=0.01",
        "--milestones=1",
        "--export_formats=",
        "--noreport",
    ]
