"""Teachers that take turns, so that only one's inner maps are in memory at a time."""

from typing import Any, NamedTuple

import tensorflow as tf
from keras import KerasTensor

from cdfkd_tf.distillation.methods import statistics_gap
from cdfkd_tf.teachers.ensemble import TeacherEnsemble
from cdfkd_tf.teachers.teacher import Teacher


class _Outputs(NamedTuple):
    logits: KerasTensor
    features: list
    bn: list
    images: KerasTensor


class OneByOne:
    """A `TeacherEnsemble` whose gradient is computed teacher by teacher.

    Going forward keeps each teacher's answers and nothing else; for the gradient each
    is asked again, the last one first. The results are the same, up to rounding, for
    one more pass through every teacher.

    Args:
        teachers: frozen.
        statistics: whether `bn` is wanted.
    """

    def __init__(self, teachers: TeacherEnsemble, *, statistics: bool):
        self.teachers, self.statistics = teachers, statistics

    def __call__(self, images: KerasTensor, needs: frozenset[str]) -> Any:
        """What all teachers say about normalised images `(B, height, width, ch)`.

        Returns:
            As `TeacherEnsemble`, but `bn` holds each teacher's `statistics_gap`, if
            any; and `images`: the same ones, for whoever comes after the teachers.
        """
        answers = []
        for teacher in self.teachers.teachers:
            *answer, images = self._ask(teacher, images, needs)
            answers.append(answer)
        logits, features, gaps = map(list, zip(*answers))
        return _Outputs(
            logits=self.teachers.class_map.to_whole(logits),
            features=features,
            bn=[gap for gap in gaps if gap is not None],
            images=images,
        )

    def _ask(self, teacher: Teacher, images: KerasTensor, needs) -> list:
        """Logits, features, gap and the images again: the next teacher waits for them.

        In the gradient it is the other way round: the last output's comes from whoever
        was later, and this teacher waits for it.
        """
        shown = teacher.feature_width is not None
        measured = self.statistics and bool(teacher.num_batch_norms)

        def answer(images):
            logits, features, layers, _ = teacher(images, needs)
            answers = [logits]
            if shown:
                answers.append(features)
            if measured:
                answers.append(statistics_gap(layers))
            return answers

        @tf.custom_gradient
        def ask(images):
            answers = answer(images)

            def gradient(*upstream, variables=()):
                with tf.control_dependencies(upstream), tf.GradientTape() as tape:
                    again = tf.identity(images)
                    tape.watch(again)
                    answers = answer(again)
                *given, later = upstream
                own = tape.gradient(answers, again, output_gradients=given)
                if variables:  # TensorFlow watches them, frozen or not
                    return own + later, [None for _ in variables]
                return own + later

            with tf.control_dependencies(answers):
                return [*answers, tf.identity(images)], gradient

        logits, *rest, images = ask(images)
        features = rest.pop(0) if shown else None
        return [logits, features, rest.pop() if measured else None, images]
