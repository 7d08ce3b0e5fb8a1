"""Private parts of the libraries are still what we take them for."""

import keras
import pytest
import tensorflow as tf
from keras import layers

from cdfkd_tf.export.tflite import TfliteRunner, convert
from cdfkd_tf.runtime.keras_internals import (
    operation_definition,
    operator_names,
    use_earlier_quantizer,
)


@pytest.fixture(scope="module")
def model():
    image = keras.Input((4, 4, 1), name="image")
    maps = layers.Conv2D(2, 3, activation="relu", name="convolution")(image)
    logits = layers.Dense(2)(layers.Flatten()(maps))
    return keras.Model(image, layers.Softmax()(logits))


def test_operator_names_are_those_of_the_file(model):
    run = TfliteRunner(convert(model, quantised=False))
    names = operator_names(run._interpreter)
    assert {"CONV_2D", "FULLY_CONNECTED", "SOFTMAX"} <= set(names)
    assert "DELEGATE" not in names


def test_earlier_quantizer_is_one_that_the_converter_has(model):
    serve = tf.function(model, input_signature=[tf.TensorSpec((1, 4, 4, 1))])
    converter = tf.lite.TFLiteConverter.from_concrete_functions(
        [serve.get_concrete_function()], model
    )
    assert converter.experimental_new_quantizer is True
    use_earlier_quantizer(converter)
    assert converter.experimental_new_quantizer is False


def test_operation_definition_tells_state_and_strings():
    convolution, reading = map(operation_definition, ("Conv2D", "ReadVariableOp"))
    assert not convolution.is_stateful and reading.is_stateful
    padding = {a.name: a for a in convolution.attr}["padding"]
    assert b"SAME" in padding.allowed_values.list.s
    assert operation_definition("NoSuchOperation") is None
