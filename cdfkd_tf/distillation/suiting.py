"""What of a method these teachers and this student can do, said once."""

import dataclasses
import warnings
from collections.abc import Collection

import keras

from cdfkd_tf.distillation.methods import Method
from cdfkd_tf.errors import DistillationWarning, RequestError
from cdfkd_tf.teachers.ensemble import TeacherEnsemble


def suit_method(
    method: Method,
    teachers: TeacherEnsemble,
    student: keras.Model,
    *,
    asked: Collection[str] = (),
    project: bool = False,
) -> Method:
    """The method without the terms that nothing here can feed; warns of each.

    Args:
        method: as the table and the request have it.
        teachers: the frozen teachers.
        student: a stack of headers.
        asked: terms whose weights the user gave, as `student_feature`; these are
            refused and not left out.
        project: whether features of other widths are reached by a learned map.

    Raises:
        RequestError: a term that was asked for and cannot be had, or a generator that
            is left with nothing to minimise.
    """
    return _without_bn(
        _without_features(method, teachers, student, asked, project), teachers, asked
    )


def _without_features(method, teachers, student, asked, project) -> Method:
    if not method.student.get("feature"):
        return method
    width = student.output["features"].shape[-1]
    widths = [teacher.feature_width for teacher in teachers.teachers]
    if None in widths:
        name = teachers.teachers[widths.index(None)].name
        why = f"teacher {name} shows no features (no Dense layer)"
        remedy = "Name a layer with --teacher_features."
    elif set(widths) != {width} and not project:
        others = sorted(set(widths))
        why = f"the student's features are {width} wide, the teachers' {others}"
        remedy = "--project_features learns a map between them."
    else:
        return method
    if "student_feature" in asked:
        raise RequestError(
            f"The feature term compares equal widths, header by teacher, and {why}. "
            f"Use --student_feature_weight=0, or a student of the teachers' width. "
            f"{remedy}"
        )
    warnings.warn(
        f"The student learns without the feature term: {why}. {remedy}",
        DistillationWarning,
        stacklevel=2,
    )
    return dataclasses.replace(method, student={**method.student, "feature": 0.0})


def _without_bn(method, teachers, asked) -> Method:
    without = [t.name for t in teachers.teachers if not t.num_batch_norms]
    if not method.generator.get("bn") or not without:
        return method
    if len(without) < len(teachers):
        warnings.warn(
            f"No BatchNormalization in {', '.join(without)}: the bn term, which keeps "
            "invented images near the training data, comes from the other teachers.",
            DistillationWarning,
            stacklevel=2,
        )
        return method
    generator = {**method.generator, "bn": 0.0}
    if "generator_bn" in asked or not any(generator.values()):
        raise RequestError(
            "The bn term reads the teachers' BatchNormalization statistics, and no "
            "teacher has any. Use --generator_bn_weight=0 and leave the generator "
            "another term (--generator_header_weight=-1)."
        )
    warnings.warn(
        "No teacher has BatchNormalization (or shows it): nothing keeps invented "
        "images near the training data, so expect a worse student. Watch samples/.",
        DistillationWarning,
        stacklevel=2,
    )
    return dataclasses.replace(method, generator=generator)


def build_projection(
    student: keras.Model, teachers: TeacherEnsemble, seed: int
) -> keras.Model:
    """Linear maps from each header's features to its teacher's width.

    Args:
        student: a stack of headers.
        teachers: one per header.
        seed: of the initial weights.

    Returns:
        A model from `(B, H, W)` to a list of H tensors `(B, W_i)`.
    """
    features = keras.Input(student.output["features"].shape[1:], name="features")
    maps = [
        keras.layers.Dense(
            teacher.feature_width,
            use_bias=False,
            kernel_initializer=keras.initializers.GlorotUniform(seed + header),
            name=f"header{header}_projection",
        )(features[:, header])
        for header, teacher in enumerate(teachers.teachers)
    ]
    return keras.Model(features, maps, name="projection")
