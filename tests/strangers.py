"""Classifiers and files as strangers make them: plain Keras, nothing of ours."""

import keras
import numpy as np
import tensorflow as tf
from keras import layers
from PIL import Image


def logits(shape=(8, 8, 1), classes=4, norm=layers.BatchNormalization):
    image = keras.Input(shape)
    tensor = layers.ReLU()(norm()(layers.Conv2D(6, 3, padding="same")(image)))
    pooled = layers.GlobalAveragePooling2D()(tensor)
    return keras.Model(image, layers.Dense(classes)(pooled))


def probabilities_of_bytes(shape=(8, 8, 1), classes=4):
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


def nested(shape=(8, 8, 1), classes=4):
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

    def __init__(self, classes=4):
        super().__init__()
        self.backbone = nested()
        self.head = layers.Dense(classes)

    def call(self, images, training=False):
        return self.head(self.backbone(images, training=training))


class Casting(keras.layers.Layer):
    """Whole numbers: no gradient goes through."""

    def call(self, images):
        return tf.cast(tf.cast(images, tf.int32), tf.float32)


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
