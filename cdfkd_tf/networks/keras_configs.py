"""Descriptions of networks in Keras files: old ones made today's, wrong ones explained.

A Keras file describes its network in JSON: classes, their arguments, and which layer
reads which. Keras 3 reads its own; those of Keras 2 differ in names, in arguments that
went, and in operations on tensors, which were layers without a class of Keras 3.
"""

import copy
import inspect
from collections.abc import Callable, Iterator
from typing import Any

import keras
import numpy as np
from keras import KerasTensor, layers, ops

from cdfkd_tf.errors import RequestError, reason
from cdfkd_tf.runtime.keras_internals import operation_module, stand_in_for

_MODELS = {
    "Functional": ("keras.src.models.functional", "Functional"),
    "Model": ("keras.src.models.functional", "Functional"),
    "Sequential": ("keras", "Sequential"),
}
# Classes that went -> what computes the same; where layers are random, at inference.
_RENAMED = {
    **{"BatchNormalizationV1": "BatchNormalization", "FixedDropout": "Dropout"},
    **{"BatchNormalizationV2": "BatchNormalization", "ThresholdedReLU": "ReLU"},
    **{"SyncBatchNormalization": "BatchNormalization"},
    **{"RandomHeight": "Identity", "RandomWidth": "Identity"},
}
# Arguments that Keras 3 does not know: of no effect, or of none with this value.
_UNUSED = {
    *("fused", "implementation", "rng_type", "input_dtype", "renorm_momentum"),
    *("query_shape", "key_shape", "value_shape", "trainable"),
}
_NEUTRAL = {
    **{"groups": 1, "time_major": False, "renorm": False, "ragged": False},
    **{"softmax_robust_masking": False},
}
_RENAMED_ARGUMENTS = {
    "LeakyReLU": {"alpha": "negative_slope"},
    "ThresholdedReLU": {"theta": "threshold"},
}
_EXPORT = "model.export('folder') where it was made gives a SavedModel, which is read"


def modernised(entry: dict[str, Any]) -> dict[str, Any]:
    """The description of a model or layer as Keras 3 reads it.

    Args:
        entry: `class_name`, `config` and more, as stored by Keras 2 or 3; left as it
            is. Initializers and regularizers are dropped: weights come from the file.
    """
    name, config = entry["class_name"], entry["config"]
    new = {key: entry[key] for key in ("name", "inbound_nodes") if key in entry}
    name = _RENAMED.get(name.rpartition(">")[2], name)
    if name in _MODELS:
        new["module"], name = _MODELS[name]
        config = _model_config(name, config)
    elif name in ("TFOpLambda", "SlicingOpLambda"):
        new["module"], name = __name__, "OldOperation"
        new["registered_name"] = "cdfkd_tf>OldOperation"
        config = {"function": config["function"], "name": config["name"]}
    elif "trainable" not in config and (module := operation_module(name)):
        new["module"] = module  # some are called as layers are: Add, Softmax
    elif hasattr(layers, name):
        new["module"] = "keras.layers"
        config = _layer_config(name, entry["class_name"], config)
    else:
        new["registered_name"] = entry.get("registered_name") or name
        new |= {
            "module": entry.get("module"),
            "build_config": entry.get("build_config"),
        }
    if "name" in new:
        new["name"] = _plain(new["name"])
    if isinstance(config, dict) and config.get("name"):
        config = {**config, "name": _plain(config["name"])}
    return {**new, "class_name": name, "config": config}


def _plain(name: str) -> str:
    return name.replace("/", "_")  # Keras 3 allows none in names of layers


def _model_config(class_name: str, config: Any) -> dict[str, Any]:
    if isinstance(config, list):  # a Sequential before Keras 2.3
        config = {"name": "sequential", "layers": config}
    entries = config["layers"]
    new = {**config, "layers": [modernised(entry) for entry in entries]}
    if class_name == "Sequential":
        shape = entries[0]["config"].get("batch_input_shape") if entries else None
        if shape and entries[0]["class_name"] != "InputLayer":
            config = {"batch_input_shape": shape, "name": "image"}
            first = modernised({"class_name": "InputLayer", "config": config})
            new["layers"].insert(0, first)
        return new
    # Nodes of inner models count from 1: Keras 2 called each once as it built it.
    first = {e["name"]: int(e["class_name"] in _MODELS) for e in entries if "name" in e}
    for entry, old in zip(new["layers"], entries):
        nodes = old.get("inbound_nodes", [])
        entry["inbound_nodes"] = [_node(node, first) for node in nodes]
    sequentials = {e["name"] for e in entries if e["class_name"] == "Sequential"}
    for key in ("input_layers", "output_layers"):
        new[key] = _ends(config[key], sequentials)
    return new


