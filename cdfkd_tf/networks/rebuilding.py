"""The same network once more: in another precision, or without its last step."""

from typing import Any

import keras
from keras import layers

from cdfkd_tf.runtime.keras_internals import input_of_only_call, is_graph, producer


def copy_in(model: keras.Model, dtype_policy: str) -> keras.Model:
    """A frozen copy whose layers compute in another precision.

    Args:
        model: functional or Sequential, with models in it at any depth.
        dtype_policy: of the copy's layers.

    Returns:
        A model of the same input and output, layers of the same names.

    Raises:
        ValueError: for a subclassed model. Layers that are not Keras's own may raise
            any other error when they are built again from their settings.
    """
    if not is_graph(model):
        raise ValueError("the connections of its layers are not known")
    copies: list[tuple[Any, Any]] = []

    def copied(layer):
        config = layer.get_config()
        if isinstance(layer, layers.Layer):
            config["dtype"] = dtype_policy
        copies.append((layer, type(layer).from_config(config)))
        return copies[-1][1]

    copy = keras.models.clone_model(model, clone_function=copied, recursive=True)
    for layer, again in copies:
        if isinstance(layer, layers.Layer) and layer.weights:
            again.set_weights(layer.get_weights())
    copy.trainable = False
    return copy


def with_float_input(model: keras.Model) -> keras.Model:
    """A copy that takes floats in the place of whole numbers, so that gradients pass.

    Args:
        model: any; those that take floats, or show no input, come back themselves.
    """
    if not is_graph(model) or "int" not in model.inputs[0].dtype:
        return model
    image = keras.Input(model.inputs[0].shape[1:], dtype=keras.config.floatx())
    copy = keras.models.clone_model(model, input_tensors=image)
    copy.set_weights(model.get_weights())
    return copy


def without_last_softmax(model: keras.Model) -> keras.Model | None:
    """The same layers up to the softmax that a network ends with.

    Args:
        model: any; only of a functional one is the end known.

    Returns:
        None if it has several outputs or does not end with an operation or a layer
        that is nothing but a softmax over classes.
    """
    if not is_graph(model) or len(model.outputs) != 1:
        return None
    (probabilities,) = model.outputs
    last = producer(probabilities)
    if type(last).__name__ != "Softmax":
        return None
    logits = input_of_only_call(last)
    if logits is None or last.axis not in (-1, len(logits.shape) - 1):
        return None
    return keras.Model(model.inputs, logits, name=model.name)


def ends_linear(model: keras.Model) -> bool:
    """Whether a network is seen to end with a layer of weights and no activation."""
    while is_graph(model) and len(model.outputs) == 1:
        last = producer(model.outputs[0])
        if not isinstance(last, keras.Model):
            return getattr(last, "activation", None) is keras.activations.linear
        model = last
    return False
