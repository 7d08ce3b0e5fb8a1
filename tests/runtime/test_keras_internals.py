"""What is relied on in private parts of the libraries is still there."""

import grpc
import keras
import numpy as np
import pytest
import tensorflow as tf
from keras import layers
from keras.src.backend.common import global_state

from cdfkd_tf.export.tflite import TfliteRunner, convert
from cdfkd_tf.runtime import keras_internals as internals
from tests.rows import rows

ROWS = np.ones((2, 3), "float32")


def nested():
    inner = keras.Sequential([layers.Dense(3, name="a"), layers.BatchNormalization()])
    image = keras.Input((3,))
    hidden = inner(image)
    return keras.Model(image, layers.Dense(2, name="b")(hidden))


class Block(layers.Layer):
    """Layers inside a layer."""

    def __init__(self):
        super().__init__()
        self.first, self.second = layers.Dense(3, name="x"), layers.Dense(3, name="y")

    def call(self, inputs):
        return self.second(self.first(inputs))


class Doubled:
    """Wraps a layer's call; counts how often it was asked to."""

    def __init__(self):
        self.times = 0

    def __call__(self, layer, call):
        self.times += 1
        return lambda inputs: 2 * call(inputs)


# Walking.


def test_leaf_layers_are_those_without_layers_in_order():
    model = keras.Sequential([keras.Input((3,)), nested(), Block()])
    names = [layer.name for layer in internals.leaf_layers(model)]
    assert [name for name in names if len(name) == 1] == ["a", "b", "x", "y"]
    assert list(internals.leaf_layers(object())) == []


@pytest.mark.slow
def test_leaf_layers_shared_by_two_models_come_once():
    shared = layers.Dense(3)
    halves = [keras.Sequential([shared]) for _ in range(2)]
    image = keras.Input((3,))
    model = keras.Model(image, layers.Add()([half(image) for half in halves]))
    assert list(internals.leaf_layers(model)).count(shared) == 1


def test_all_layers_are_the_model_and_whatever_is_in_it():
    model = nested()
    found = internals.all_layers(model)
    assert found[0] is model
    assert {type(layer).__name__ for layer in found} >= {"Sequential", "Dense"}
    assert {"a", "b"} <= {layer.name for layer in found}


def test_is_graph_of_functional_and_built_sequential_models_alone():
    class Own(keras.Model):
        def call(self, inputs):
            return inputs

    own, sequential = Own(), keras.Sequential([layers.Dense(3)])
    own(ROWS)
    assert internals.is_graph(nested())
    assert not internals.is_graph(own) and not internals.is_graph(object())
    assert not internals.is_graph(sequential)
    sequential(ROWS)
    assert internals.is_graph(sequential)


def test_graph_tells_inputs_producers_and_readers():
    image = keras.Input((3,))
    first, second, third = (layers.Dense(3) for _ in range(3))
    hidden = first(image)
    keras.Model(image, [second(hidden), third(hidden)])
    assert internals.input_of_only_call(second) is hidden
    assert internals.producer(hidden) is first
    assert internals.num_readers(first) == 2 and internals.num_readers(second) == 0
    second(image)
    assert internals.input_of_only_call(second) is None
    assert internals.input_of_only_call(layers.Dense(3)) is None


# Replaced calls.


@pytest.mark.slow
def test_override_call_wraps_once_per_key_and_is_undone():
    layer, double = layers.Dense(2), Doubled()
    expected = np.asarray(layer(ROWS))
    for _ in range(2):
        internals.override_call(layer, "double", double)
    assert double.times == 1
    np.testing.assert_allclose(layer(ROWS), 2 * expected)
    for _ in range(2):
        internals.restore_calls([layer], "double")
        np.testing.assert_array_equal(layer(ROWS), expected)
        assert "call" not in vars(layer)
    internals.override_call(layer, "double", double)  # and again
    np.testing.assert_allclose(layer(ROWS), 2 * expected)


@pytest.mark.slow
def test_override_calls_of_several_keys_are_undone_one_by_one():
    layer = layers.Dense(2)
    expected = np.asarray(layer(ROWS))
    for key in "ab":
        internals.override_call(layer, key, Doubled())
    np.testing.assert_allclose(layer(ROWS), 4 * expected)
    internals.restore_calls([layer], "a")
    np.testing.assert_allclose(layer(ROWS), 2 * expected)
    internals.restore_calls([layer], "unknown")
    internals.restore_calls([layer], "b")
    np.testing.assert_array_equal(layer(ROWS), expected)


