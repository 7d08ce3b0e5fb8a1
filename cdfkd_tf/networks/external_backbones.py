"""Backbones made of networks from elsewhere: model files and `keras.applications`."""

import collections
import inspect
import itertools
import pathlib
from collections.abc import Sequence

import keras
from keras import KerasTensor, layers

from cdfkd_tf.data.specs import DatasetSpec
from cdfkd_tf.errors import RequestError, reason
from cdfkd_tf.networks.layers import Trunk
from cdfkd_tf.networks.loading import load_network
from cdfkd_tf.networks.pixel_ranges import NORMALISED
from cdfkd_tf.networks.preprocessing import find_values, rescaling_to
from cdfkd_tf.runtime.keras_internals import is_graph, run_through

# Long averages suit millions of images; distillations are shorter.
_MOST_MOMENTUM = 0.9


def applications() -> list[str]:
    """The networks that `keras.applications` builds."""
    known = vars(keras.applications)
    return sorted(n for n in known if n[0].isupper() and callable(known[n]))


def load_application(name: str, width: float, spec: DatasetSpec) -> keras.Model:
    """A network of `keras.applications` for these images, with fresh weights.

    Args:
        name: one of `applications`.
        width: its `alpha`, a factor on its channels; 1: as published.
        spec: of the images.

    Returns:
        Images `(B, *image_shape)` to maps, without a classifier on top.

    Raises:
        RequestError: an image size or a width that it does not have.
    """
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
            f"{reason(error)} Choose another --student or --image_shape."
        ) from error


def load_student(name: str, width: float, spec: DatasetSpec) -> keras.Model:
    """The network in a file, for images of this size, with its weights.

    Args:
        name: a file that `load_network` reads.
        width: 1; others are refused.
        spec: of the images.

    Returns:
        A functional model of `(B, *image_shape)`, without models inside.

    Raises:
        RequestError: an unreadable file, a network that shows no layers, takes other
            images or is to be scaled.
    """
    if width != 1:
        raise RequestError(
            f"--student_width={width} cannot scale the network in {name}. Use 1."
        )
    model = load_network(pathlib.Path(name), "student")
    if not is_graph(model):
        raise RequestError(f"The student {name} must be a functional Keras model.")
    wanted = tuple(model.inputs[0].shape[1:])
    if len(model.inputs) != 1 or len(wanted) != 3:
        raise RequestError(f"The student {name} must take one batch of images.")
    if any(w not in (None, h) for w, h in zip(wanted, spec.image_shape)):
        raise RequestError(
            f"The student {name} takes images {wanted}; the data set's are "
            f"{spec.image_shape}. Save it with an input of that shape."
        )
    try:
        return _flat_copy(model, spec.image_shape)
    except ValueError as error:  # too small for it, a name twice, a class of theirs
        raise RequestError(
            f"The student {name} cannot be built for images of {spec.image_shape}: "
            f"{reason(error)}"
        ) from error


def _flat_copy(model: keras.Model, image_shape: tuple[int, ...]) -> keras.Model:
    """The same function for images of one size, without models inside models.

    A strided 1x1 convolution reads every so manieth pixel first: see `layers.conv`.
    All of it trains, as the layers that a file froze, or called as in inference.
    """
    copies: dict[int, tuple[keras.Operation, keras.Operation]] = {}
    names: collections.Counter[str] = collections.Counter()

    def copy_of(layer, **changes):
        if id(layer) not in copies:
            names[layer.name] += 1
            if names[layer.name] > 1:  # once in each of two inner models
                changes["name"] = f"{layer.name}_{names[layer.name]}"
            own = type(layer).from_config({**layer.get_config(), **changes})
            copies[id(layer)] = layer, own
        return copies[id(layer)][1]

    def call(layer, *args, training=None, **kwargs):
        is_pointwise = type(layer) is layers.Conv2D and layer.kernel_size == (1, 1)
        if not is_pointwise or max(layer.strides) == 1:
            return copy_of(layer)(*args, **kwargs)
        pool = layers.AveragePooling2D(
            1,
            layer.strides,
            data_format=layer.data_format,
            dtype=layer.dtype_policy,
            name=f"{layer.name}_stride",
        )
        return copy_of(layer, strides=(1, 1))(pool(args[0]))

    image = keras.Input(image_shape)
    copy = keras.Model(image, run_through(model, image, call), name=model.name)
    for layer, own in copies.values():
        if isinstance(layer, layers.Layer):
            own.set_weights(layer.get_weights())
        if hasattr(own, "finalize_state"):  # a Normalization computes with others
            own.finalize_state()
    return copy


