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
    assert found["poor"] == (
        own["beyond_chance"] is not None and own["beyond_chance"] < quality.POOR
    )
    bad = {**found, "poor": True, "causes": ["this"]}
    bad["agreement"]["own"]["beyond_chance"] = 0.1
    with pytest.warns(DistillationWarning, match="10% beyond chance.*this"):
        assert quality.describe(bad)