def test_override_call_gives_back_a_function_put_there_before():
    layer = layers.Dense(2)
    layer.build((None, 3))
    layer.call = lambda inputs: inputs + 1
    internals.override_call(layer, "double", Doubled())
    np.testing.assert_array_equal(layer(ROWS), 4 * np.ones_like(ROWS))
    internals.restore_calls([layer], "double")
    np.testing.assert_array_equal(layer(ROWS), ROWS + 1)


def test_override_call_reaches_layers_in_graphs_and_leaves_copies_and_files(tmp_path):
    model = nested()
    expected = np.asarray(model(ROWS))
    internals.override_call(model.get_layer("b"), "double", Doubled())
    np.testing.assert_allclose(model(ROWS), 2 * expected, rtol=1e-6)
    model.save(tmp_path / "model.keras")
    again = keras.saving.load_model(tmp_path / "model.keras")
    copy = keras.models.clone_model(model)
    copy.set_weights(model.get_weights())
    for other in (again, copy):
        np.testing.assert_allclose(other(ROWS), expected, rtol=1e-6)


# Freezing.


def flags(model):
    found = [layer.trainable for layer in internals.all_layers(model)]
    return found + [variable.trainable for variable in model.variables]


@rows("frozen", [None, "a", "b"])
def test_freeze_is_undone_as_often_as_done(frozen):
    model = nested()
    for layer in internals.leaf_layers(model):
        layer.trainable = layer.name != frozen
    model.layers[-1].bias.trainable = False
    before = flags(model)
    internals.freeze(model)
    internals.freeze(model)
    assert model.trainable_variables == [] and not any(flags(model)[:5])
    assert internals.unfreeze(model) == []
    assert model.trainable_variables == []
    assert set(internals.unfreeze(model)) == set(internals.all_layers(model))
    assert flags(model) == before
    assert internals.unfreeze(model) == [] and flags(model) == before


@pytest.mark.slow
def test_unfreeze_leaves_layers_frozen_that_another_model_still_holds():
    shared = layers.Dense(3)
    one, other = (keras.Sequential([keras.Input((3,)), shared]) for _ in range(2))
    for model in (one, other):
        internals.freeze(model)
    assert shared not in internals.unfreeze(one) and not shared.trainable
    assert shared in internals.unfreeze(other) and shared.trainable


# Optimisers, seeds, converters.


@rows("kind", [keras.optimizers.SGD, keras.optimizers.Adam])
def test_variable_index_is_the_place_in_the_optimizer(kind):
    variables = [keras.Variable(np.zeros(size), name=f"v{size}") for size in (2, 3)]
    optimizer = kind()
    optimizer.build(variables)
    found = [internals.variable_index(optimizer, variable) for variable in variables]
    assert found == [0, 1]


def test_adam_slots_are_the_means_of_gradient_and_square():
    variables = [keras.Variable(np.zeros(size), name=f"v{size}") for size in (2, 3)]
    optimizer = keras.optimizers.Adam(beta_1=0.9, beta_2=0.99)
    optimizer.build(variables)
    optimizer.apply([np.full(2, 1.0), np.full(3, 2.0)], variables)
    means, squares = internals.adam_slots(optimizer, variables[1])
    np.testing.assert_allclose(means, np.full(3, 0.2), rtol=1e-5)
    np.testing.assert_allclose(squares, np.full(3, 0.04), rtol=1e-5)


def test_model_without_symbolic_build_is_not_called_before_its_first_step():
    calls = []

    class Model(internals.WithoutSymbolicBuild, keras.Model):
        def call(self, inputs):
            calls.append(type(inputs))
            return inputs

        def train_step(self, data):
            return {"loss": tf.zeros(())}

    assert hasattr(keras.Model(), "_maybe_symbolic_build")
    model = Model()
    model.compile()
    model.fit(ROWS, verbose=0)
    assert calls == []


def test_random_state_puts_seeds_back():
    for _ in range(2):
        keras.utils.set_random_seed(3)
        expected = float(tf.random.uniform(()))
        keras.utils.set_random_seed(3)
        restore = internals.random_state()
        keras.utils.set_random_seed(8)
        restore()
        assert global_state.get_global_attribute("global_random_seed") == 3
        assert float(tf.random.uniform(())) == expected


@pytest.fixture(scope="module")
def model():
    image = keras.Input((4, 4, 1), name="image")
    maps = layers.Conv2D(2, 3, activation="relu", name="convolution")(image)
    logits = layers.Dense(2)(layers.Flatten()(maps))
    return keras.Model(image, layers.Softmax()(logits))


def test_operations_are_those_of_the_file(model):
    run = TfliteRunner(convert(model, quantised=False))
    names = [name for name, _ in internals.operations(run.interpreter)]
    assert {"CONV_2D", "FULLY_CONNECTED", "SOFTMAX"} <= set(names)
    assert "DELEGATE" not in names