def trunk_of(
    model: keras.Model,
    name: str,
    image: KerasTensor,
    spec: DatasetSpec,
    feature_layers: Sequence[str],
) -> Trunk:
    """The maps of a network on top of `image`, with the network's weights.

    Args:
        model: functional, of one batch of images as large as `image`; becomes
            trainable.
        name: what messages call it.
        image: symbolic, normalised.
        spec: of the images.
        feature_layers: as `find_backbone` takes them.

    Returns:
        Its maps, each about half as wide as the one before; no last block to copy.

    Raises:
        RequestError: no maps, or layers named that have none or do not fit together.
    """
    for layer in model.layers:
        if isinstance(layer, layers.BatchNormalization):
            layer.momentum = min(layer.momentum, _MOST_MOMENTUM)
        layer.trainable = True
    if feature_layers:
        maps = [_named_map(model, name, layer) for layer in feature_layers]
    else:
        maps = _maps_by_resolution(model, name)
    _check_sides(maps, name)
    found = find_values(model, spec.image_shape)
    certain = found and found.is_certain
    rescale = rescaling_to(spec, found.values if certain else NORMALISED)
    pixels = rescale(image) if rescale else image
    return Trunk(maps=_as_list(keras.Model(model.inputs, maps)(pixels)))


def _check_sides(maps: list[KerasTensor], name: str) -> None:
    for fine, coarse in itertools.pairwise(maps):
        target, sides = _half(fine.shape[1:3]), coarse.shape[1:3]
        if _is_gap(target, sides) or any(s > t for s, t in zip(sides, target)):
            raise RequestError(
                f"The maps of the student {name} must halve from one to the next; they "
                f"are {', '.join(f'{m.shape[1]}x{m.shape[2]}' for m in maps)}. Name "
                "layers that do with --student_feature_layers."
            )


def _half(sides: tuple[int, ...]) -> tuple[int, ...]:
    """Rounded up, as the headers' encoders do; unpadded convolutions make less."""
    return tuple(-(-side // 2) for side in sides)


def _is_gap(target: tuple[int, ...], sides: tuple[int, ...]) -> bool:
    """Whether maps are so small that there should be others between."""
    return any(side <= wanted // 2 for wanted, side in zip(target, sides))


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
    resolution. Each resolution is the largest that at least halves the one before.
    """
    cuts = [layer for layer in _cut_layers(model) if _is_map(layer)]
    cuts = [layer for layer in cuts if not _is_part_of_a_convolution(layer)]
    if not cuts:
        raise RequestError(
            f"Found no maps in the student {name}: expected a functional model of "
            "convolutions. Name the layers with --student_feature_layers."
        )
    sizes = {layer.output.shape[1:3] for layer in cuts}
    sides, maps = model.inputs[0].shape[1:3], []
    while max(sides) > 1:
        target = _half(sides)
        fitting = [
            size for size in sizes if size[0] <= target[0] and size[1] <= target[1]
        ]
        if not fitting:
            break
        sides = max(fitting)
        if _is_gap(target, sides):
            maps.clear()  # headers climb without one
        level = [layer for layer in cuts if layer.output.shape[1:3] == sides]
        merges = [i for i, layer in enumerate(level) if isinstance(layer.input, list)]
        level = [layer.output for layer in level[merges[-1] if merges else 0 :]]
        # Of equally narrow ones, the last.
        maps.append(min(reversed(level), key=lambda tensor: tensor.shape[-1]))
    return maps or [cuts[-1].output]


def _cut_layers(model) -> list[keras.Operation]:
    """Layers and operations that every path from image to output goes through.

    In topological order, those that no connection jumps over.
    """
    order = [x for x in model.operations if not isinstance(x, layers.InputLayer)]
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


def _is_part_of_a_convolution(layer) -> bool:
    """Its padding, or the reading of every so manieth pixel."""
    strided = getattr(layer, "pool_size", 0) == (1, 1)
    return strided or isinstance(layer, (layers.ZeroPadding2D, layers.Cropping2D))


def _as_list(value) -> list:
    return list(value) if isinstance(value, (list, tuple)) else [value]
