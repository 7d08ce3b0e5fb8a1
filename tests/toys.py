"""The toys that all tests share: networks, files, engines and runs, as small as can be.

Every image is 8 pixels wide, every network takes moments to trace. Whole runs are
traced, as users run.
"""

import dataclasses

import keras
import numpy as np
import tensorflow as tf
from absl import flags as absl_flags
from keras import layers, ops
from PIL import Image

from cdfkd_tf import cli
from cdfkd_tf.distillation.distiller import Distiller
from cdfkd_tf.distillation.image_source import DatasetImages, GeneratedImages
from cdfkd_tf.distillation.losses import Objective
from cdfkd_tf.distillation.methods import METHODS
from cdfkd_tf.distillation.optimizers import CoupledSGD, PaperAdam
from cdfkd_tf.distillation.replay import ReplayedImages
from cdfkd_tf.teachers.ensemble import TeacherEnsemble

SHAPE, CLASSES, LATENT, WIDTH = (8, 8, 1), 4, 6, 6
CLASS_NAMES = ("ant", "bee", "cat", "owl")


# Networks. Plain Keras, nothing of this package.


def classifier(
    shape=SHAPE, classes=CLASSES, *, norm=layers.BatchNormalization, depth=1, seed=None
):
    """Normalised images to logits. `seed`: as if trained, with own statistics."""
    x = image = keras.Input(shape)
    for _ in range(depth):
        x = layers.ReLU()(norm()(layers.Conv2D(WIDTH, 3, padding="same")(x)))
    x = layers.Dense(classes)(layers.GlobalAveragePooling2D()(x))
    model = keras.Model(image, x)
    if seed is not None:
        rng = np.random.default_rng(seed)
        model.set_weights([rng.uniform(0.1, 1, w.shape) for w in model.get_weights()])
    return model


def probabilities_of_bytes(shape=SHAPE, classes=CLASSES):
    """Pixels 0..255 to probabilities."""
    return keras.Sequential(
        [
            keras.Input(shape),
            layers.Rescaling(1 / 255),
            layers.Conv2D(4, 3),
            layers.BatchNormalization(),
            layers.Flatten(),
            layers.Dense(classes, activation="softmax"),
        ]
    )


def nested(shape=SHAPE, classes=CLASSES):
    """A model in a model, with a BatchNormalization in each."""
    backbone = keras.Sequential(
        [layers.Conv2D(5, 3), layers.BatchNormalization(), layers.ReLU()]
    )
    image = keras.Input(shape)
    tensor = layers.BatchNormalization()(backbone(image))
    return keras.Model(
        image, layers.Dense(classes)(layers.GlobalAveragePooling2D()(tensor))
    )


class Subclassed(keras.Model):
    """Layers inside layers inside a model without a graph."""

    def __init__(self, classes=CLASSES):
        super().__init__()
        self.backbone = nested()
        self.head = layers.Dense(classes)

    def call(self, images, training=False):
        return self.head(self.backbone(images, training=training))


class Casting(keras.layers.Layer):
    """Whole numbers: no gradient goes through."""

    def call(self, images):
        return tf.cast(tf.cast(images, tf.int32), tf.float32)


def student(num_headers, dropout=0.0, adapted=False):
    """A stack of headers on one convolution, whose maps losses may read."""
    x = image = keras.Input(SHAPE)
    if adapted:  # its count is a whole number
        x = layers.Normalization()
        x.adapt(images())
        x = x(image)
    x = layers.Conv2D(WIDTH, 3, padding="same", use_bias=False)(x)
    maps = layers.ReLU()(layers.BatchNormalization()(x))
    x = layers.Dropout(dropout)(maps) if dropout else maps
    features = [
        layers.Dense(WIDTH)(layers.GlobalAveragePooling2D()(x))
        for _ in range(num_headers)
    ]
    logits = [layers.Dense(CLASSES)(feature) for feature in features]
    stack = {"logits": ops.stack(logits, 1), "features": ops.stack(features, 1)}
    model = keras.Model(image, stack)
    model.feature_maps = (maps,)  # as `build_student` leaves them
    return model


def generator():
    """Noise to normalised images."""
    noise = keras.Input((LATENT,))
    x = layers.Reshape(SHAPE)(layers.Dense(int(np.prod(SHAPE)))(noise))
    return keras.Model(noise, layers.BatchNormalization(scale=False, center=False)(x))


# Engines.


def method(name="cdfkd_mfs", **changes):
    """A row of the table, with fields changed."""
    return dataclasses.replace(METHODS[name], **changes)


