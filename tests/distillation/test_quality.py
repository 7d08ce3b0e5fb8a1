"""What is said of a student without any label."""

import numpy as np
import pytest

from cdfkd_tf.config import RunConfig
from cdfkd_tf.data.specs import plain_spec
from cdfkd_tf.distillation import quality
from cdfkd_tf.errors import DistillationWarning
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
    picks = np.array([[0, 0, 0, 0], [0, 0, 0, 1], [0, 0, 1, 1]])
    logits = np.eye(3)[picks]
    assert quality.agreed(logits, np.zeros(3, int)).tolist() == [True, True, False]
    three = quality.agreed(logits[:, 1:], np.zeros(3, int))
    assert three.tolist() == [True, False, False]
    mask = np.ones((4, 3), bool)
    mask[2:, 0] = False  # these two know nothing of class 0
    assert quality.agreed(logits, np.zeros(3, int), mask).all()
    alone = np.log([[[0.95, 0.05]], [[0.85, 0.15]]])
    assert quality.agreed(alone, np.zeros(2, int)).tolist() == [True, False]


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
    assert found["poor"] == ((expected or 0) < quality.POOR)
    bad = {**found, "poor": True, "causes": ["this"]}
    bad["agreement"]["own"]["where_teachers_agree"] = 0.1
    with pytest.warns(DistillationWarning, match="10% beyond chance.*this"):
        assert quality.describe(bad)
