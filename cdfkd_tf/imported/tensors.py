"""Tensors of a file's network on their way into Keras: layout, axes, shapes.

Files count axes in their own order, mostly channels first; TensorFlow computes with
channels last. A `Symbol` remembers where each of the file's axes lies, so that a
transposition costs nothing until an operation needs another layout.
"""

import dataclasses
import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from keras import KerasTensor, ops

# Stands for the count of images in all arithmetic with shapes: a prime that no side of
# a tensor is a multiple of.
BATCH = 1009


class Unsupported(Exception):
    """What a file asks for has no counterpart here; the message says what."""


@dataclasses.dataclass(frozen=True)
class Symbol:
    """A tensor that depends on the images.

    Attributes:
        tensor: in whatever layout.
        axes: for each of the file's axes the axis of `tensor`.
        batch: the file's axis that counts images, alone or times `factor`.
        factor: see `batch`.
    """

    tensor: KerasTensor
    axes: tuple[int, ...]
    batch: int = 0
    factor: int = 1

    @property
    def rank(self) -> int:
        """How many axes there are."""
        return len(self.axes)

    @property
    def shape(self) -> list[int | None]:
        """In the file's order; of images as many as `BATCH`; None where open."""
        sides = [self.tensor.shape[axis] for axis in self.axes]
        sides[self.batch] = BATCH * self.factor
        return sides

    def axis(self, axis: int) -> int:
        """Where the file's axis, which may count from the end, lies in `tensor`."""
        return self.axes[axis % self.rank]

    def with_tensor(self, tensor: KerasTensor) -> "Symbol":
        """Another tensor, of as many axes, which lie alike."""
        return dataclasses.replace(self, tensor=tensor)

    def moved(self, axes: Sequence[int]) -> "Symbol":
        """The same in another layout."""
        axes = tuple(axes)
        order = [0] * self.rank
        for old, new in zip(self.axes, axes):
            order[new] = old
        tensor = _transposed(self.tensor, order)
        return dataclasses.replace(self, tensor=tensor, axes=axes)

    def plain(self) -> "Symbol":
        """In the file's order."""
        return self.moved(range(self.rank))

    def channels_last(self) -> "Symbol":
        """The file's axis 1 last, as Keras wants channels."""
        return self.moved([0, self.rank - 1, *range(1, self.rank - 1)])

    def with_last(self, axis: int) -> "Symbol":
        """One of the file's axes last, the others as they lie."""
        place = self.axis(axis)
        moved = [a - (a > place) for a in self.axes]
        moved[axis % self.rank] = self.rank - 1
        return self.moved(moved)

    def transposed(self, order: Sequence[int]) -> "Symbol":
        """The file's axes in another order; nothing is computed."""
        return dataclasses.replace(
            self,
            axes=tuple(self.axes[axis] for axis in order),
            batch=list(order).index(self.batch),
        )

    def without(self, axes: Sequence[int], tensor: KerasTensor) -> "Symbol":
        """What is left of the layout when an operation took some of the file's axes.

        Args:
            axes: of the file, those that are gone.
            tensor: what the operation made, its axes in the order of before.

        Raises:
            Unsupported: the axis of the images is among them.
        """
        gone = {axis % self.rank for axis in axes}
        if self.batch in gone:
            raise Unsupported("the images of a batch are mixed")
        kept = [axis for axis in range(self.rank) if axis not in gone]
        places = sorted(self.axes[axis] for axis in kept)
        return dataclasses.replace(
            self,
            tensor=tensor,
            axes=tuple(places.index(self.axes[axis]) for axis in kept),
            batch=kept.index(self.batch),
        )

    def reshaped(self, target: Sequence[int]) -> "Symbol":
        """Other sides, in the file's order, for the same numbers.

        Args:
            target: multiples of `BATCH` count images.

        Raises:
            Unsupported: open sides, or images mixed with each other.
        """
        shape = self.shape
        if target == shape:
            return self
        if None in shape or math.prod(shape) != math.prod(target):
            raise Unsupported(
                f"it reshapes {_told(shape)} to {_told(target)}; images need a fixed "
                "height and width"
            )
        groups = aligned(shape, target)
        # Merged axes side by side, the rest where it lies.
        groups.sort(key=lambda group: self._place(group[0], shape))
        order = [self.axes[axis] for group, _ in groups for axis in group]
        made = [axis for _, group in groups for axis in group]
        counting = [axis for axis in made if target[axis] % BATCH == 0]
        if len(counting) != 1:
            raise Unsupported("the images of a batch are mixed")
        batch = counting[0]
        tensor = _transposed(self.tensor, order, flexible=True)
        sides = [-1 if axis == batch else int(target[axis]) for axis in made]
        axes = tuple(made.index(axis) for axis in range(len(target)))
        return Symbol(
            ops.reshape(tensor, sides), axes, batch, int(target[batch]) // BATCH
        )

    def _place(self, group, shape) -> int:
        real = [self.axes[axis] for axis in group if shape[axis] != 1]
        return min(real or [self.axes[axis] for axis in group], default=-1)


