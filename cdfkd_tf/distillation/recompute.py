"""Recomputes teachers one by one in the backward pass to save memory."""

import tensorflow as tf
from keras import KerasTensor

from cdfkd_tf.distillation.losses import BnGap, bn_gap
from cdfkd_tf.teachers.ensemble import TeacherEnsemble, TeacherOutputs


def recomputed(
    ensemble: TeacherEnsemble, normalised: KerasTensor, needs: frozenset[str]
) -> tuple[TeacherOutputs, KerasTensor]:
    """The outputs of `ensemble`, whose gradient is computed teacher by teacher.

    The forward pass keeps each teacher's outputs and nothing else; the backward pass
    computes each teacher again, the last one first. The results are the same, up to
    rounding, for one more forward pass through every teacher.

    Args:
        ensemble: frozen.
        normalised: images `(B, height, width, channels)`.
        needs: as in `TeacherEnsemble`; feature maps are not kept.

    Returns:
        The outputs, with each teacher's `BnGap` in the place of its
        BatchNormalizations; and the images again, to be read after the teachers.
    """
    outputs = []
    for teacher in ensemble.teachers:
        *output, normalised = _one(teacher, normalised, needs)
        outputs.append(output)
    logits, features, gaps = map(list, zip(*outputs))
    gaps = [gap for gap in gaps if gap is not None]
    logits = ensemble.class_map.to_whole(logits)
    return TeacherOutputs(logits, features, gaps, []), normalised


def _one(teacher, normalised, needs) -> list:
    """Logits, features, gap, and the images again: the next teacher waits for them.

    In the gradient it is the other way round: the last output's comes from the later
    teachers, and this teacher waits for it.
    """
    has_features = "features" in teacher.provides
    has_gap, layers = "bn_statistics" in needs & teacher.provides, []

    def forward(images):
        output = teacher(images, needs)
        layers.append(len(output.bn))
        features = [output.features] if has_features else []
        return [output.logits, *features, *([bn_gap(output.bn)] if has_gap else [])]

    @tf.custom_gradient
    def computed(images):
        outputs = forward(images)

        def gradient(*upstream, variables=()):
            with tf.control_dependencies(upstream), tf.GradientTape() as tape:
                again = tf.identity(images)
                tape.watch(again)
                outputs = forward(again)
            *given, later = upstream
            total = tape.gradient(outputs, again, output_gradients=given) + later
            # TensorFlow watches variables, frozen or not.
            return (total, [None for _ in variables]) if variables else total

        with tf.control_dependencies(outputs):
            return [*outputs, tf.identity(images)], gradient

    logits, *rest, images = computed(normalised)
    features = rest.pop(0) if has_features else None
    gap = BnGap(rest.pop(), layers[0]) if has_gap else None
    return [logits, features, gap, images]
