"""Three different classifiers in plain Keras, as they come from elsewhere.

Each builder gives an untrained model, the factor on images in [0, 1] that makes its
pixel values, and whether it returns logits.
"""

import keras
from keras import layers

SIDE = 24


def conv_block(
    tensor: keras.KerasTensor, filters: int, stride: int = 1
) -> keras.KerasTensor:
    """Convolution 3x3, BatchNormalization, ReLU of `(B, height, width, channels)`."""
    tensor = layers.Conv2D(filters, 3, stride, padding="same", use_bias=False)(tensor)
    return layers.ReLU()(layers.BatchNormalization(momentum=0.9)(tensor))


Built = tuple[keras.Model, int, bool]


def logits_for_unit_pixels() -> Built:
    """Functional, grey values in [0, 1] to logits."""
    image = keras.Input((SIDE, SIDE, 1))
    tensor = conv_block(conv_block(image, 24), 32, 2)
    tensor = conv_block(conv_block(tensor, 48, 2), 64)
    tensor = layers.GlobalAveragePooling2D()(tensor)
    return keras.Model(image, layers.Dense(10)(tensor)), 1, True


def probabilities_for_bytes() -> Built:
    """Sequential, Rescaling inside: grey values in [0, 255] to probabilities."""
    model = keras.Sequential([keras.Input((SIDE, SIDE, 1)), layers.Rescaling(1 / 255)])
    for filters in (24, 32, 64):
        model.add(layers.Conv2D(filters, 3, padding="same"))
        model.add(layers.BatchNormalization(momentum=0.9))
        model.add(layers.ReLU())
        model.add(layers.MaxPooling2D())
    model.add(layers.Flatten())
    model.add(layers.Dropout(0.2))
    model.add(layers.Dense(10, activation="softmax"))
    return model, 255, False


def nested_backbone() -> Built:
    """A residual backbone as one layer of a classifier, as transfer learning has it."""
    image = keras.Input((None, None, 1))
    tensor = conv_block(image, 32, 2)
    for _ in range(2):
        inner = conv_block(conv_block(tensor, 32), 32)
        tensor = layers.Add()([tensor, inner])
    backbone = keras.Model(image, conv_block(tensor, 64, 2), name="backbone")
    outer = keras.Input((SIDE, SIDE, 1))
    tensor = layers.GlobalAveragePooling2D()(backbone(outer))
    return keras.Model(outer, layers.Dense(10)(tensor)), 1, True


TEACHERS = {
    "a": logits_for_unit_pixels,
    "b": probabilities_for_bytes,
    "c": nested_backbone,
}