def _ends(value: Any, sequentials: set[str]) -> Any:
    """References to a model's inputs or outputs, `[name, node, tensor]` in lists."""
    if isinstance(value, dict):
        return {key: _ends(item, sequentials) for key, item in value.items()}
    if not (value and isinstance(value[0], str)):
        ends = [_ends(item, sequentials) for item in value]
        return ends[0] if len(ends) == 1 else ends
    name, node, tensor = value
    # Keras 3 itself subtracts one for functional models, not for Sequential ones.
    return [_plain(name), node - (name in sequentials), tensor]


def _node(node: Any, first: dict[str, int]) -> Any:
    """One call of a layer: its arguments in Keras 3's form.

    Args:
        node: `[name, node, tensor, keywords]`, or a list of these, as Keras 2 stores
            it; others are Keras 3's.
        first: name of a layer -> the number of its first call.
    """
    if not isinstance(node, list) or not node:
        return node
    flat = isinstance(node[0], str)
    inputs = [node] if flat else node
    if not all(isinstance(item, list) and isinstance(item[0], str) for item in inputs):
        return node
    tensors = [
        item[2] if item[0] == "_CONSTANT_VALUE" else _reference(item[:3], first)
        for item in inputs
    ]
    keywords = inputs[-1][3] if len(inputs[-1]) > 3 else {}
    keywords = {key: _references(value, first) for key, value in keywords.items()}
    return {"args": tensors if len(tensors) == 1 else [tensors], "kwargs": keywords}


def _references(value: Any, first: dict[str, int]) -> Any:
    if not isinstance(value, list):
        return value
    if len(value) == 3 and isinstance(value[0], str) and value[0] in first:
        return _reference(value, first)
    return [_references(item, first) for item in value]


def _reference(place: list[Any], first: dict[str, int]) -> dict[str, Any]:
    name, node, tensor = place
    history = [_plain(name), node - first.get(name, 0), tensor]
    config = {"shape": [], "dtype": "float32", "keras_history": history}
    return {"class_name": "__keras_tensor__", "config": config}


def _layer_config(name: str, old_name: str, config: dict[str, Any]) -> dict[str, Any]:
    if name == "Identity":  # in the place of layers that do nothing at inference
        config = {key: config[key] for key in ("name", "dtype") if key in config}
    new = {
        key: _inner(value)
        for key, value in config.items()
        if not key.endswith(("_initializer", "_regularizer"))
    }
    shape = new.pop("batch_input_shape", None)
    if shape and name == "InputLayer":
        new["batch_shape"] = shape
    for key in _RENAMED_ARGUMENTS.get(old_name, {}).keys() & new.keys():
        new[_RENAMED_ARGUMENTS[old_name][key]] = new.pop(key)
    axis = new.get("axis")
    if isinstance(axis, list) and len(axis) == 1 and name == "BatchNormalization":
        new["axis"] = axis[0]
    for key in unknown_arguments(name, new):
        neutral = new[key] is None or key in _UNUSED
        if neutral or (key in _NEUTRAL and new[key] == _NEUTRAL[key]):
            del new[key]
    return new


def _inner(value: Any) -> Any:
    """An argument of a layer: another layer, a policy, a tuple, or a plain value."""
    if not isinstance(value, dict) or "class_name" not in value:
        return value
    kind = value["class_name"]
    if kind in ("__tuple__", "TensorShape"):
        return value["items"]
    if kind == "__numpy__" and isinstance(value.get("config"), dict):
        return value["config"]["value"]
    if kind in ("Policy", "PolicyV1"):
        return value["config"]["name"]
    is_layer = kind in _MODELS or hasattr(layers, kind)
    return modernised(value) if is_layer and "config" in value else value


def unknown_arguments(class_name: str, config: dict[str, Any]) -> list[str]:
    """The keys of a layer's `config` that its class in Keras 3 does not take."""
    known: set[str] = set()
    for cls in getattr(layers, class_name).__mro__:
        parameters = inspect.signature(cls.__init__).parameters
        known |= set(parameters)
        if not any(p.kind is p.VAR_KEYWORD for p in parameters.values()):
            break  # passes nothing on
    return [key for key in config if key not in known]


