"""What teachers would cost on a device."""

import keras
import pytest
from keras import layers

from cdfkd_tf.export.costs import teacher_costs
from cdfkd_tf.teachers.teacher import Teacher


def teacher_of(side):
    image = keras.Input((side, side, 1))
    maps = layers.GlobalAveragePooling2D()(layers.Conv2D(4, 3)(image))
    return Teacher(keras.Model(image, layers.Dense(3)(maps)))


def test_equal_teachers_of_another_image_size_are_measured_apart():
    small, large, again = teacher_costs([teacher_of(8), teacher_of(32), teacher_of(8)])
    assert small["multiply_adds"] == 6 * 6 * 9 * 4 + 12
    assert large["multiply_adds"] == 30 * 30 * 9 * 4 + 12
    assert large["latency_ms"] > small["latency_ms"] > 0
    assert again == small and small["bytes"] > 0


@pytest.mark.slow
def test_a_teacher_that_cannot_be_converted_has_no_cost(capsys):
    class Odd(layers.Layer):
        def call(self, inputs):
            import tensorflow as tf

            return tf.py_function(lambda x: x, [inputs], tf.float32)

        def compute_output_shape(self, shape):
            return shape

    image = keras.Input((8, 8, 1))
    maps = layers.GlobalAveragePooling2D()(image)
    model = keras.Model(image, layers.Dense(3)(maps))
    teacher = Teacher(model)
    teacher.model = keras.Sequential([model, Odd()])
    (cost,) = teacher_costs([teacher])
    assert cost["bytes"] is None and cost["latency_ms"] is None
    assert "no TFLite file" in capsys.readouterr().out
