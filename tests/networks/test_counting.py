"""Counted operations are those that papers state."""

import keras
import numpy as np
from keras import layers

from cdfkd_tf.networks.classifiers import build_classifier
from cdfkd_tf.networks.introspection import multiply_adds
from experiments.iteration_cost import iteration_multiply_adds


def test_published_networks_cost_what_is_published():
    for network, shape, classes, published in [
        ("resnet18", (224, 224, 3), 1000, 1.81e9),  # He et al.: 1.8e9
        ("resnet34", (224, 224, 3), 1000, 3.66e9),  # 3.6e9
        ("resnet18", (32, 32, 3), 100, 0.556e9),
        ("wrn40_2", (32, 32, 3), 100, 0.327e9),
    ]:
        counted = multiply_adds(build_classifier(network, shape, classes))
        np.testing.assert_allclose(counted, published, rtol=0.02)


def test_each_kind_of_layer_by_hand():
    model = keras.Sequential(
        [
            keras.Input((8, 6, 3)),
            layers.Conv2D(4, 3, padding="same", strides=2),  # 4*3 pixels, 27 taps
            layers.DepthwiseConv2D(3, padding="same"),  # 9 taps a channel
            layers.Conv2DTranspose(2, 4, strides=2),  # 16 taps out of each pixel
            keras.Sequential([layers.GlobalAveragePooling2D(), layers.Dense(7)]),
        ]
    )
    expected = 12 * 27 * 4 + 12 * 9 * 4 + 12 * 16 * 4 * 2 + 2 * 7
    assert multiply_adds(model) == expected


def test_an_iteration_is_its_rounds():
    shared = {"batch_size": 2, "student_steps": 5}
    student, teachers, generator = 10, 100, 1000
    expected = 2 * (5 * (1000 + 100 + 30) + 3000 + 200 + 20)
    assert iteration_multiply_adds(student, teachers, generator, **shared) == expected
    assert iteration_multiply_adds(student, teachers, 0, **shared) == 2 * 5 * 130
