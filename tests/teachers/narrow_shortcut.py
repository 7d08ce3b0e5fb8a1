"""Asks a teacher whose filter gradients crash TensorFlow: run in its own process."""

import keras
import numpy as np
import tensorflow as tf
from keras import layers

from cdfkd_tf.data.specs import plain_spec
from cdfkd_tf.distillation.recompute import recomputed
from cdfkd_tf.teachers.ensemble import TeacherEnsemble
from cdfkd_tf.teachers.input_adapter import InputAdapter
from cdfkd_tf.teachers.teacher import Teacher

image = keras.Input((64, 64, 3))
maps = layers.Conv2D(8, 3, padding="same")(image)
maps = layers.BatchNormalization()(layers.Conv2D(16, 1, strides=2)(maps))
model = keras.Model(image, layers.Dense(4)(layers.GlobalAveragePooling2D()(maps)))

spec = plain_spec("none", (64, 64, 3), 4)
teacher = Teacher(model, InputAdapter(spec, "0..1", (64, 64, 3)), output="auto")
teacher.find_reading(None)
ensemble = TeacherEnsemble([teacher])
images = tf.constant(np.random.default_rng(0).normal(size=(6, 64, 64, 3)), "float32")


NEEDS = frozenset({"bn_statistics"})


@tf.function
def gradient(logits_of, images):
    with tf.GradientTape() as tape:
        tape.watch(images)
        loss = tf.reduce_sum(logits_of(images) ** 2)
    return tape.gradient(loss, images)


for logits_of in (
    lambda images: ensemble(images).logits,
    lambda images: ensemble(images, NEEDS).logits,
    lambda images: recomputed(ensemble, images, NEEDS)[0].logits,
):
    for _ in range(2):
        print(gradient(logits_of, images).shape)