def with_old_functions(value: Any) -> Any:
    """A description of Keras 2 in which functions that changed since are the old ones.

    Only `hard_sigmoid` did: it was steeper.
    """
    if isinstance(value, dict):
        return {key: with_old_functions(item) for key, item in value.items()}
    if isinstance(value, list):
        return [with_old_functions(item) for item in value]
    if value == "hard_sigmoid":
        return {"class_name": "function", "config": "cdfkd_tf>hard_sigmoid_of_keras_2"}
    return value


@keras.saving.register_keras_serializable("cdfkd_tf", "hard_sigmoid_of_keras_2")
def hard_sigmoid_of_keras_2(x: KerasTensor) -> KerasTensor:
    """`min(max(0.2 x + 0.5, 0), 1)`, any shape; that of Keras 3 has the slope 1/6."""
    return ops.clip(0.2 * x + 0.5, 0.0, 1.0)


@keras.saving.register_keras_serializable("cdfkd_tf")
class OldOperation(keras.Operation):
    """A function of TensorFlow that Keras 2 stored in place of a layer.

    It calls what Keras 3 has for it, and is itself no part of the network.

    Args:
        function: its name below `tf`, such as `math.truediv`.
        name: of the layer.

    Raises:
        RequestError: when called, for a function that is not known here.
    """

    def __init__(self, function: str, name: str | None = None):
        super().__init__(name=name)
        # The first versions of these compute the same; those on images do not.
        version_1 = function.removeprefix("compat.v1.")
        self._function = function if version_1.startswith("image.") else version_1

    def __call__(self, *inputs: Any, name: Any = None, **keywords: Any) -> Any:
        """See the class; `name` is TensorFlow's and says nothing."""
        if self._function not in _FUNCTIONS:
            raise RequestError(
                f"Layer {self.name} is the operation tf.{self._function} of Keras 2, "
                f"which is not read here: {_EXPORT}."
            )
        outputs = _FUNCTIONS[self._function](*inputs, **keywords)
        stand_in_for(self, outputs)
        return outputs


def _slices(x: KerasTensor, slice_spec: Any) -> KerasTensor:
    def index(item):
        if not isinstance(item, dict):
            return item
        if "start" in item:
            return slice(item["start"], item["stop"], item["step"])
        return Ellipsis

    several = isinstance(slice_spec, list)
    return x[tuple(map(index, slice_spec)) if several else index(slice_spec)]


def _binary(function: Callable) -> Callable:
    """With arrays for lists of numbers."""

    def call(x, y):
        x, y = (np.float32(v) if isinstance(v, list) else v for v in (x, y))
        return function(x, y)

    return call


def _reduced(function: Callable) -> Callable:
    return lambda x, axis=None, keepdims=False: function(x, axis, keepdims=keepdims)


def _resized(images, size, method="bilinear", preserve_aspect_ratio=False, **options):
    if preserve_aspect_ratio:
        raise ValueError("preserve_aspect_ratio is not known")
    return ops.image.resize(images, size, interpolation=method, **options)


def _padded(tensor, paddings, mode="CONSTANT", constant_values=0):
    constant = {"constant_values": constant_values} if mode == "CONSTANT" else {}
    return ops.pad(tensor, paddings, mode.lower(), **constant)


def _same_name(*names: str) -> dict[str, Callable]:
    return {name: getattr(ops, name.rpartition(".")[2]) for name in names}


