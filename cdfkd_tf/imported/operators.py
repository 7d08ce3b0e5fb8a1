"""ONNX's operators as Keras layers and operations: one row each in `OPERATORS`.

A row takes a `Node` and its inputs, `Symbol`s of what depends on the images and NumPy
arrays of the rest, and returns a `Symbol`, or a list of them. What depends on no image
is computed beforehand and needs no row.
"""

import dataclasses
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from keras import layers, ops

from cdfkd_tf.imported.tensors import (
    BATCH,
    Symbol,
    Unsupported,
    combined,
    constant_like,
    with_batch,
)

_LEAST = -1e30  # pads what maxima are taken of


@dataclasses.dataclass(frozen=True)
class Node:
    """One operation of a file.

    Attributes:
        op: name of its operator.
        name: for the layer that it becomes.
        attributes: of the file, as numbers, strings, arrays.
        opset: version of the operators.
        batch: the count of images that the file is made for; None: any.
        bias: what is added right after it and nowhere else read; None: nothing.
    """

    op: str
    name: str
    attributes: Mapping[str, Any]
    opset: int
    batch: int | None
    bias: np.ndarray | None = None

    def get(self, name: str, default: Any = None) -> Any:
        """An attribute."""
        return self.attributes.get(name, default)

    def given(self, name: str, values: Sequence[Any], index: int) -> list | None:
        """Whole numbers that are an attribute or, since a later opset, an input."""
        value = self.get(name)
        if value is None and index < len(values):
            value = values[index]
        return None if value is None else np.atleast_1d(constant(value, name)).tolist()


def constant(value: Any, what: str) -> np.ndarray:
    """`value` as an array of its shape, if it depends on no image.

    Raises:
        Unsupported: it does; `what` it is goes into the message.
    """
    if isinstance(value, Symbol):
        raise Unsupported(f"its {what} depend on the images")
    return np.asarray(value)


def _sizes(value: Any, what: str) -> list[int]:
    sizes = constant(value, what)
    if np.isnan(sizes.astype("float64")).any():
        raise Unsupported("it needs images of a fixed height and width")
    return [int(size) for size in np.atleast_1d(sizes)]


# Layers with weights.


def _conv(node, x, kernel, bias=None):
    kernel = constant(kernel, "weights")
    if kernel.ndim != 4:
        raise Unsupported(f"a convolution over {kernel.ndim - 2} sides")
    filters, inner, *sides = kernel.shape
    groups, x = node.get("group", 1), x.channels_last()
    strides, dilations = node.get("strides", [1, 1]), node.get("dilations", [1, 1])
    tensor, padding = _padded(node, x.tensor, sides, strides, dilations)
    options = {
        "strides": tuple(strides),
        "dilation_rate": tuple(dilations),
        "padding": padding,
        "use_bias": bias is not None,
        "name": node.name,
    }
    if groups > 1 and inner == 1:
        multiplier = filters // groups
        kernel = kernel.reshape(groups, multiplier, *sides).transpose(2, 3, 0, 1)
        layer = layers.DepthwiseConv2D(
            sides, depth_multiplier=multiplier, depthwise_initializer="zeros", **options
        )
    else:
        kernel = _ungrouped(kernel, groups).transpose(2, 3, 1, 0)
        layer = layers.Conv2D(filters, sides, kernel_initializer="zeros", **options)
    return x.with_tensor(_filled(layer, tensor, kernel, bias))