def test_earlier_quantizer_is_one_that_the_converter_has(model):
    serve = tf.function(model, input_signature=[tf.TensorSpec((1, 4, 4, 1))])
    converter = tf.lite.TFLiteConverter.from_concrete_functions(
        [serve.get_concrete_function()], model
    )
    assert converter.experimental_new_quantizer is True
    internals.use_earlier_quantizer(converter)
    assert converter.experimental_new_quantizer is False


def test_limit_wait_for_oracle_is_what_workers_wait(monkeypatch):
    from keras_tuner.src.distribute import oracle_client

    monkeypatch.setattr(oracle_client, "TIMEOUT", oracle_client.TIMEOUT)
    monkeypatch.setenv("KERASTUNER_ORACLE_IP", "127.0.0.1")
    monkeypatch.setenv("KERASTUNER_ORACLE_PORT", "1")  # where nobody listens
    monkeypatch.setenv("KERASTUNER_TUNER_ID", "worker0")
    internals.limit_wait_for_oracle(0.1)
    with pytest.raises(grpc.RpcError):
        oracle_client.OracleClient(None).get_space()


def test_operation_definition_tells_state_and_strings():
    convolution, reading = map(
        internals.operation_definition, ("Conv2D", "ReadVariableOp")
    )
    assert not convolution.is_stateful and reading.is_stateful
    padding = {a.name: a for a in convolution.attr}["padding"]
    assert b"SAME" in padding.allowed_values.list.s
    assert internals.operation_definition("NoSuchOperation") is None


def test_stand_in_for_another_operation_is_found_by_name_when_a_model_is_rebuilt():
    one = keras.Input((3,))
    two = one * 2
    outer = keras.Operation(name="outer")
    internals.stand_in_for(outer, two)
    assert outer._inbound_nodes[0].output_tensors == [two]
    assert keras.Model(one, two).operations[-1].name == "outer"


def test_operation_module_is_that_of_keras_own_operations():
    name = type(internals.producer(keras.Input((3,)) / 2)).__name__
    module = internals.operation_module(name)
    config = {"module": module, "class_name": name, "config": {}}
    divide = keras.saving.deserialize_keras_object(config)
    np.testing.assert_array_equal(divide(np.ones(2, "float32"), 2), [0.5, 0.5])
    assert internals.operation_module("Magic") is None


def test_run_through_calls_each_layer_and_operation_of_inner_models_in_order():
    seen = []

    def call(layer, *args, **kwargs):
        seen.append(layer.name)
        return layer(*args, **kwargs)

    model = nested()
    model = keras.Model(model.input, {"twice": 2 * model.output, "once": model.output})
    outputs = internals.run_through(model, ROWS, call)
    assert seen[0] == "a" and seen[2] == "b" and len(seen) == 4
    np.testing.assert_array_equal(outputs["twice"], model(ROWS)["twice"])
    np.testing.assert_array_equal(outputs["once"], model(ROWS)["once"])


def test_learns_is_said_of_weights_that_training_moves_frozen_or_not():
    adapted = layers.Normalization()
    adapted.adapt(ROWS)
    plain = layers.BatchNormalization(scale=False, center=False)
    for layer, expected in [
        (layers.Dense(2), True),
        (plain, True),
        (adapted, False),
        (layers.RandomFlip(), False),
        (layers.Rescaling(2.0), False),
    ]:
        if not layer.built:
            layer.build((2, 3))
        for trainable in (True, False):
            layer.trainable = trainable
            assert internals.learns(layer) is expected


def test_inlined_function_reads_and_feeds_any_tensor_of_a_signature(tmp_path):
    image = keras.Input((3,))
    model = keras.Model(image, layers.Dense(2)(layers.Rescaling(0.5)(image)))
    model.export(tmp_path / "saved", verbose=False)
    loaded = tf.saved_model.load(str(tmp_path / "saved"))
    signature = loaded.signatures["serving_default"]
    inlined = internals.inlined_function(signature)
    kinds = {operation.type: operation for operation in inlined.graph.get_operations()}
    assert "StatefulPartitionedCall" not in kinds
    inputs = inlined.graph.get_tensor_by_name(signature.inputs[0].name)
    scaled = kinds["MatMul"].inputs[0]
    rows = tf.constant(ROWS)
    np.testing.assert_allclose(inlined.prune(inputs, scaled)(rows), ROWS / 2)
    # The variables are the file's own: what changes there, changes here.
    product = inlined.prune(scaled, kinds["MatMul"].outputs[0])
    kernel = next(v for v in loaded.variables if v.shape.rank == 2)
    kernel.assign(np.full((3, 2), 2.0))
    np.testing.assert_allclose(product(rows), np.full((2, 2), 6.0))