# Names below `tf` -> the same of Keras 3, with TensorFlow's names of arguments.
_FUNCTIONS: dict[str, Callable] = {
    "__operators__.getitem": _slices,
    "__operators__.add": _binary(ops.add),
    "math.add": _binary(ops.add),
    "math.subtract": _binary(ops.subtract),
    "math.multiply": _binary(ops.multiply),
    "math.truediv": _binary(ops.true_divide),
    "math.divide": _binary(ops.true_divide),
    "math.pow": _binary(ops.power),
    "math.maximum": _binary(ops.maximum),
    "math.minimum": _binary(ops.minimum),
    "linalg.matmul": lambda a, b: ops.matmul(a, b),
    "math.reduce_mean": _reduced(ops.mean),
    "math.reduce_sum": _reduced(ops.sum),
    "math.reduce_max": _reduced(ops.max),
    "math.reduce_min": _reduced(ops.min),
    "math.reduce_std": _reduced(ops.std),
    "math.reduce_variance": _reduced(ops.var),
    **_same_name("math.exp", "math.log", "math.sqrt", "math.rsqrt", "math.square"),
    **_same_name("math.abs", "math.negative", "math.tanh", "math.sigmoid"),
    **_same_name("nn.tanh", "nn.sigmoid", "nn.relu", "nn.relu6", "nn.elu", "nn.selu"),
    **_same_name("nn.silu", "nn.softplus", "math.softplus"),
    "nn.swish": ops.silu,
    "nn.leaky_relu": lambda x, alpha=0.2: ops.leaky_relu(x, alpha),
    "nn.gelu": lambda x, approximate=False: ops.gelu(x, approximate),
    "nn.softmax": lambda x, axis=-1: ops.softmax(x, axis),
    # Keras takes the smallest norm, TensorFlow its square.
    "math.l2_normalize": lambda x, axis=-1, epsilon=1e-12: ops.normalize(
        x, axis, epsilon=epsilon**0.5
    ),
    "clip_by_value": lambda t, clip_value_min, clip_value_max: ops.clip(
        t, clip_value_min, clip_value_max
    ),
    "cast": lambda x, dtype: ops.cast(x, dtype),
    "reshape": lambda tensor, shape: ops.reshape(tensor, shape),
    "transpose": lambda a, perm=None, conjugate=False: ops.transpose(a, perm),
    "expand_dims": lambda x, axis: ops.expand_dims(x, axis),
    "squeeze": lambda x, axis=None: ops.squeeze(x, axis),
    "reverse": lambda tensor, axis: ops.flip(tensor, axis),
    "concat": lambda values, axis: ops.concatenate(values, axis),
    "stack": lambda values, axis=0: ops.stack(values, axis),
    "split": lambda value, num_or_size_splits, axis=0: ops.split(
        value, _sections(num_or_size_splits), axis
    ),
    "pad": _padded,
    "image.resize": _resized,
    "identity": lambda x: ops.multiply(x, 1),
}


def _sections(parts: int | list[int]) -> int | list[int]:
    """TensorFlow lists sizes, Keras where to cut."""
    return parts if isinstance(parts, int) else np.cumsum(parts)[:-1].tolist()


def explanation(entry: dict[str, Any], version: str, error: Exception) -> str:
    """Why the network that a file describes cannot be made: the first layer at fault.

    Args:
        entry: the description, modernised.
        version: of the Keras that saved it.
        error: what making it raised.
    """
    saved = ""
    if version != keras.__version__:
        saved = f" The file was saved by Keras {version}; here is {keras.__version__}."
    for layer in _layers_in(entry):
        kind, config = layer["class_name"], layer["config"]
        name = config.get("name") if isinstance(config, dict) else config
        if kind == "Lambda":
            return (
                f"Layer {name} is a Lambda, Python code in the file, which is never "
                f"run: {_EXPORT}; or put a layer or an operation of Keras in its place."
            )
        if kind == "TFSMLayer":
            return f"Layer {name} is a TFSMLayer, a SavedModel. Give that SavedModel."
        known = hasattr(layers, kind) or operation_module(kind)
        registered = layer.get("registered_name")
        if not known and not keras.saving.get_registered_object(registered):
            return (
                f"Layer {name} is of the class {kind}, which is none of Keras "
                f"{keras.__version__}. {_EXPORT}; or call cdfkd_tf.distill([model]) "
                "from Python, where the class is known."
            )
        unknown = unknown_arguments(kind, config) if hasattr(layers, kind) else []
        if unknown:
            return (
                f"Layer {name} ({kind}) has the argument {unknown[0]}="
                f"{config[unknown[0]]!r}, which this Keras does not know.{saved} "
                f"{_EXPORT}."
            )
        try:
            alone = {key: layer.get(key) for key in ("module", "registered_name")}
            alone |= {"class_name": kind, "config": copy.deepcopy(config)}
            keras.saving.deserialize_keras_object(alone, safe_mode=True)
        except Exception as cause:  # anybody's class, with whatever it raises
            return f"Layer {name} ({kind}): {_innermost(cause)}{saved} {_EXPORT}."
    return f"{_innermost(error)}{saved}"


def _innermost(error: Exception) -> str:
    """What was raised first, out of what Keras wraps around it."""
    return reason(str(error).rpartition("Exception encountered: ")[2], 400)


def _layers_in(entry: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """The layers of a model at any depth, without the models around them."""
    if entry["class_name"] in _MODELS:
        for inner in entry["config"]["layers"]:
            yield from _layers_in(inner)
    else:
        yield entry
