"""From names to objects: weights of a request, and terms that cannot be fed."""

import dataclasses

import keras
import numpy as np
import pytest
from keras import layers

from cdfkd_tf.config import RunConfig
from cdfkd_tf.distillation import build
from cdfkd_tf.distillation.distiller import Distiller
from cdfkd_tf.distillation.image_source import DatasetImages
from cdfkd_tf.distillation.methods import METHODS
from cdfkd_tf.errors import DistillationWarning, RequestError
from cdfkd_tf.teachers.ensemble import TeacherEnsemble
from tests import toys
from tests.rows import rows
from tests.toys import moved, values_of

ROW = METHODS["cdfkd_mfs"]
NOT_GIVEN = {"student": {}, "generator": {}}


def built(**options):
    return build.build_method(RunConfig(**options))


def test_weights_of_the_request_change_only_what_they_name():
    method = built(student_loss="feature=0", generator_loss={"entropy": 0.5})
    assert method.student == {"header": 1.0, "feature": 0.0, "ensemble": 5.0}
    assert method.generator == {"header": -1.0, "bn": 0.1, "entropy": 0.5}
    assert built() == ROW


@pytest.mark.slow
def test_every_term_can_be_weighed_for_the_roles_that_it_moves():
    for role in ("student", "generator"):
        terms = [term for term, row in build.TERMS.items() if role in row.roles]
        method = built(**{f"{role}_loss": dict.fromkeys(terms, 0.5)})
        assert {term: method.weights(role)[term] for term in terms} == (
            dict.fromkeys(terms, 0.5)
        )


def test_weights_that_mean_nothing_are_refused():
    for options, message in [
        ({"student_loss": "colour=1"}, r"--student_loss knows header, .*got 'colour'"),
        ({"generator_loss": "colour=0"}, "--generator_loss knows .*got 'colour'"),
        # Functions of the images alone: the student has nothing to minimise there.
        ({"student_loss": "bn=1"}, "--student_loss knows header, .*got 'bn'"),
        ({"student_loss": "entropy=1"}, "--student_loss knows .*got 'entropy'"),
        (
            {"method": "kd", "generator_loss": "bn=0.1"},
            r"--generator_loss=bn=0\.1, but --method=kd has no generator",
        ),
        (
            {"student_loss": "header=0,feature=0,ensemble=0"},
            "all its weights are 0.*--student_loss=header=1",
        ),
        ({"temperature": 4}, "--method=cdfkd_mfs compares logits. Leave it out"),
    ]:
        with pytest.raises(RequestError, match=message):
            built(**options)


@pytest.mark.slow
def test_a_weight_of_zero_is_allowed_where_there_is_no_generator():
    assert built(method="kd", generator_loss="bn=0") == METHODS["kd"]
    assert built(method="kd", temperature=4).temperature == 4


def ensemble(*models):
    return TeacherEnsemble(list(models))


def without_bn():
    return toys.classifier(norm=layers.LayerNormalization)


def wide(width):
    """A teacher whose features are of another width than the toys'."""
    image = keras.Input(toys.SHAPE)
    x = layers.BatchNormalization()(layers.Conv2D(width, 3)(image))
    return keras.Model(
        image, layers.Dense(toys.CLASSES)(layers.GlobalAveragePooling2D()(x))
    )


def suited(row, teachers, student, given=NOT_GIVEN, project=False):
    missing = build.unavailable(teachers, student, project=project)
    return build.drop_unavailable_terms(row, missing, given)


def test_terms_that_can_be_fed_stay(recwarn):
    teachers = ensemble(toys.classifier(), toys.classifier(depth=2))
    assert suited(ROW, teachers, toys.student(2)) == ROW
    assert not [w for w in recwarn if w.category is DistillationWarning]


def test_feature_term_of_other_widths_is_dropped_with_a_note():
    teachers, student = ensemble(wide(7), wide(8)), toys.student(2)
    with pytest.warns(DistillationWarning, match=r"6 wide, the teachers' \[7, 8\]"):
        method = suited(ROW, teachers, student)
    assert method.student == {**ROW.student, "feature": 0}
    given = {"student": {"feature": 0.2}, "generator": {}}
    with pytest.raises(RequestError, match="--student_loss=feature=0"):
        suited(ROW, teachers, student, given)
    assert suited(ROW, teachers, student, project=True) == ROW


