"""Every call into private parts of the libraries, behind functions of plain names.

Each has a test in `tests/runtime/test_keras_internals.py` that fails when a
library changes what is relied on here.
"""

import importlib
import types
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import keras
from keras import KerasTensor

_CALLS, _FROZEN = "_cdfkd_calls", "_cdfkd_frozen"  # names of layers' attributes


def leaf_layers(model: keras.Model) -> Iterator[keras.layers.Layer]:
    """Layers that hold no other layers, at any depth, in order, each once.

    Layers that contain layers (nested models, wrappers, one's own blocks) are gone
    through in turn. A model without layers (a SavedModel) yields none.
    """
    seen: set[int] = set()

    def leaves(parent):
        children = getattr(parent, "layers", None) or getattr(parent, "_layers", ())
        for layer in children:
            if id(layer) in seen:
                continue
            seen.add(id(layer))
            inner = getattr(layer, "layers", None) or getattr(layer, "_layers", ())
            if inner:
                yield from leaves(layer)
            else:
                yield layer

    return leaves(model)


def is_graph(model: keras.Model) -> bool:
    """Whether a model shows how its layers are connected: functional or Sequential.

    A Sequential that is not built does not, yet.
    """
    return bool(getattr(model, "inputs", None))


def input_of_only_call(layer: keras.layers.Layer) -> KerasTensor | None:
    """The symbolic tensor, of any shape, that a layer reads.

    None if it is not called just once, in functional models.
    """
    if len(layer._inbound_nodes) != 1:
        return None
    return layer._inbound_nodes[0].input_tensors[0]


def producer(tensor: KerasTensor) -> keras.Operation:
    """The layer, or other operation, whose call made a symbolic tensor."""
    return tensor._keras_history.operation


def num_readers(layer: keras.layers.Layer) -> int:
    """How often the outputs of a layer are read by others in functional models."""
    return len(layer._outbound_nodes)


def learns(layer: keras.layers.Layer) -> bool:
    """Whether a layer has weights that training moves, or the statistics of one.

    Frozen or not; preprocessing that is adapted before training has none.
    """
    is_norm = isinstance(layer, keras.layers.BatchNormalization)
    return is_norm or bool(getattr(layer, "_trainable_variables", ()))


def override_call(
    layer: keras.layers.Layer, key: str, wrapper: Callable[[Any, Callable], Callable]
) -> None:
    """Replaces `layer.call` by `wrapper(layer, layer.call)`, at most once per key.

    Classes stay as they are, and so do files saved later. Whatever thread calls the
    layer calls the same function.

    Args:
        layer: changed in place.
        key: name of the change; a second one of this name changes nothing.
        wrapper: gives a function that takes what `layer.call` takes.
    """
    # Into `vars` directly: Keras tracks and locks what is assigned to attributes.
    calls = vars(layer).setdefault(_CALLS, {"before": vars(layer).get("call")})
    if key not in calls:
        calls[key] = wrapper
        _wrap(layer, calls)


def restore_calls(layers: Iterable[keras.layers.Layer], key: str) -> None:
    """Takes one `override_call` back; layers that have none of this key are left."""
    for layer in layers:
        calls = vars(layer).get(_CALLS, {})
        if calls.pop(key, None):
            _wrap(layer, calls)


def _wrap(layer, calls):
    before, *wrappers = calls.values()
    vars(layer).pop("call", None)
    if before is not None:  # a function put there before
        vars(layer)["call"] = before
    for wrapper in wrappers:
        vars(layer)["call"] = wrapper(layer, layer.call)
    if not wrappers:
        del vars(layer)[_CALLS]


def freeze(model: keras.Model) -> None:
    """Sets a model and all that is inside untrainable, until as many `unfreeze`s."""
    parts = all_layers(model)
    for part in parts:
        own = getattr(part, "_trainable_variables", ())
        flags = [(variable, variable.trainable) for variable in own]
        record = vars(part).setdefault(_FROZEN, [0, part.trainable, flags])
        record[0] += 1
    for part in parts:
        part.trainable = False


def unfreeze(model: keras.Model) -> list[keras.layers.Layer]:
    """Takes one `freeze` back; the last one restores each layer's and weight's flag.

    Returns:
        The layers for which this was the last one: other models may share some.
    """
    free = []
    for part in all_layers(model):
        record = vars(part).get(_FROZEN, [0])
        record[0] -= 1
        if record[0] == 0:
            _, trainable, flags = vars(part).pop(_FROZEN)
            # Not by the property of layers, which sets all layers inside, too.
            is_layer = isinstance(part, keras.layers.Layer)
            setattr(part, "_trainable" if is_layer else "trainable", trainable)
            for variable, flag in flags:
                variable.trainable = flag
            free.append(part)
    return free


def all_layers(model: keras.Model) -> list[keras.layers.Layer]:
    """A model and all layers in it, at any depth, those with layers included."""
    is_layer = isinstance(model, keras.layers.Layer)
    return list(model._flatten_layers()) if is_layer else [model]