def distiller(
    row="cdfkd_mfs",
    *,
    num_teachers=2,
    student_steps=2,
    dropout=0.0,
    adapted=False,
    clip_gradients=0.0,
    recompute=False,
    updates_statistics=False,
    optimizers=None,
    xla=False,
    kept=0,
    fixed=None,
    **generating,
):
    """A compiled engine; its weights are the same at each call.

    Args:
        row: a method or its name.
        num_teachers: of different depths.
        student_steps: in each iteration.
        dropout: in the student.
        adapted: whether the student begins with an adapted Normalization.
        clip_gradients: of both roles.
        recompute: the teachers, in the generator's backward pass.
        updates_statistics: of the student, in the generator's step.
        optimizers: of student and generator. Small steps by default: large ones blow
            rounding up tenfold per update.
        xla: compile each update.
        kept: generated images in a ring to draw from; 0: none.
        fixed: a bank mixed with these.
        **generating: as in `GeneratedImages`.
    """
    keras.utils.set_random_seed(0)
    row = METHODS[row] if isinstance(row, str) else row
    models = [classifier(seed=i, depth=1 + i) for i in range(num_teachers)]
    teachers = TeacherEnsemble(models)
    headers = 1 if row.sharing == "single" else num_teachers
    network = student(headers, dropout, adapted)
    sgd, adam = optimizers or (CoupledSGD(0.02), PaperAdam(1e-3))
    if row.generator:
        source = GeneratedImages(
            generator(),
            teachers,
            Objective("generator", row),
            adam,
            student_steps=1 if kept else student_steps,
            batch_size=8,
            seed=0,
            clip_gradients=clip_gradients,
            recompute=recompute,
            updates_statistics=updates_statistics,
            **generating,
        )
        if kept:
            source = ReplayedImages(
                source,
                teachers,
                size=kept,
                student_steps=student_steps,
                batch_size=8,
                seed=0,
                features="feature" in row.student,
                fixed=fixed,
            )
    else:
        source = DatasetImages(None, 8, 0)  # fed by the tests
    engine = Distiller(network, teachers, row, source)
    engine.compile(sgd, clip_gradients=clip_gradients, xla=xla)
    return engine


def latents(steps=3, batch=8, seed=0):
    """Noise `(B, K + 1, Z)` of one iteration."""
    rng = np.random.default_rng(seed)
    return rng.standard_normal((batch, steps, LATENT)).astype(keras.config.floatx())


def images(count=8, seed=0):
    """Normalised images `(count, *SHAPE)`."""
    rng = np.random.default_rng(seed)
    return rng.standard_normal((count, *SHAPE)).astype(keras.config.floatx())


def values_of(model):
    """Copies of all weights, by path."""
    return {weight.path: np.array(weight) for weight in model.weights}


def moved(before, after):
    """Paths of the weights that differ."""
    return {path for path in before if not np.array_equal(before[path], after[path])}


def state_values(engine):
    """Name -> all variables of each network and optimiser."""
    return {
        name: [np.array(variable) for variable in part.variables]
        for name, part in engine.state.items()
    }


def largest_difference(ours, theirs):
    """Name -> largest difference of any number of two `state_values`."""
    return {
        name: max(float(np.abs(a - b).max()) for a, b in zip(ours[name], theirs[name]))
        for name in ours
    }


# Files and runs.


def image_folder(root, classes=("cat", "dog", "owl"), per_class=6, splits=None):
    """PNGs 10x8 of one grey value per class under `root/{train,test}/<class>/`."""
    rng = np.random.default_rng(0)
    for split in splits or ("train", "test"):
        for index, name in enumerate(classes):
            folder = root / split / name
            folder.mkdir(parents=True)
            for number in range(per_class):
                grey = rng.normal(60 * (index + 1), 20, size=(10, 8)).clip(0, 255)
                Image.fromarray(grey.astype("uint8")).save(folder / f"{number}.png")
    return root


# Networks of a run that takes no longer than tracing them.
NETWORKS = (
    "--student_headers=multi_level",
    "--generator_width=0.05",
    "--latent_size=4",
    "--student_steps=2",
    "--epochs=2",
    "--steps_per_epoch=3",
    "--batch_size=8",
    "--student_learning_rate=0.01",
    "--milestones=1",
    "--aggregator_epochs=2",
    "--noreport",
)


class Files:
    """Files of a toy run, and the flags that name them.

    Attributes:
        teachers: two model files.
        student: a backbone's file; its features are as wide as the teachers'.
        images: a folder of images, six of each class to learn from and to measure on.
        without_data: flags of a run that reads no image.
        with_data: flags of a run that reads the folder.
    """

    def __init__(self, folder):
        self.folder = folder
        self.teachers = [folder / f"teacher_{index}.keras" for index in range(2)]
        self.student, self.images = folder / "student.keras", folder / "images"
        own = (
            f"--teachers={','.join(map(str, self.teachers))}",
            "--teacher_input=normalised",
            "--method=cdfkd_mfs",
            f"--student={self.student}",
            f"--image_shape={','.join(map(str, SHAPE))}",
            *NETWORKS,
        )
        self.without_data = ("--dataset=none", "--export_formats=", *own)
        self.with_data = ("--dataset=folder", f"--image_folder={self.images}", *own)

    def make(self):
        """Writes them."""
        for index, file in enumerate(self.teachers):
            classifier(seed=index).save(file)
        image = keras.Input(SHAPE)
        maps = layers.Conv2D(WIDTH, 3, strides=2, padding="same")(image)
        keras.Model(image, layers.BatchNormalization()(maps)).save(self.student)
        image_folder(self.images, CLASS_NAMES)


def parse(*arguments):
    """The run that a command line describes."""
    values = absl_flags.FlagValues()
    cli.define(values)
    return cli.parse(["main.py", *arguments], values)


def run_main(*arguments):
    """The command line in this process; returns the exit code."""
    return cli.main(["main.py", *arguments], absl_flags.FlagValues())