def test_attention_term_is_refused_where_images_are_kept_with_logits_alone():
    teachers, student = ensemble(toys.classifier(), toys.classifier()), toys.student(2)
    options = {"images": "procedural", "student_loss": "header=1,attention=1"}
    config = RunConfig(method="cdfkd_mfs", **options)
    with pytest.raises(RequestError, match="kept with logits and features"):
        build.available_method(config, teachers, student)


def test_bn_term_without_any_bn_is_dropped_with_a_note():
    teachers, student = ensemble(without_bn(), without_bn()), toys.student(2)
    row = dataclasses.replace(ROW, student={"header": 1.0})
    with pytest.warns(DistillationWarning, match=r"no teacher has .*worse student"):
        method = suited(row, teachers, student)
    assert method.generator == {**ROW.generator, "bn": 0}
    with pytest.raises(RequestError, match=r"generator's bn term.*no teacher has "):
        suited(row, teachers, student, {"student": {}, "generator": {"bn": 0.1}})
    alone = dataclasses.replace(row, generator={"header": 0.0, "bn": 0.1})
    with pytest.raises(RequestError, match="leave another term"):
        suited(alone, teachers, student)


@pytest.mark.slow
def test_bn_term_stays_where_one_teacher_has_bn(recwarn):
    teachers = ensemble(without_bn(), toys.classifier())
    row = dataclasses.replace(ROW, student={"header": 1.0})
    assert suited(row, teachers, toys.student(2)) == row


@rows("headers, teachers", [(2, 3), (1, 2)])
def test_header_terms_need_a_header_per_teacher(headers, teachers):
    models = ensemble(*(toys.classifier() for _ in range(teachers)))
    message = f"{headers} headers and there are {teachers} teachers"
    with pytest.raises(RequestError, match=f"header term cannot be had.*{message}"):
        suited(ROW, models, toys.student(headers))
    row = toys.method("dfad")  # compares means alone
    assert suited(row, models, toys.student(headers)) == row


def test_projection_learns_with_the_student_and_closes_the_gap():
    keras.utils.set_random_seed(0)
    teachers, student = ensemble(wide(7), wide(8)), toys.student(2)
    projection = build.build_projection(student, teachers, seed=0)
    row = dataclasses.replace(ROW, student={"feature": 1.0})
    engine = Distiller(
        student, teachers, row, DatasetImages(None, 8, 0), projection=projection
    )
    engine.compile(keras.optimizers.SGD(1e-3))
    assert engine.state["projection"] is projection
    images, losses, before = toys.images(), [], values_of(projection)
    batch = engine.prepare((images, None))
    for _ in range(6):
        engine.reset_metrics()
        engine.student_step(batch, 0)
        losses.append(float(engine.term_means()["student_feature"]))
    assert losses[-1] < losses[0]
    assert len(moved(before, values_of(projection))) == 2
    features = student(images)["features"]
    for header, width in enumerate((7, 8)):
        mapped = projection(features)[header]
        kernel = projection.get_layer(f"header{header}_projection").kernel
        assert mapped.shape == (8, width)
        expected = np.asarray(features)[:, header] @ np.asarray(kernel)
        np.testing.assert_allclose(mapped, expected, atol=1e-4)


@rows(
    "options, message",
    [
        ({"images": "real,procedural"}, "stand alone"),
        ({"images": "generated", "method": "kd"}, "has no generator"),
        ({"images": "noise", "generator_loss": "bn=1"}, "has no generator"),
        ({"images": "generated,inverted"}, "without each other"),
        ({"method": "fast", "conditional_generator": True}, "by itself"),
        ({"images": "drawn"}, "must be one of generated"),
    ],
)
def test_build_method_refuses_images_that_do_not_go_together(options, message):
    with pytest.raises(RequestError, match=message):
        build.build_method(RunConfig(**options))


def test_build_method_of_other_images_has_no_generator():
    method = build.build_method(RunConfig(images="procedural,noise"))
    assert method.images == ("procedural", "noise") and not method.generator
    assert method.student == {"header": 1.0, "feature": 0.2, "ensemble": 5.0}
    mixed = RunConfig(images="generated,noise", method="cdfkd_plus")
    assert build.build_method(mixed).generator