def _transposed(tensor: KerasTensor, order: list[int], flexible=False) -> KerasTensor:
    """`tensor` with its axes in `order`; sides of 1 need no moving of numbers.

    Args:
        tensor: any.
        order: axes of `tensor`.
        flexible: what follows is a reshape, so that sides of 1 may stay anywhere.
    """
    real = [axis for axis in order if tensor.shape[axis] != 1]
    if real != sorted(real):
        return ops.transpose(tensor, order)
    sides = [tensor.shape[axis] for axis in order]
    if flexible or order == sorted(order):
        return tensor
    if sides.count(None) > 1:
        return ops.transpose(tensor, order)
    return ops.reshape(tensor, [-1 if side is None else side for side in sides])


def aligned(
    shape: Sequence[int], target: Sequence[int]
) -> list[tuple[list[int], list[int]]]:
    """Which axes of a reshape's input become which of its output.

    Args:
        shape: of the input.
        target: of the output, of the same product.

    Returns:
        Pairs of neighbouring axes with the same product, as small as can be.

    Raises:
        Unsupported: products that differ.
    """
    groups: list[tuple[list[int], list[int]]] = []
    old, new = 0, 0
    while old < len(shape) and new < len(target):
        group = ([old], [new])
        left, right = shape[old], target[new]
        old, new = old + 1, new + 1
        while left != right:
            if left < right and old < len(shape):
                left, old = left * shape[old], old + 1
                group[0].append(old - 1)
            elif new < len(target):
                right, new = right * target[new], new + 1
                group[1].append(new - 1)
            else:
                raise Unsupported(f"it reshapes {_told(shape)} to {_told(target)}")
        groups.append(group)
    if not groups:
        groups.append(([], []))
    groups[-1][0].extend(range(old, len(shape)))  # sides of 1
    groups[-1][1].extend(range(new, len(target)))
    return groups


def with_batch(
    symbol: Symbol, target: Sequence[int], fixed: int | None
) -> Sequence[int]:
    """The shape that a file asks for, in terms of `BATCH`.

    Args:
        symbol: what is reshaped.
        target: sides, -1 for one that follows from the others.
        fixed: the count of images that the file was made for; None: any.

    Raises:
        Unsupported: maps of open sides.
    """
    shape = symbol.shape
    if None in shape:
        raise Unsupported("it needs images of a fixed height and width")
    target = [int(side) for side in target]
    # A file for a fixed count has numbers in the place of the count.
    counted = any(side % BATCH == 0 for side in target if side > 0)
    filed = [*shape]
    if fixed and not counted:
        filed[symbol.batch] = symbol.factor * fixed
    if -1 in target:
        rest = math.prod(side for side in target if side != -1)
        target[target.index(-1)] = math.prod(filed) // max(rest, 1)
    if filed != shape and math.prod(filed) == math.prod(target):
        old, new = next(g for g in aligned(filed, target) if symbol.batch in g[0])
        before = math.prod(filed[axis] for axis in old if axis < symbol.batch)
        passed = 1
        for axis in new:
            if passed == before and target[axis] % fixed == 0:
                target[axis] = target[axis] // fixed * BATCH
                break
            passed *= target[axis]
    return target


def constant_like(value: np.ndarray, symbol: Symbol, fixed: int | None) -> Any:
    """A constant that meets a symbol: a number, or an array in the symbol's layout.

    Args:
        value: of at most the symbol's rank.
        symbol: what it is combined with.
        fixed: as in `with_batch`.
    """
    value = np.asarray(value)
    if value.dtype.kind == "f":
        value = value.astype("float32")
    value = value.reshape((1,) * (symbol.rank - value.ndim) + value.shape)
    value = _for_one(value, symbol.batch, symbol.factor, fixed)
    if value.size == 1:
        return value.item()
    order = sorted(range(symbol.rank), key=lambda axis: symbol.axes[axis])
    return value.transpose(order)


def _for_one(value: np.ndarray, axis: int, factor: int, fixed: int | None):
    """A constant repeated for each image: once."""
    for count in (BATCH, fixed or 1):
        if count > 1 and value.shape[axis] == count * factor and factor == 1:
            once = value.take([0], axis)
            if not (value == once).all():
                raise Unsupported("the file holds other numbers for each image")
            return once
    return value


def combined(values: Sequence[Any], fixed: int | None) -> tuple[Symbol, list[Any]]:
    """Symbols and constants brought to one layout, to be combined element by element.

    Args:
        values: `Symbol`s, at least one, and arrays.
        fixed: as in `with_batch`.

    Returns:
        The symbol whose layout it is, and what Keras combines.
    """
    rank = max(v.rank if isinstance(v, Symbol) else np.ndim(v) for v in values)
    symbols = [_of_rank(v, rank) for v in values if isinstance(v, Symbol)]
    model = max(symbols, key=lambda s: math.prod(side or BATCH for side in s.shape))
    rest = iter(symbols)
    return model, [
        next(rest).moved(model.axes).tensor
        if isinstance(value, Symbol)
        else constant_like(value, model, fixed)
        for value in values
    ]


def _of_rank(symbol: Symbol, rank: int) -> Symbol:
    missing = rank - symbol.rank
    return symbol.reshaped([1] * missing + symbol.shape) if missing else symbol


def _told(shape: Sequence[int | None]) -> str:
    sides = ("images" if side == BATCH else side or "?" for side in shape)
    return f"({', '.join(map(str, sides))})"
