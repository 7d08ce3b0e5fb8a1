"""Teachers side by side over the classes of the whole."""

import keras
import numpy as np
import pytest
from keras import layers

from cdfkd_tf.errors import RequestError
from cdfkd_tf.networks.classifiers import build_classifier
from cdfkd_tf.teachers.class_map import ClassMap
from cdfkd_tf.teachers.ensemble import TeacherEnsemble
from tests import toys
from tests.networks.test_bn_folding import with_statistics
from tests.rows import rows
from tests.teachers.test_teacher import state_of

IMAGES = np.random.default_rng(0).normal(size=(4, 8, 8, 1)).astype("float32")
BN = frozenset({"bn_statistics"})


def classifier(name="wrn10_1", classes=4, seed=0):
    return with_statistics(build_classifier(name, (8, 8, 1), classes), seed)


def test_ensemble_stacks_teachers_of_different_architectures():
    models = [classifier(name) for name in ("wrn10_1", "wrn16_2")]
    ensemble = TeacherEnsemble(models)
    outputs = ensemble(IMAGES, BN)
    assert outputs.logits.shape == (4, 2, 4)
    for index, model in enumerate(models):
        np.testing.assert_allclose(
            outputs.logits[:, index], model(IMAGES), rtol=1e-4, atol=1e-5
        )
    assert [f.shape[-1] for f in outputs.features] == [64, 128]
    assert [len(bn) for bn in outputs.bn] == [7, 13]
    assert len(ensemble) == 2 and ensemble.mask is None
    everything = {"gradient", "features", "bn_statistics", "feature_maps"}
    assert ensemble.provides == (everything, everything)


def test_ensemble_gives_features_as_none_where_a_teacher_has_none():
    plain = keras.Sequential([keras.Input((8, 8, 1)), layers.Conv2D(4, 8)])
    image = keras.Input((8, 8, 1))
    without = keras.Model(image, layers.Flatten()(plain(image)))
    outputs = TeacherEnsemble([classifier(), without])(IMAGES)
    assert outputs.features[0].shape == (4, 64) and outputs.features[1] is None
    assert outputs.bn == outputs.maps == [[], []]


def test_ensemble_of_different_class_counts_is_refused_and_models_given_back():
    models = [classifier(classes=count) for count in (4, 5)]
    before = [state_of(model) for model in models]
    with pytest.raises(RequestError, match=r"the same classes; they answer wrn10_1 4"):
        TeacherEnsemble(models)
    assert [state_of(model) for model in models] == before


def test_ensemble_of_no_teacher_is_refused():
    with pytest.raises(RequestError, match="At least one teacher"):
        TeacherEnsemble([])


@pytest.mark.slow
def test_ensemble_refuses_a_class_map_of_other_teachers():
    with pytest.raises(RequestError, match=r"know \[2, 4\] of the class map"):
        TeacherEnsemble(
            [classifier(), classifier()], ClassMap([(0, 1), (0, 1, 2, 3)], 4)
        )


def test_ensemble_spreads_logits_over_the_classes_of_the_whole():
    models = [classifier(classes=2), classifier(classes=3, seed=1)]
    ensemble = TeacherEnsemble(models, ClassMap([(3, 0), (1, 2, 3)], 4))
    logits = np.asarray(ensemble(IMAGES).logits)
    expected = np.zeros((4, 2, 4), "float32")
    expected[:, 0, [3, 0]] = models[0](IMAGES)
    expected[:, 1, [1, 2, 3]] = models[1](IMAGES)
    np.testing.assert_allclose(logits, expected, rtol=1e-4, atol=1e-5)
    assert ensemble.num_classes == 4
    known = [[1, 0, 0, 1], [0, 1, 1, 1]]
    np.testing.assert_array_equal(ensemble.mask, np.array(known, bool))
    mean = expected[:, 0] + expected[:, 1]
    mean[:, 3] /= 2
    np.testing.assert_allclose(ensemble.combined(logits), mean, atol=1e-5)


def test_ensemble_mean_is_the_plain_mean_where_all_know_all():
    ensemble = TeacherEnsemble([classifier(), classifier(seed=1)])
    logits = ensemble(IMAGES).logits
    np.testing.assert_array_equal(
        ensemble.combined(logits), keras.ops.mean(logits, axis=1)
    )


@rows("policy", [None, "mixed_bfloat16"])
def test_ensemble_optimised_for_inference_gives_the_same_outputs(policy):
    models = [classifier(name, seed=s) for s, name in enumerate(("wrn10_1", "wrn16_1"))]
    ensemble = TeacherEnsemble(models)
    before = ensemble(IMAGES, BN)
    bound = 1e-5 if policy is None else 0.1
    for _ in range(2):
        ensemble.optimise_for_inference(policy)
        exact, folded = ensemble(IMAGES, BN), ensemble(IMAGES)
        for name in ("logits", "features"):
            each = (getattr(outputs, name) for outputs in (before, exact, folded))
            for theirs, *ours in zip(*each):
                for values in ours:
                    gap = np.abs(np.array(values, "float32") - np.array(theirs)).max()
                    assert gap <= bound * np.abs(np.array(theirs)).max()
        if policy:  # it did compute in half precision
            assert exact.bn[0][0][0].dtype == "bfloat16"


@pytest.mark.slow
def test_ensemble_sees_new_weights_when_optimised_again():
    model = classifier()
    ensemble = TeacherEnsemble([model])
    ensemble(IMAGES)
    with_statistics(model, seed=5)
    ensemble.optimise_for_inference()
    np.testing.assert_allclose(
        ensemble(IMAGES).logits[:, 0], model(IMAGES), rtol=1e-4, atol=1e-5
    )


@pytest.mark.slow
def test_ensemble_of_the_same_models_a_second_time_wraps_nothing_twice():
    models = [classifier(), toys.nested()]
    before = [state_of(model) for model in models]
    expected = TeacherEnsemble(models)(IMAGES, BN)
    calls = [vars(layer).get("call") for m in models for layer in m._flatten_layers()]
    second = TeacherEnsemble(models)
    assert calls == [
        vars(layer).get("call") for m in models for layer in m._flatten_layers()
    ]
    outputs = second(IMAGES, BN)
    np.testing.assert_array_equal(outputs.logits, expected.logits)
    assert [len(bn) for bn in outputs.bn] == [len(bn) for bn in expected.bn]
    second.release()
    assert [state_of(model) for model in models] != before  # the first still has them


@pytest.mark.slow
def test_ensemble_releases_models_that_share_layers():
    shared = keras.Sequential([layers.Conv2D(3, 3), layers.BatchNormalization()])
    models = []
    for _ in range(2):
        image = keras.Input((8, 8, 1))
        pooled = layers.GlobalAveragePooling2D()(shared(image))
        models.append(keras.Model(image, layers.Dense(4)(pooled)))
    before = [state_of(model) for model in models]
    ensemble = TeacherEnsemble(models)
    assert [len(bn) for bn in ensemble(IMAGES, BN).bn] == [1, 1]
    for _ in range(2):
        ensemble.release()
        assert [state_of(model) for model in models] == before
