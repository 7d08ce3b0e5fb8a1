"""Recomputes teachers one by one in the backward pass to save memory."""

from collections.abc import Sequence
from typing import NamedTuple

import tensorflow as tf
from keras import KerasTensor

from cdfkd_tf.distillation.losses import statistics_gap
from cdfkd_tf.teachers.ensemble import TeacherEnsemble
from cdfkd_tf.teachers.teacher import Teacher


class RecomputedOutputs(NamedTuple):
    """As `TeacherOutputs`, but for the BatchNormalizations and the images.

    Attributes:
        logits: `(B, T, C)`.
        features: T tensors `(B, W_i)`, or None.
        bn: each teacher's `statistics_gap`, where it has one.
        maps: always empty.
        images: the normalised images again, to be read after the teachers.
    """

    logits: KerasTensor
    features: Sequence[KerasTensor | None]
    bn: Sequence[KerasTensor]
    maps: Sequence
    images: KerasTensor


class RecomputedTeachers:
    """A `TeacherEnsemble` whose gradient is computed teacher by teacher.

    The forward pass keeps each teacher's outputs and nothing else; the backward pass
    computes each teacher again, the last one first. The results are the same, up to
    rounding, for one more forward pass through every teacher.

    Args:
        teachers: frozen.
    """

    def __init__(self, teachers: TeacherEnsemble):
        self.teachers = teachers

    def __call__(
        self, normalised: KerasTensor, needs: frozenset[str] = frozenset()
    ) -> RecomputedOutputs:
        """All teachers' outputs for images `(B, height, width, channels)`.

        Args:
            normalised: the images.
            needs: as in `TeacherEnsemble`; feature maps are not kept.
        """
        outputs = []
        for teacher in self.teachers.teachers:
            *output, normalised = self._one(teacher, normalised, needs)
            outputs.append(output)
        logits, features, gaps = map(list, zip(*outputs))
        return RecomputedOutputs(
            logits=self.teachers.class_map.to_whole(logits),
            features=features,
            bn=[gap for gap in gaps if gap is not None],
            maps=[],
            images=normalised,
        )

    def _one(
        self, teacher: Teacher, normalised: KerasTensor, needs: frozenset[str]
    ) -> list:
        """Logits, features, gap, and the images again: the next teacher waits for them.

        In the gradient it is the other way round: the last output's comes from the
        later teachers, and this teacher waits for it.
        """
        has_features = "features" in teacher.provides
        has_gap = "bn_statistics" in needs & teacher.provides

        def forward(images):
            output = teacher(images, needs)
            tensors = [output.logits]
            if has_features:
                tensors.append(output.features)
            if has_gap:
                tensors.append(statistics_gap(output.bn))
            return tensors

        @tf.custom_gradient
        def recomputed(images):
            outputs = forward(images)

            def gradient(*upstream, variables=()):
                with tf.control_dependencies(upstream), tf.GradientTape() as tape:
                    again = tf.identity(images)
                    tape.watch(again)
                    outputs = forward(again)
                *given, later = upstream
                own = tape.gradient(outputs, again, output_gradients=given)
                if variables:  # TensorFlow watches them, frozen or not
                    return own + later, [None for _ in variables]
                return own + later

            with tf.control_dependencies(outputs):
                return [*outputs, tf.identity(images)], gradient

        logits, *rest, images = recomputed(normalised)
        features = rest.pop(0) if has_features else None
        return [logits, features, rest.pop() if has_gap else None, images]
