"""Which classes of the whole the columns of each teacher's logits stand for."""

from collections.abc import Sequence

import numpy as np
from keras import KerasTensor, ops

from cdfkd_tf.errors import RequestError


class ClassMap:
    """Puts the logits of teachers of different classes side by side.

    Args:
        columns: per teacher the class of the whole, from 0 on, that each of its
            columns stands for.
        num_classes: C, of the whole.

    Attributes:
        columns: as given, T tuples.
        num_classes: C.
        known: `(T, C)` bool, which teacher knows which class.
        mask: the same; None if all know all.

    Raises:
        RequestError: if two columns of a teacher stand for one class, a class is not
            in [0, C), or no teacher knows a class.
    """

    def __init__(self, columns: Sequence[Sequence[int]], num_classes: int):
        self.columns = [tuple(map(int, classes)) for classes in columns]
        self.num_classes = num_classes
        for index, classes in enumerate(self.columns):
            repeated = len(set(classes)) < len(classes)
            if repeated or not set(classes) <= set(range(num_classes)):
                raise RequestError(
                    f"The columns of teacher {index} must stand for different classes "
                    f"out of 0 to {num_classes - 1}; got {list(classes)}."
                )
        self.known = np.array(
            [np.isin(np.arange(num_classes), classes) for classes in self.columns]
        )
        if not self.known.any(axis=0).all():
            unknown = int(np.argmin(self.known.any(axis=0)))
            raise RequestError(
                f"No teacher knows class {unknown} of the {num_classes}."
            )
        self.mask = None if self.known.all() else self.known
        self._is_identity = all(
            classes == tuple(range(num_classes)) for classes in self.columns
        )

    @classmethod
    def identity(cls, num_teachers: int, num_classes: int) -> "ClassMap":
        """All teachers know all classes, in the same order."""
        return cls([range(num_classes)] * num_teachers, num_classes)

    def to_whole(self, logits: Sequence[KerasTensor]) -> KerasTensor:
        """Logits over the classes of the whole; 0 where `mask` is False.

        Args:
            logits: T tensors `(B, C_i)`, each over its teacher's own columns.

        Returns:
            `(B, T, C)`; with an identity map the numbers as they are.
        """
        if not self._is_identity:
            logits = [self._spread(*each) for each in zip(logits, self.columns)]
        return ops.stack(logits, axis=1)

    def rows_to_whole(self, rows: Sequence[np.ndarray]) -> np.ndarray:
        """One number per column of each teacher as `(T, C)`; 0 where it has none."""
        whole = np.zeros(self.known.shape)
        for into, row, classes in zip(whole, rows, self.columns):
            into[list(classes)] = row
        return whole

    def _spread(self, logits, classes):
        """One teacher's `(B, C_i)` to `(B, C)`: a column of zeros stands at the end."""
        source = np.full(self.num_classes, len(classes))
        source[list(classes)] = np.arange(len(classes))
        padded = ops.pad(logits, [(0, 0), (0, 1)])
        return ops.take(padded, source, axis=-1)


def mean_over_known(logits: KerasTensor, mask: np.ndarray | None) -> KerasTensor:
    """For each class the mean over the teachers, or headers, that know it.

    Args:
        logits: `(B, T, C)`, or `(B, H, C)` of headers.
        mask: `(T, C)` bool; None: all know all, as do headers whose number is not T.

    Returns:
        `(B, C)`.
    """
    if mask is None or len(mask) != logits.shape[1]:
        return ops.mean(logits, axis=1)
    known = ops.convert_to_tensor(mask, logits.dtype)
    return ops.sum(logits * known, axis=1) / ops.sum(known, axis=0)
