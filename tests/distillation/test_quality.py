"""What is said of a student without any label."""

import numpy as np
import pytest

from cdfkd_tf.config import RunConfig
from cdfkd_tf.data.specs import plain_spec
from cdfkd_tf.distillation import quality
from cdfkd_tf.errors import DistillationWarning
from cdfkd_tf.teachers.rules import Rule, choose_rule
from tests import toys


def test_beyond_chance_is_the_mean_over_classes_less_what_guessing_gives():
    theirs = np.repeat([0, 2, 3], [90, 10, 1])  # one image tells nothing of a class
    ours = theirs.copy()
    ours[90:95] = 1
    expected = ((1 + 0.5) / 2 - 0.5) / 0.5
    assert quality.beyond_chance(ours, theirs) == pytest.approx(expected)
    assert quality.beyond_chance(theirs, theirs) == 1
    assert quality.beyond_chance(theirs * 0, theirs) == pytest.approx(0)
    assert quality.beyond_chance(ours, theirs * 0) is None


def test_teachers_agree_where_three_quarters_of_those_who_know_the_class_do():
    picks = np.array([[0, 0, 0, 0], [0, 0, 0, 1], [0, 0, 2, 1]])
    logits = np.eye(3, dtype="float32")[picks]
    assert quality.agreed(logits, Rule()).tolist() == [True, True, False]
    three = quality.agreed(logits[:, [0, 2, 3]], Rule())
    assert three.tolist() == [True, False, False]
    mask = np.ones((4, 3), bool)
    mask[2:, 0] = False  # these two know nothing of class 0
    assert quality.agreed(logits, Rule(mask=mask)).all()


def test_where_teachers_differ_or_there_is_one_the_answer_has_to_be_sure():
    alone = np.log(np.float32([[[0.95, 0.05]], [[0.85, 0.15]]]))
    assert quality.agreed(alone, Rule()).tolist() == [True, False]
    knows = np.array([[True, True, False, False], [False, False, True, True]])
    unlike = choose_rule("auto", [None, None], knows)
    first = [[0.999, 0.001, 0, 0], [0.96, 0.04, 0, 0], [0.6, 0.4, 0, 0]]
    shares = np.stack([first, np.tile([0, 0, 0.5, 0.5], (3, 1))], 1) + 1e-6
    entropy = -np.sum(shares * np.log(shares) * knows, axis=-1)
    joined = np.sum(np.exp(-4 * entropy)[..., None] * shares * knows, axis=1)
    expected = joined.max(-1) / joined.sum(-1) > 0.9
    assert expected.tolist() == [True, False, False]
    found = quality.agreed(np.log(np.float32(shares)), unlike)
    assert found.tolist() == expected.tolist()


def test_look_measures_agreement_on_images_of_several_sources():
    distiller = toys.distiller()
    spec = plain_spec("none", toys.SHAPE, toys.CLASSES)
    config = RunConfig(teachers="a,b", dataset="none", image_shape=toys.SHAPE)
    found = quality.look(distiller, config, spec)
    assert found["images"] == "images that a generator made up"
    assert set(found["agreement"]) == {"own", "procedural", "noise"}
    images = np.concatenate(list(distiller.source.observe()))
    student = distiller.student(images)["logits"].numpy().mean(1).argmax(-1)
    teachers = np.mean([t(images).logits for t in distiller.teachers.teachers], 0)
    own = found["agreement"]["own"]
    assert own["share"] == pytest.approx(np.mean(student == teachers.argmax(-1)))
    apart = [t(images).logits.numpy().argmax(-1) for t in distiller.teachers.teachers]
    sure = apart[0] == apart[1]
    expected = quality.beyond_chance(student[sure], teachers.argmax(-1)[sure])
    assert own["where_teachers_agree"] == pytest.approx(expected)
    formula = found["agreement"]["procedural"]["where_teachers_agree"]
    least = min(expected or 0, 1 if formula is None else formula)
    assert found["poor"] == (least < quality.POOR)
    bad = {**found, "poor": True, "causes": ["this"]}
    bad["agreement"]["own"]["where_teachers_agree"] = 0.1
    with pytest.warns(DistillationWarning, match="10% beyond chance.*this"):
        assert quality.describe(bad)


@pytest.mark.parametrize(
    "own, formula, said",
    [(0.9, 0.5, "by formula.*only 50%"), (0.6, 0.9, "its own kinds.*only 60%")],
)
def test_the_source_on_which_a_student_is_worst_is_named(own, formula, said):
    agreement = {
        name: {"share": 0.9, "where_teachers_agree": near}
        for name, near in (("own", own), ("procedural", formula), ("noise", 0.0))
    }
    with pytest.warns(DistillationWarning, match=said):
        quality.describe({"agreement": agreement, "poor": True, "causes": ["this"]})
