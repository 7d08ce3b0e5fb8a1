"""Backbones by any name: ours, a file of one's own, or one of `keras.applications`."""

import inspect
import pathlib
from collections.abc import Callable, Sequence

import keras
from keras import KerasTensor, layers

from cdfkd_tf.data.specs import DatasetSpec
from cdfkd_tf.errors import RequestError
from cdfkd_tf.networks.backbones import BACKBONES
from cdfkd_tf.networks.layers import Trunk
from cdfkd_tf.networks.loading import load_network
from cdfkd_tf.networks.pixel_ranges import NORMALISED, expected_values, rescaling_to

# Long averages suit millions of images; distillations are shorter.
_MOST_MOMENTUM = 0.9


def find_backbone(
    name: str, spec: DatasetSpec, taps: Sequence[str] = ()
) -> Callable[[KerasTensor, float], Trunk]:
    """What builds the trunk called `name`: `(normalised image, width) -> Trunk`.

    Args:
        name: in `BACKBONES`; a `.keras` file, whose weights the student starts from;
            or a function of `keras.applications`, without weights.
        spec: of the images.
        taps: names of the layers whose maps the headers read, finest first; empty:
            found at each change of resolution. Only for files and applications.

    Raises:
        RequestError: unknown name, missing file, or taps for one of our own.
    """
    if name in BACKBONES.names():
        if taps:
            raise RequestError(
                f"--student_taps names layers of a file or of keras.applications; "
                f"--student={name} brings its own. Leave it out."
            )
        return BACKBONES[name]
    if name.endswith((".keras", ".h5")):
        return lambda image, width: _of_file(name, image, width, spec, taps)
    if name in applications():
        return lambda image, width: _of_application(name, image, width, spec, taps)
    raise RequestError(
        f"Unknown network {name!r}. Known: {', '.join(sorted(BACKBONES.names()))}; a "
        f".keras file; or of keras.applications {', '.join(applications())}."
    )


def applications() -> list[str]:
    """The networks that `keras.applications` builds."""
    return sorted(
        name
        for name in dir(keras.applications)
        if name[0].isupper() and callable(getattr(keras.applications, name))
    )


def _of_application(name, image, width, spec, taps) -> Trunk:
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
        model = build(**options)
    except ValueError as error:  # images too small, unsuitable alpha
        reason = " ".join(str(error).split())
        raise RequestError(
            f"keras.applications.{name} cannot take images of "
            f"{spec.image_shape}: {reason}"
        ) from error
    return _trunk_of(model, name, image, spec, taps)


def _of_file(name, image, width, spec, taps) -> Trunk:
    if width != 1:
        raise RequestError(
            f"--student_width={width} cannot scale the network in {name}. Use 1."
        )
    if not pathlib.Path(name).is_file():
        raise RequestError(f"There is no student file {name}. Check --student.")
    return _trunk_of(
        load_network(pathlib.Path(name), "student"), name, image, spec, taps
    )


def _trunk_of(model, name, image, spec, taps) -> Trunk:
    """The model's tapped maps on top of `image`, with the model's weights."""
    if not isinstance(model, keras.Model) or not getattr(model, "inputs", None):
        raise RequestError(f"The student {name} must be a functional Keras model.")
    wanted = tuple(model.inputs[0].shape[1:])
    if len(model.inputs) != 1 or len(wanted) != 3:
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
    maps = _named_maps(model, name, taps) if taps else _maps_by_resolution(model, name)
    tapped = keras.Model(model.inputs, maps)
    rescale = rescaling_to(spec, expected_values(model, NORMALISED))
    return Trunk(
        maps=_as_list(tapped(rescale(image) if rescale else image)),
        before_last_block=None,
        last_block=None,
        finish=lambda tensor, _: tensor,
    )


def _named_maps(model, name, taps) -> list[KerasTensor]:
    maps = []
    for tap in taps:
        try:
            maps.append(model.get_layer(tap).output)
        except ValueError as error:
            known = [la.name for la in model.layers if len(_shape_of(la)) == 4]
            raise RequestError(
                f"The student {name} has no layer {tap!r} to tap; its last layers "
                f"with maps are {', '.join(known[-8:])}."
            ) from error
        if len(maps[-1].shape) != 4:
            raise RequestError(
                f"--student_taps={tap}: expected a layer that answers maps (B, height, "
                f"width, channels); {tap} answers {maps[-1].shape}."
            )
    return maps


def _maps_by_resolution(model, name) -> list[KerasTensor]:
    """One map per resolution: the narrowest one that all that follows stands on.

    A map through which every path goes (so no branch inside a block), at or behind
    the last merge of branches at that resolution. Resolutions are the halvings of the
    image; what is bigger than the last map's counts.
    """
    order = [la for la in model.layers if not isinstance(la, layers.InputLayer)]
    cuts = [la for la in _cut_layers(order) if len(_shape_of(la)) == 4]
    if not cuts:
        raise RequestError(
            f"Found no maps in the student {name}: expected a functional model of "
            "convolutions, its layers not hidden in another model. Name the layers "
            "with --student_taps, or save the inner model."
        )
    smallest = cuts[-1].output.shape[1]
    maps, side = [], model.inputs[0].shape[1]
    while side is not None and side > max(1, smallest):
        side = -(-side // 2)
        level = [la for la in cuts if la.output.shape[1] == side]
        if level:
            maps.append(_best_of(level))
    if not maps:
        maps = [cuts[-1].output]
    return maps


def _best_of(level) -> KerasTensor:
    """The narrowest map from the last merge on, the last one of those."""
    merges = [
        index for index, la in enumerate(level) if isinstance(la.input, (list, tuple))
    ]
    level = level[merges[-1] :] if merges else level
    narrowest = min(la.output.shape[-1] for la in level)
    return [la for la in level if la.output.shape[-1] == narrowest][-1].output


def _cut_layers(order) -> list[keras.layers.Layer]:
    """Layers that every path from image to answer goes through, in order.

    In topological order: those that no connection jumps over.
    """
    place = {id(_as_list(la.output)[0]): index for index, la in enumerate(order)}
    last_reader = dict.fromkeys(range(len(order)), 0)
    for index, la in enumerate(order):
        for tensor in _as_list(la.input):
            if id(tensor) in place:
                last_reader[place[id(tensor)]] = index
    cuts, reach = [], 0
    for index, la in enumerate(order):
        if reach <= index:
            cuts.append(la)
        reach = max(reach, last_reader[index])
    return cuts


def _shape_of(layer) -> tuple:
    output = layer.output
    return tuple(output.shape) if hasattr(output, "shape") else ()


def _as_list(value) -> list:
    return list(value) if isinstance(value, (list, tuple)) else [value]
