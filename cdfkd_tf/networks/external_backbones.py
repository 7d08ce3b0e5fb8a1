"""Backbones by any name: built in, a model file, or one of `keras.applications`."""

import inspect
import pathlib
from collections.abc import Callable, Sequence

import keras
from keras import KerasTensor, layers

from cdfkd_tf.data.specs import DatasetSpec
from cdfkd_tf.errors import RequestError, one_line
from cdfkd_tf.networks.backbones import BACKBONES
from cdfkd_tf.networks.layers import Trunk
from cdfkd_tf.networks.loading import load_network
from cdfkd_tf.networks.pixel_ranges import NORMALISED, expected_values, rescaling_to

# Long averages suit millions of images; distillations are shorter.
_MOST_MOMENTUM = 0.9


def find_backbone(
    name: str, spec: DatasetSpec, feature_layers: Sequence[str] = ()
) -> Callable[[KerasTensor, float], Trunk]:
    """The builder of the trunk called `name`: `(normalised image, width) -> Trunk`.

    Args:
        name: a key of `BACKBONES`; a `.keras` file, whose weights the student starts
            from; or a function of `keras.applications`, without weights.
        spec: of the images.
        feature_layers: names of the layers whose maps the headers read, finest first;
            empty: found at each change of resolution. For files and applications.

    Raises:
        RequestError: unknown name, or layers named for a built-in network. The
            builder raises it for a missing or unsuitable file, image size or width.
    """
    if name in BACKBONES:
        if feature_layers:
            raise RequestError(
                "--student_feature_layers names layers of a file or of "
                f"keras.applications; --student={name} brings its own. Leave it out."
            )
        return BACKBONES[name]
    is_file = name.endswith((".keras", ".h5"))
    if not is_file and name not in applications():
        raise RequestError(
            f"Unknown network {name!r}. Known: {', '.join(BACKBONES)}; a .keras file; "
            f"or of keras.applications {', '.join(applications())}."
        )
    load = _load_file if is_file else _build_application

    def build(image: KerasTensor, width: float) -> Trunk:
        return _trunk_of(load(name, width, spec), name, image, spec, feature_layers)

    return build


def applications() -> list[str]:
    """The networks that `keras.applications` builds."""
    known = vars(keras.applications)
    return sorted(n for n in known if n[0].isupper() and callable(known[n]))


def _build_application(name: str, width: float, spec: DatasetSpec) -> keras.Model:
    build = getattr(keras.applications, name)
    options = {"weights": None, "include_top": False, "input_shape": spec.image_shape}
    if width != 1:
        if "alpha" not in inspect.signature(build).parameters:
            raise RequestError(
                f"--student_width={width} cannot scale {name}; it scales the built-in "
                "networks and the MobileNets. Use --student_width=1."
            )
        options["alpha"] = width
    try:
        return build(**options)
    except ValueError as error:  # images too small, unsuitable alpha
        raise RequestError(
            f"keras.applications.{name} cannot take images of {spec.image_shape}: "
            f"{one_line(error)}"
        ) from error


def _load_file(name: str, width: float, spec: DatasetSpec) -> keras.Model:
    if width != 1:
        raise RequestError(
            f"--student_width={width} cannot scale the network in {name}. Use 1."
        )
    if not pathlib.Path(name).is_file():
        raise RequestError(f"There is no student file {name}. Check --student.")
    return load_network(pathlib.Path(name), "student")


def _trunk_of(model, name, image, spec, feature_layers) -> Trunk:
    """The model's maps on top of `image`, with the model's weights."""
    inputs = getattr(model, "inputs", None)
    if not isinstance(model, keras.Model) or not inputs:
        raise RequestError(f"The student {name} must be a functional Keras model.")
    wanted = tuple(inputs[0].shape[1:])
    if len(inputs) != 1 or len(wanted) != 3:
        raise RequestError(f"The student {name} must take one batch of images.")
    if any(w not in (None, h) for w, h in zip(wanted, spec.image_shape)):
        raise RequestError(
            f"The student {name} takes images {wanted}; the data set's are "
            f"{spec.image_shape}. Save it with an input of that shape."
        )
    for layer in model.layers:
        if isinstance(layer, layers.BatchNormalization):
            layer.momentum = min(layer.momentum, _MOST_MOMENTUM)
        layer.trainable = True
    if feature_layers:
        maps = [_named_map(model, name, layer) for layer in feature_layers]
    else:
        maps = _maps_by_resolution(model, name)
    rescale = rescaling_to(spec, expected_values(model, NORMALISED))
    pixels = rescale(image) if rescale else image
    return Trunk(maps=_as_list(keras.Model(model.inputs, maps)(pixels)))


def _named_map(model, name, layer_name) -> KerasTensor:
    try:
        tensor = model.get_layer(layer_name).output
    except ValueError as error:
        known = [layer.name for layer in model.layers if _is_map(layer)]
        raise RequestError(
            f"The student {name} has no layer {layer_name!r}; its last layers with "
            f"maps are {', '.join(known[-8:])}."
        ) from error
    if len(tensor.shape) != 4:
        raise RequestError(
            f"--student_feature_layers={layer_name}: expected a layer whose output is "
            f"maps (B, height, width, channels); it is {tensor.shape}."
        )
    return tensor


def _maps_by_resolution(model, name) -> list[KerasTensor]:
    """One map per resolution: the narrowest through which every path goes.

    So no branch inside a block; at or behind the last merge of branches at that
    resolution. Resolutions are the halvings of the image down to the last map's.
    """
    cuts = [layer for layer in _cut_layers(model) if _is_map(layer)]
    if not cuts:
        raise RequestError(
            f"Found no maps in the student {name}: expected a functional model of "
            "convolutions, its layers not hidden in another model. Name the layers "
            "with --student_feature_layers, or save the inner model."
        )
    smallest, side = cuts[-1].output.shape[1], model.inputs[0].shape[1]
    maps = []
    while side is not None and side > max(1, smallest):
        side = -(-side // 2)
        level = [layer for layer in cuts if layer.output.shape[1] == side]
        merges = [i for i, layer in enumerate(level) if isinstance(layer.input, list)]
        level = [layer.output for layer in level[merges[-1] if merges else 0 :]]
        if level:  # of equally narrow ones, the last
            maps.append(min(reversed(level), key=lambda tensor: tensor.shape[-1]))
    return maps or [cuts[-1].output]


def _cut_layers(model) -> list[keras.layers.Layer]:
    """Layers that every path from image to output goes through, in order.

    In topological order: those that no connection jumps over.
    """
    order = [x for x in model.layers if not isinstance(x, layers.InputLayer)]
    place = {id(_as_list(layer.output)[0]): i for i, layer in enumerate(order)}
    last_reader = [0] * len(order)
    for index, layer in enumerate(order):
        for tensor in _as_list(layer.input):
            if id(tensor) in place:
                last_reader[place[id(tensor)]] = index
    cuts, reach = [], 0
    for index, layer in enumerate(order):
        if reach <= index:
            cuts.append(layer)
        reach = max(reach, last_reader[index])
    return cuts


def _is_map(layer) -> bool:
    return len(getattr(layer.output, "shape", ())) == 4


def _as_list(value) -> list:
    return list(value) if isinstance(value, (list, tuple)) else [value]