def _ungrouped(kernel, groups):
    """Zeros between groups: on CPUs grouped convolutions take 80 times as long."""
    if groups == 1:
        return kernel
    filters, inner, *sides = kernel.shape
    whole = np.zeros((groups, filters // groups, groups, inner, *sides), "float32")
    for group, part in enumerate(np.split(kernel, groups)):
        whole[group, :, group] = part
    return whole.reshape(filters, groups * inner, *sides)


def _filled(layer, tensor, *weights):
    made = layer(tensor)
    layer.set_weights([constant(w, "weights") for w in weights if w is not None])
    return made


def _dense(node, x, kernel, bias=None):
    """Of a kernel (inputs, outputs), over the file's last axis."""
    x = x.with_last(-1)
    bias = node.bias if bias is None else bias
    layer = layers.Dense(
        kernel.shape[1],
        use_bias=bias is not None,
        kernel_initializer="zeros",
        name=node.name,
    )
    return x.with_tensor(_filled(layer, x.tensor, kernel, bias))


def _gemm(node, a, b, c=None):
    if node.get("transA", 0):
        a = a.transposed([1, 0]) if isinstance(a, Symbol) else a.T
    if node.get("transB", 0):
        b = b.transposed([1, 0]) if isinstance(b, Symbol) else b.T
    beta = node.get("beta", 1.0)
    if isinstance(a, Symbol) and not isinstance(b, Symbol):
        bias = None
        if c is not None:
            bias = np.broadcast_to(constant(c, "bias") * beta, (1, b.shape[1]))[0]
        return _dense(node, a, b * node.get("alpha", 1.0), bias)
    product = _matmul(node, a, b)
    product = _elementwise(ops.multiply)(node, product, node.get("alpha", 1.0))
    scaled = None if c is None else _elementwise(ops.multiply)(node, c, beta)
    return product if c is None else _elementwise(ops.add)(node, product, scaled)


def _matmul(node, a, b):
    if isinstance(a, Symbol) and not isinstance(b, Symbol) and b.ndim == 2:
        return _dense(node, a, b)
    symbols = [value for value in (a, b) if isinstance(value, Symbol)]
    rank = max(np.ndim(v) if not isinstance(v, Symbol) else v.rank for v in (a, b))
    # From the right, where both kinds of axes line up.
    places = {s.batch - s.rank for s in symbols}
    if len(places) > 1 or (isinstance(a, Symbol) and -1 in places):
        raise Unsupported("the images of a batch are mixed")
    a, b = (v.plain().tensor if isinstance(v, Symbol) else v for v in (a, b))
    batch = rank + places.pop()
    return Symbol(
        ops.matmul(a, b), tuple(range(rank)), batch, max(s.factor for s in symbols)
    )


def _batch_norm(node, x, scale, bias, mean, variance):
    x = x.channels_last()
    layer = layers.BatchNormalization(
        epsilon=node.get("epsilon", 1e-5),
        momentum=node.get("momentum", 0.9),
        name=node.name,
    )
    return x.with_tensor(_filled(layer, x.tensor, scale, bias, mean, variance))


def _layer_norm(node, x, scale, bias=None):
    axis = node.get("axis", -1) % x.rank
    epsilon = node.get("epsilon", 1e-5)
    if axis != x.rank - 1:
        x = _standardised(x, range(axis, x.rank), epsilon)
        return _affine(node, x, scale, bias)
    x = x.with_last(-1)
    layer = layers.LayerNormalization(
        epsilon=epsilon, center=bias is not None, name=node.name
    )
    return x.with_tensor(_filled(layer, x.tensor, scale, bias))


def _instance_norm(node, x, scale, bias):
    x = _standardised(x, range(2, x.rank), node.get("epsilon", 1e-5))
    return _affine(node, x, *(_per_channel(w, x) for w in (scale, bias)))


def _group_norm(node, x, scale, bias):
    groups, shape = node.get("num_groups"), x.shape
    split = [shape[0], groups, shape[1] // groups, *shape[2:]]
    x = _standardised(x.reshaped(split), range(2, x.rank + 1), node.get("epsilon"))
    if len(scale) == groups:  # before opset 21
        scale, bias = (np.repeat(w, shape[1] // groups) for w in (scale, bias))
    x = x.reshaped(shape)
    return _affine(node, x, *(_per_channel(w, x) for w in (scale, bias)))


def _per_channel(weights, x):
    return constant(weights, "weights").reshape(-1, *[1] * (x.rank - 2))


def _standardised(x, axes, epsilon):
    places = [x.axis(axis) for axis in axes]
    mean = ops.mean(x.tensor, places, keepdims=True)
    centred = x.tensor - mean
    variance = ops.mean(ops.square(centred), places, keepdims=True)
    return x.with_tensor(centred / ops.sqrt(variance + (epsilon or 1e-5)))


def _affine(node, x, scale, bias):
    x = _elementwise(ops.multiply)(node, x, constant(scale, "weights"))
    return x if bias is None else _elementwise(ops.add)(node, x, constant(bias, "bias"))


# Windows.


def _pads(node, sizes, kernel, strides, dilations) -> list[tuple[int, int]]:
    """(before, after) of each side, as the file says."""
    pads, kind = node.get("pads", [0, 0, 0, 0]), node.get("auto_pad", "NOTSET")
    if kind == "NOTSET":
        return list(zip(pads[:2], pads[2:]))
    if kind == "VALID":
        return [(0, 0), (0, 0)]
    pads = _pads_of_same(sizes, kernel, strides, dilations)
    if pads is None:
        raise Unsupported("it needs images of a fixed height and width")
    return [pair[::-1] for pair in pads] if kind == "SAME_LOWER" else pads


def _pads_of_same(sizes, kernel, strides, dilations) -> list[tuple[int, int]] | None:
    """What TensorFlow pads under `same`; None where that depends on an open side."""
    pads = []
    for size, width, stride, dilation in zip(sizes, kernel, strides, dilations):
        reach = (width - 1) * dilation + 1
        if size is None and stride > 1:
            return None
        missing = reach - 1
        if size is not None:
            missing = max((-(-size // stride) - 1) * stride + reach - size, 0)
        pads.append((missing // 2, missing - missing // 2))
    return pads


def _padded(node, tensor, kernel, strides, dilations, value=0.0):
    """A tensor, channels last, padded as far as needed, and the name of the rest."""
    sizes = tensor.shape[1:3]
    pads = _pads(node, sizes, kernel, strides, dilations)
    if not np.any(pads):
        return tensor, "valid"
    if pads == _pads_of_same(sizes, kernel, strides, dilations):
        return tensor, "same"
    return _pad_sides(tensor, pads, value), "valid"


def _pad_sides(tensor, pads, value=0.0):
    if not np.any(pads):
        return tensor
    if np.min(pads) < 0:
        raise Unsupported("negative padding")
    if value:
        return ops.pad(tensor, [(0, 0), *pads, (0, 0)], constant_values=value)
    return layers.ZeroPadding2D(tuple(pads))(tensor)


def _window(node, x):
    """What poolings share: sides, strides, and the padding of their last window."""
    kernel = node.get("kernel_shape")
    if len(kernel) != 2 or any(d != 1 for d in node.get("dilations", [1])):
        raise Unsupported("pooling over other windows than of rows and columns")
    strides, sizes = node.get("strides", [1, 1]), x.tensor.shape[1:3]
    pads = _pads(node, sizes, kernel, strides, [1, 1])
    if node.get("ceil_mode", 0):
        if None in sizes:
            raise Unsupported("it needs images of a fixed height and width")
        pads = [
            (low, high + _last_window(size, low, high, width, stride))
            for size, (low, high), width, stride in zip(sizes, pads, kernel, strides)
        ]
    return kernel, strides, pads


def _last_window(size, low, high, width, stride) -> int:
    """How much a window over the edge needs more; none that begins beyond it."""
    count = -(-(size + low + high - width) // stride) + 1
    if (count - 1) * stride >= size + low:
        count -= 1
    return max((count - 1) * stride + width - size - low - high, 0)


def _max_pool(node, x):
    x = x.channels_last()
    kernel, strides, pads = _window(node, x)
    layer = layers.MaxPooling2D(kernel, strides, name=node.name)
    return x.with_tensor(layer(_pad_sides(x.tensor, pads, _LEAST)))


def _average_pool(node, x):
    x = x.channels_last()
    kernel, strides, pads = _window(node, x)
    means = layers.AveragePooling2D(kernel, strides, name=node.name)(
        _pad_sides(x.tensor, pads)
    )
    if np.any(pads):
        # What counts in each window: real pixels, and the file's own padding or not.
        ends = _pads(node, x.tensor.shape[1:3], kernel, strides, [1, 1])
        if not node.get("count_include_pad", 0):
            ends = [(0, 0), (0, 0)]
        if None in x.tensor.shape[1:3] and ends != pads:
            raise Unsupported("it needs images of a fixed height and width")
        shares = [
            _counts(size, pad, end, width, stride)
            for size, pad, end, width, stride in zip(
                x.tensor.shape[1:3], pads, ends, kernel, strides
            )
            if ends != pads
        ]
        if shares:
            counts = np.outer(*shares)
            share = (np.prod(kernel) / counts)[None, :, :, None]
            means = ops.multiply(means, share.astype("float32"))
    return x.with_tensor(means)


def _counts(size, pad, end, width, stride):
    counts = np.zeros(pad[0] + size + pad[1])
    counts[pad[0] - end[0] : pad[0] + size + end[1]] = 1
    starts = range(0, len(counts) - width + 1, stride)
    return np.array([counts[start : start + width].sum() for start in starts])


def _global_pool(layer):
    def pool(node, x):
        if x.rank != 4:
            raise Unsupported("pooling over other windows than of rows and columns")
        x = x.channels_last()
        return x.with_tensor(layer(keepdims=True, name=node.name)(x.tensor))

    return pool


def _local_response(node, x):
    x, size = x.channels_last(), node.get("size")
    low = (size - 1) // 2
    channels = x.tensor.shape[-1]
    squares = ops.pad(
        ops.square(x.tensor), [(0, 0)] * (x.rank - 1) + [(low, size - 1 - low)]
    )
    total = sum(squares[..., i : i + channels] for i in range(size))
    base = total * (node.get("alpha", 1e-4) / size) + node.get("bias", 1.0)
    return x.with_tensor(x.tensor / ops.power(base, node.get("beta", 0.75)))


def _resize(node, x, *values):
    values = [*values, None, None, None][:3]
    kind = node.get("mode", "nearest")
    name = {"linear": "bilinear", "nearest": "nearest", "cubic": "bicubic"}.get(kind)
    sizes, scales = values[2], values[1]
    if node.op == "Upsample" or (node.opset < 11 and sizes is None):
        scales = values[0] if values[0] is not None else node.get("scales")
    if sizes is not None and np.size(sizes):
        sizes = _sizes(sizes, "sizes")[2:]
    else:
        scales = constant(scales, "scales")
        sizes = [math.floor(s * f) for s, f in zip(x.shape[2:], scales[2:])]
    x = x.channels_last()
    if node.get("coordinate_transformation_mode") == "align_corners" or not name:
        raise Unsupported(f"resizing by {kind} with aligned corners")
    return x.with_tensor(ops.image.resize(x.tensor, sizes, name))


# Element by element.


def _layer(make: Callable[[Node], layers.Layer]):
    return lambda node, x: x.with_tensor(make(node)(x.tensor))


def _activation(name: str):
    return _layer(lambda node: layers.Activation(name, name=node.name))


def _unary(function: Callable):
    return lambda node, x: x.with_tensor(function(x.tensor))


def _elementwise(function: Callable):
    """Of any count of inputs, constants among them."""

    def combine(node, *values):
        if not any(isinstance(value, Symbol) for value in values):
            # Constants of a larger formula of this file.
            return np.asarray(function(*map(np.asarray, values)))
        model, tensors = combined(values, node.batch)
        result = tensors[0]
        for tensor in tensors[1:]:
            affine = _affine_layer(function, result, tensor)
            result = function(result, tensor) if affine is None else affine(result)
        return model.with_tensor(result)

    return combine


def _affine_layer(function, left, right) -> layers.Layer | None:
    """A number, or one per channel, as a layer: preprocessing mostly."""
    if isinstance(left, float | int | np.ndarray) or "float" not in left.dtype:
        return None
    if (
        isinstance(right, np.ndarray)
        and right.size == left.shape[-1] == right.shape[-1]
    ):
        right = right.reshape(-1)
    elif not isinstance(right, float | int):
        return None
    value = np.asarray(right, "float64")
    made = {
        ops.add: (1.0, value),
        ops.subtract: (1.0, -value),
        ops.multiply: (value, 0.0),
        ops.divide: (1 / value if value.all() else None, 0.0),
    }.get(function)
    if made is None or made[0] is None:
        return None
    return layers.Rescaling(*(np.asarray(part).tolist() for part in made))


def _sum(node, *values):
    both = len(values) == 2 and all(isinstance(value, Symbol) for value in values)
    if both and values[0].shape == values[1].shape:
        model, tensors = combined(values, node.batch)
        return model.with_tensor(layers.Add(name=node.name)(tensors))
    return _elementwise(ops.add)(node, *values)


def _mean(node, *values):
    total = _elementwise(ops.add)(node, *values)
    return total.with_tensor(total.tensor / len(values))


def _clip(node, x, low=None, high=None):
    low, high = (
        node.get(name) if value is None else constant(value, "limits").item()
        for name, value in (("min", low), ("max", high))
    )
    if low == 0:
        top = None if high is None or high > 1e30 else high
        return x.with_tensor(layers.ReLU(top, name=node.name)(x.tensor))
    tensor = x.tensor if low is None else ops.maximum(x.tensor, low)
    return x.with_tensor(tensor if high is None else ops.minimum(tensor, high))


def _prelu(node, x, slope):
    low = x.with_tensor(ops.minimum(x.tensor, 0.0))
    low = _elementwise(ops.multiply)(node, low, constant(slope, "slopes"))
    model, (high, low) = combined([x.with_tensor(ops.relu(x.tensor)), low], node.batch)
    return model.with_tensor(high + low)


def _softmax(function):
    def apply(node, x):
        shape, axis = x.shape, node.get("axis", -1 if node.opset >= 13 else 1)
        axis %= x.rank
        if node.opset < 13 and math.prod(side or 0 for side in shape[axis + 1 :]) != 1:
            x = x.reshaped([*shape[:axis], math.prod(shape[axis:])])  # over all of them
        x = x.with_last(axis)
        if function is ops.softmax:
            made = layers.Softmax(name=node.name)(x.tensor)
        else:
            made = function(x.tensor, axis=-1)
        x = x.with_tensor(made)
        return x if x.rank == len(shape) else x.reshaped(shape)

    return apply


def _cast(node, x, *_):
    whole = node.op == "Cast" and node.get("to") not in (1, 10, 11, 16)
    if whole:
        raise Unsupported("it makes whole numbers, which pass no gradient")
    is_float = "float" in x.tensor.dtype
    return x if is_float else x.with_tensor(ops.cast(x.tensor, "float32"))


def _where(node, condition, x, y):
    values = [condition, x, y]
    if isinstance(condition, Symbol):
        raise Unsupported("its choice depends on the images")
    model, (condition, x, y) = combined(values, node.batch)
    return model.with_tensor(ops.where(np.asarray(condition, "bool"), x, y))


# Axes and sides.


def _reduce(function, pool=None):
    def reduce(node, x, *values):
        axes = node.given("axes", values, 0)
        if axes is None:
            if node.get("noop_with_empty_axes", 0):
                return x
            axes = range(x.rank)
        axes, keep = sorted(a % x.rank for a in axes), bool(node.get("keepdims", 1))
        if x.batch in axes:
            raise Unsupported("the images of a batch are mixed")
        places = sorted(x.axis(axis) for axis in axes)
        if pool and places == [1, 2] and x.rank == 4 and x.axes[x.batch] == 0:
            tensor = pool(keepdims=keep, name=node.name)(x.tensor)
        else:
            tensor = function(x.tensor, places, keepdims=keep)
        return x.with_tensor(tensor) if keep else x.without(axes, tensor)

    return reduce


def _norm_2(tensor, axes, keepdims):
    return ops.sqrt(ops.sum(ops.square(tensor), axes, keepdims=keepdims))


def _reshape(node, x, shape=None):
    shape = node.get("shape") if shape is None else shape
    sizes = _sizes(shape, "sides")
    if not node.get("allowzero", 0):
        sizes = [x.shape[i] if side == 0 else side for i, side in enumerate(sizes)]
    return x.reshaped(with_batch(x, sizes, node.batch))


def _flatten(node, x):
    axis, shape = node.get("axis", 1), x.shape
    if None in shape:
        raise Unsupported("it needs images of a fixed height and width")
    axis = axis + x.rank if axis < 0 else axis
    return x.reshaped([math.prod(shape[:axis]), math.prod(shape[axis:])])


def _squeeze(node, x, *values):
    axes, shape = node.given("axes", values, 0), x.shape
    if axes is None:
        axes = [axis for axis, side in enumerate(shape) if side == 1]
    gone = {axis % x.rank for axis in axes}
    places = [x.axis(axis) for axis in gone]
    return x.without(gone, ops.squeeze(x.tensor, tuple(places)))


def _unsqueeze(node, x, *values):
    axes = node.given("axes", values, 0)
    rank = x.rank + len(axes)
    new = {axis % rank for axis in axes}
    old = iter(range(x.rank))
    # New axes last in memory.
    places, end = [], x.rank
    batch = 0
    for axis in range(rank):
        if axis in new:
            places.append(end)
            end += 1
        else:
            was = next(old)
            batch = axis if was == x.batch else batch
            places.append(x.axes[was])
    tensor = ops.expand_dims(x.tensor, tuple(range(x.rank, rank)))
    return Symbol(tensor, tuple(places), batch, x.factor)


def _transpose(node, x):
    return x.transposed(node.get("perm", [*range(x.rank)][::-1]))


def _concat(node, *values):
    axis = node.get("axis", 1)
    symbols = [value for value in values if isinstance(value, Symbol)]
    model = symbols[0]
    if axis % model.rank == model.batch:
        raise Unsupported("the images of a batch are mixed")
    tensors = []
    for value in values:
        if isinstance(value, Symbol):
            tensors.append(value.moved(model.axes).tensor)
            continue
        # The same for each image, of which this counts as many as there are.
        others = [place for place in range(model.rank) if place != model.axes[0]]
        zeros = ops.zeros_like(ops.mean(model.tensor, others, keepdims=True))
        tensors.append(zeros + constant_like(value, model, node.batch))
    joined = layers.Concatenate(axis=model.axis(axis), name=node.name)(tensors)
    return model.with_tensor(joined)


def _split(node, x, *values):
    axis = node.get("axis", 0) % x.rank
    sizes, length = node.given("split", values, 0), x.shape[axis]
    if axis == x.batch or length is None:
        raise Unsupported("the images of a batch are taken apart")
    if sizes is None:
        count = node.get("num_outputs")
        each = -(-length // count)
        sizes = [each] * (count - 1) + [length - each * (count - 1)]
    elif node.op == "SplitToSequence" and len(sizes) == 1:
        sizes = [sizes[0]] * (length // sizes[0])
    ends = np.cumsum(sizes)[:-1].tolist()
    parts = ops.split(x.tensor, ends, axis=x.axes[axis])
    return [x.with_tensor(part) for part in parts]


def _slice(node, x, *values):
    starts, ends, axes, steps = (
        node.given(name, values, index)
        for index, name in enumerate(("starts", "ends", "axes", "steps"))
    )
    axes = range(len(starts)) if axes is None else axes
    steps = [1] * len(starts) if steps is None else steps
    taken = [slice(None)] * x.rank
    for start, end, axis, step in zip(starts, ends, axes, steps):
        size = x.shape[axis % x.rank]
        if size is None and (start, step) == (0, 1) and end > 1e9:
            continue
        if size is None:
            raise Unsupported("it needs images of a fixed height and width")
        first, last, step = slice(int(start), int(end), int(step)).indices(size)
        if (first, last, step) == (0, size, 1):
            continue
        if axis % x.rank == x.batch:
            if node.batch and (first, step) == (0, 1) and last >= node.batch:
                continue
            raise Unsupported("the images of a batch are taken apart")
        # The end of a backward slice is before the first.
        taken[x.axis(axis)] = slice(first, None if last < 0 else last, step)
    return x.with_tensor(x.tensor[tuple(taken)] if _any(taken) else x.tensor)


def _any(taken) -> bool:
    return any(part != slice(None) for part in taken)


def _gather(node, x, indices):
    if not isinstance(x, Symbol):
        raise Unsupported("it looks numbers up")
    indices, axis = constant(indices, "indices"), node.get("axis", 0) % x.rank
    if x.rank == 1 and np.array_equal(indices.ravel(), np.arange(x.shape[0])):
        return x.reshaped([*indices.shape])  # of exporters' `as_strided`
    if axis == x.batch or indices.ndim > 1:
        raise Unsupported("the images of a batch are taken apart")
    place, length = x.axes[axis], x.tensor.shape[x.axes[axis]]
    indices = np.where(indices < 0, indices + (length or 0), indices)
    if indices.ndim:
        return x.with_tensor(ops.take(x.tensor, indices.tolist(), axis=place))
    taken = [slice(None)] * x.rank
    taken[place] = int(indices)
    return x.without([axis], x.tensor[tuple(taken)])


def _expand(node, x, shape):
    target = _sizes(shape, "sides")
    target = [1] * (x.rank - len(target)) + target
    target = [1 if side % BATCH == 0 else side for side in target]
    ones = np.ones(target, "float32")
    model, tensors = combined([x, ones], node.batch)
    plain = isinstance(tensors[1], float)
    return model if plain else model.with_tensor(ops.multiply(*tensors))


def _tile(node, x, repeats):
    repeats = _sizes(repeats, "repeats")
    if repeats[x.batch] != 1:
        raise Unsupported("the images of a batch are repeated")
    order = np.argsort(x.axes)
    return x.with_tensor(ops.tile(x.tensor, [repeats[axis] for axis in order]))


def _pad(node, x, *values):
    pads = _sizes(node.get("pads") if not values else values[0], "pads")
    value = values[1] if len(values) > 1 else node.get("value")
    axes = values[2] if len(values) > 2 else range(x.rank)
    kind = node.get("mode", "constant")
    if kind not in ("constant", "reflect"):
        raise Unsupported(f"padding by {kind}")
    pairs = [(0, 0)] * x.rank
    half = len(pads) // 2
    for axis, low, high in zip(np.asarray(axes).tolist(), pads[:half], pads[half:]):
        pairs[x.axis(axis)] = (low, high)
    value = 0.0 if value is None or not np.size(value) else float(np.asarray(value))
    if kind == "reflect":
        return x.with_tensor(ops.pad(x.tensor, pairs, mode="reflect"))
    if x.rank == 4 and not np.any(pairs[0] + pairs[3]):
        return x.with_tensor(_pad_sides(x.tensor, pairs[1:3], value))
    if np.min(pairs) < 0:
        raise Unsupported("negative padding")
    return x.with_tensor(ops.pad(x.tensor, pairs, constant_values=value))


def _scatter(node, x, indices, updates):
    """Replaces the whole, or fails: what exporters make of `x[:] = y`."""
    indices = constant(indices, "indices")
    rows = np.arange(x.shape[0]).reshape(-1, 1)
    if node.get("reduction", "none") == "none" and np.array_equal(indices, rows):
        return updates
    raise Unsupported("it writes into a tensor")


def _einsum(node, *values):
    raise Unsupported(f"the formula {node.get('equation')}")


def _shape(node, x):
    sides = [np.nan if side is None else side for side in x.shape]
    part = sides[node.get("start", 0) : node.get("end")]
    return np.array(part, "float64" if np.isnan(part).any() else "int64")


def _space_to_depth(node, x):
    block, (n, c, h, w) = node.get("blocksize"), x.shape
    x = x.reshaped([n, c, h // block, block, w // block, block])
    x = x.transposed([0, 3, 5, 1, 2, 4])
    return x.reshaped([n, c * block**2, h // block, w // block])


def _identity(node, x, *_):
    return x


def _slope(default):
    def make(node):
        return layers.LeakyReLU(node.get("alpha", default), name=node.name)

    return make


def _hard_sigmoid(node, x):
    alpha, beta = node.get("alpha", 0.2), node.get("beta", 0.5)
    return x.with_tensor(ops.clip(x.tensor * alpha + beta, 0.0, 1.0))


def _gelu(node, x):
    bent = node.get("approximate", "none") == "tanh"
    return x.with_tensor(ops.gelu(x.tensor, approximate=bent))


def _swish(node, x):
    return x.with_tensor(x.tensor * ops.sigmoid(x.tensor * node.get("alpha", 1.0)))


OPERATORS: dict[str, Callable[..., Any]] = {
    "Conv": _conv,
    "Gemm": _gemm,
    "MatMul": _matmul,
    "BatchNormalization": _batch_norm,
    "LayerNormalization": _layer_norm,
    "InstanceNormalization": _instance_norm,
    "GroupNormalization": _group_norm,
    "MaxPool": _max_pool,
    "AveragePool": _average_pool,
    "GlobalAveragePool": _global_pool(layers.GlobalAveragePooling2D),
    "GlobalMaxPool": _global_pool(layers.GlobalMaxPooling2D),
    "LRN": _local_response,
    "Resize": _resize,
    "Upsample": _resize,
    "SpaceToDepth": _space_to_depth,
    "Relu": _layer(lambda node: layers.ReLU(name=node.name)),
    "LeakyRelu": _layer(_slope(0.01)),
    "Elu": _layer(lambda node: layers.ELU(node.get("alpha", 1.0), name=node.name)),
    "PRelu": _prelu,
    "Clip": _clip,
    "Sigmoid": _activation("sigmoid"),
    "Tanh": _activation("tanh"),
    "Selu": _activation("selu"),
    "Softplus": _activation("softplus"),
    "Softsign": _activation("softsign"),
    "HardSwish": _activation("hard_silu"),
    "Mish": _activation("mish"),
    "HardSigmoid": _hard_sigmoid,
    "Gelu": _gelu,
    "Swish": _swish,
    "Softmax": _softmax(ops.softmax),
    "LogSoftmax": _softmax(ops.log_softmax),
    "Abs": _unary(ops.abs),
    "Cos": _unary(ops.cos),
    "Erf": _unary(ops.erf),
    "Exp": _unary(ops.exp),
    "Log": _unary(ops.log),
    "Neg": _unary(ops.negative),
    "Reciprocal": _unary(ops.reciprocal),
    "Sin": _unary(ops.sin),
    "Sqrt": _unary(ops.sqrt),
    "Add": _sum,
    "Sub": _elementwise(ops.subtract),
    "Mul": _elementwise(ops.multiply),
    "Div": _elementwise(ops.divide),
    "Pow": _elementwise(ops.power),
    "Max": _elementwise(ops.maximum),
    "Min": _elementwise(ops.minimum),
    "Sum": _sum,
    "Mean": _mean,
    "Where": _where,
    "ReduceMean": _reduce(ops.mean, layers.GlobalAveragePooling2D),
    "ReduceMax": _reduce(ops.max, layers.GlobalMaxPooling2D),
    "ReduceMin": _reduce(ops.min),
    "ReduceSum": _reduce(ops.sum),
    "ReduceL2": _reduce(_norm_2),
    "Reshape": _reshape,
    "Flatten": _flatten,
    "Squeeze": _squeeze,
    "Unsqueeze": _unsqueeze,
    "Transpose": _transpose,
    "Concat": _concat,
    "Split": _split,
    "SplitToSequence": _split,
    "Slice": _slice,
    "Gather": _gather,
    "Expand": _expand,
    "Tile": _tile,
    "Pad": _pad,
    "ScatterND": _scatter,
    "Shape": _shape,
    "Cast": _cast,
    "CastLike": _cast,
    "Identity": _identity,
    "Dropout": _identity,
}