def variable_index(
    optimizer: keras.optimizers.Optimizer, variable: keras.Variable
) -> int:
    """The place of a variable among those that an optimiser was built for."""
    return optimizer._get_variable_index(variable)


def adam_slots(optimizer: keras.optimizers.Adam, variable: keras.Variable) -> tuple:
    """Adam's running means of a variable's gradient and its square, shaped like it."""
    index = optimizer._get_variable_index(variable)
    return optimizer._momentums[index], optimizer._velocities[index]


class WithoutSymbolicBuild:
    """A model that `fit` does not build by a symbolic call.

    There is nothing left to build, and Keras's way fails where hosts share a batch.
    """

    def _maybe_symbolic_build(self, iterator=None, data_batch=None):
        pass


def random_state() -> Callable[[], None]:
    """Remembers TensorFlow's and Keras's global seeds and op determinism.

    Returns:
        A function that puts all of it back.
    """
    from keras.src.backend.common import global_state
    from keras.src.random import seed_generator
    from tensorflow.python.eager import context
    from tensorflow.python.framework import config

    names = (seed_generator.GLOBAL_SEED_GENERATOR, "global_random_seed")
    attributes = {name: global_state.get_global_attribute(name) for name in names}
    current = context.context()
    # The generator of operations' seeds is there once a seed is set.
    seed, rng = current._seed, getattr(current, "_rng", None)
    deterministic = config.is_op_determinism_enabled()

    def restore() -> None:
        for name, value in attributes.items():
            global_state.set_global_attribute(name, value)
        current._set_global_seed(seed)
        if rng is not None:
            current._rng = rng
        if not deterministic:
            config.disable_op_determinism()

    return restore


def operations(interpreter: Any) -> list[tuple[str, list[int]]]:
    """Name and indices of the outputs of each operation in a TFLite file, in order.

    Args:
        interpreter: of `ai_edge_litert`, its tensors allocated.
    """
    known = interpreter._get_ops_details()
    found = [(one["op_name"], [int(i) for i in one["outputs"]]) for one in known]
    return [(name, outputs) for name, outputs in found if name != "DELEGATE"]


def use_earlier_quantizer(converter: Any) -> None:
    """Lets a `tf.lite.TFLiteConverter` quantise as it did before TensorFlow 2.5."""
    converter.experimental_new_quantizer = False


def limit_wait_for_oracle(seconds: float) -> None:
    """How long Keras Tuner's workers wait for an answer of their chief; else an hour.

    They then raise a `grpc.RpcError`.
    """
    from keras_tuner.src.distribute import oracle_client

    oracle_client.TIMEOUT = seconds


def operation_definition(name: str) -> Any | None:
    """What TensorFlow registers for an operation (an `OpDef`); None if unknown."""
    from tensorflow.python.framework import op_def_registry

    return op_def_registry.get(name)


def stand_in_for(operation: keras.Operation, outputs: Any) -> None:
    """Notes tensors that another operation made as the outputs of a call of this one.

    What reads them by this one's name when a model is rebuilt finds them; the other
    one gets its name.
    """
    tensors = keras.tree.flatten(outputs)
    producer(tensors[0]).name = operation.name
    operation._inbound_nodes.append(types.SimpleNamespace(output_tensors=tensors))


def operation_module(name: str) -> str | None:
    """The module of an operation of Keras (`TrueDivide`), as files of Keras name it."""
    for module in ("numpy", "nn", "math", "image", "core", "linalg"):
        module = f"keras.src.ops.{module}"
        found = getattr(importlib.import_module(module), name, None)
        if isinstance(found, type) and issubclass(found, keras.Operation):
            return module
    return None


def run_through(model: keras.Model, inputs: Any, call: Callable[..., Any]) -> Any:
    """Goes through a functional or Sequential model and the models in it, in order.

    Args:
        model: see `is_graph`.
        inputs: its inputs, symbolic or not.
        call: called in place of each layer and operation, `(layer, *args, **kwargs)`.

    Returns:
        The outputs.
    """

    def calls(layer):
        inner = isinstance(layer, keras.Model) and is_graph(layer)
        if inner:
            return lambda tensors, **_: run_through(layer, tensors, call)
        return lambda *args, **kwargs: call(layer, *args, **kwargs)

    graph = getattr(model, "_functional", None) or model  # of a Sequential
    outputs = graph._run_through_graph(inputs, operation_fn=calls)
    return keras.tree.pack_sequence_as(
        graph._outputs_struct, keras.tree.flatten(outputs)
    )


def inlined_function(function: Any) -> Any:
    """A concrete function as one graph without calls; its variables stay its own.

    Returns:
        A function whose `prune(feeds, fetches)` takes tensors of its `graph`.
    """
    import tensorflow as tf
    from tensorflow.python.framework import convert_to_constants

    inlined = convert_to_constants._run_inline_graph_optimization(
        function, lower_control_flow=False, aggressive_inlining=False
    )

    def body():
        graph = tf.compat.v1.get_default_graph()
        captures = {
            inner.name: graph.capture(outer) for outer, inner in function.graph.captures
        }
        tf.graph_util.import_graph_def(inlined, captures, name="")

    return tf.compat.v1.wrap_function(body, [])
