"""Several teachers, whose logits stand side by side over the classes of the whole."""

import functools
import re
from collections.abc import Sequence

import keras
import numpy as np
import tensorflow as tf
from keras import KerasTensor

from cdfkd_tf.errors import RequestError, RunError
from cdfkd_tf.teachers.class_map import ClassMap
from cdfkd_tf.teachers.hooks import TeacherOutputs
from cdfkd_tf.teachers.rules import Rule, choose_rule
from cdfkd_tf.teachers.teacher import Teacher

__all__ = ["TeacherEnsemble", "TeacherOutputs"]


class TeacherEnsemble:
    """Several frozen teachers.

    Args:
        teachers: `Teacher`s, or Keras classifiers that see normalised images as they
            are and answer logits.
        class_map: which classes they know; None: all the same, in the same order.
        rule: by which their answers become one, see `choose_rule`.
        counts: per teacher how many images of each of its classes it learned from;
            None: unknown.

    Attributes:
        teachers: T `Teacher`s.
        class_map: as given, or the identity.
        mask: `(T, C)` bool, which teacher knows which class; None if all know all.
        num_classes: C, of the whole.
        rule: by which their answers become one, a `Rule`.
        provides: per teacher what it provides, see `Teacher`.

    Raises:
        RequestError: no teacher, or teachers whose numbers of classes do not fit the
            map or, without one, each other.
    """

    def __init__(
        self,
        teachers: Sequence[Teacher | keras.Model],
        class_map: ClassMap | None = None,
        rule: str = "mean",
        counts: Sequence[Sequence[float]] | None = None,
    ):
        if not teachers:
            raise RequestError("At least one teacher is needed; got none.")
        self.teachers: list[Teacher] = []
        try:
            for teacher in teachers:
                plain = not isinstance(teacher, Teacher)
                self.teachers.append(Teacher(teacher) if plain else teacher)
            self.class_map = self._checked(class_map)
            self.rule = self._chosen(rule, counts)
        except Exception:
            self.release()
            raise
        self.mask = self.class_map.mask
        self.num_classes = self.class_map.num_classes
        self.provides = tuple(teacher.provides for teacher in self.teachers)

    def _checked(self, class_map: ClassMap | None) -> ClassMap:
        counts = [teacher.num_classes for teacher in self.teachers]
        if class_map is None and len(set(counts)) == 1:
            return ClassMap.identity(len(counts), counts[0])
        expected = class_map and [len(classes) for classes in class_map.columns]
        if expected == counts:
            return class_map
        said = ", ".join(f"{t.name} {t.num_classes}" for t in self.teachers)
        wanted = f"{expected} of the class map" if class_map else "the same classes"
        raise RequestError(f"All teachers must know {wanted}; they answer {said}.")

    def _chosen(self, rule: str, counts: Sequence[Sequence[float]] | None) -> Rule:
        whole = self.class_map.rows_to_whole
        norms = [teacher.class_norms for teacher in self.teachers]
        known = whole([row if row is not None else 1.0 for row in norms])
        rows = [None if norm is None else row for norm, row in zip(norms, known)]
        counted = None if counts is None else whole(counts)
        return choose_rule(rule, rows, self.class_map.known, counted)

    def __len__(self) -> int:
        return len(self.teachers)

    def __call__(
        self, normalised: KerasTensor, needs: frozenset[str] = frozenset()
    ) -> TeacherOutputs:
        """All teachers' outputs for normalised images; see `Teacher`.

        Args:
            normalised: `(B, height, width, channels)`.
            needs: what is wanted beside logits and features, "bn_statistics" or
                "feature_maps"; without these the pass takes fewer operations.
        """
        outputs = [teacher(normalised, needs) for teacher in self.teachers]
        logits, *inner = map(list, zip(*outputs))
        return TeacherOutputs(self.class_map.to_whole(logits), *inner)

    def answers(
        self, normalised: np.ndarray, needs: frozenset[str] = frozenset()
    ) -> TeacherOutputs:
        """As a call, from NumPy to NumPy; without gradient, outside any graph.

        Args:
            normalised: `(B, height, width, channels)`.
            needs: see `Teacher`.

        Raises:
            RunError: of a teacher that only answers, and failed.
        """
        try:
            outputs = self._traced(tf.constant(normalised), needs)
        except tf.errors.UnknownError as error:  # raised by Python within the graph
            said = re.search(r"RunError: (.+)", str(error))
            if not said:
                raise
            raise RunError(said[1]) from error
        return tf.nest.map_structure(
            lambda tensor: tensor if tensor is None else tensor.numpy(), outputs
        )

    @functools.cached_property
    def _traced(self):
        return tf.function(self.__call__, reduce_retracing=True, autograph=False)

    def combined(self, logits: KerasTensor) -> KerasTensor:
        """The answers of all teachers, or of a student's headers, as one, by the rule.

        Args:
            logits: `(B, T, C)`, or `(B, H, C)`.

        Returns:
            Logits `(B, C)`, see `Rule`.
        """
        return self.rule(logits)

    def optimise_for_inference(self, dtype_policy: str | None = None) -> None:
        """Lets all teachers compute faster, with the weights as they stand.

        Args:
            dtype_policy: see `Teacher.optimise_for_inference`.
        """
        for teacher in self.teachers:
            teacher.optimise_for_inference(dtype_policy)

    def release(self) -> None:
        """Gives all models back as they were, see `Teacher.release`."""
        for teacher in self.teachers:
            teacher.release()
