"""A learned aggregator is kept only for a gain that cross-validation is sure of."""

import numpy as np
import pytest

from cdfkd_tf.distillation.fit_aggregator import fit_aggregator
from cdfkd_tf.networks.aggregators import build_aggregator
from cdfkd_tf.teachers.rules import choose_rule
from tests import toys
from tests.rows import rows

CLASSES = toys.CLASSES


@pytest.fixture(scope="module")
def student():
    return toys.student(3)


def headers(right, count, seed=0):
    """Outputs of three headers, of which those named are right; and the labels."""
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, CLASSES, count)
    logits = rng.normal(size=(count, 3, CLASSES)).astype("float32") * 3
    logits[:, right] = 4 * np.eye(CLASSES, dtype="float32")[labels][:, None]
    features = rng.normal(size=(count, 3, toys.WIDTH)).astype("float32")
    return {"logits": logits, "features": features}, labels


def fitted(student, outputs, labels, kind="weights", epochs=30, rate=0.3, seed=0):
    aggregator = build_aggregator(kind, student)
    options = {"epochs": epochs, "learning_rate": rate, "seed": seed}
    fit = fit_aggregator(aggregator, outputs, labels, **options)
    return fit, aggregator.get_weights()


@rows("kind", ["weights", "attention"])
def test_fit_finds_the_header_to_trust(kind, student):
    outputs, labels = headers([1], 200)
    fit, _ = fitted(student, outputs, labels, kind)
    mean = np.mean(outputs["logits"].mean(1).argmax(-1) == labels)
    assert fit.learned and fit.samples == 200 and fit.epochs > 0
    assert fit.mean_accuracy == pytest.approx(mean) and fit.accuracy > mean
    # Paired: less than that of two independent shares.
    assert 0 < fit.standard_error < np.sqrt(2 * 0.25 / 200)
    assert "learned weights are used" in str(fit)


def test_headers_learn_which_images_are_none_of_theirs():
    """Each is sure of every image; only its features tell whose classes it shows."""
    mask = np.zeros((3, CLASSES), bool)
    mask[np.arange(CLASSES) % 3, np.arange(CLASSES)] = True
    student = toys.student(3)
    rng = np.random.default_rng(0)
    labels = rng.integers(0, CLASSES, 120)
    logits = np.where(mask, rng.normal(size=(120, 3, CLASSES)), -30)
    features = rng.normal(size=(120, 3, toys.WIDTH))
    features[..., 0] += 6 * (labels[:, None] % 3 == np.arange(3))
    logits[np.arange(120), labels % 3, labels] = 3
    outputs = {"logits": logits, "features": features}
    outputs = {name: part.astype("float32") for name, part in outputs.items()}
    rule = choose_rule("auto", [None] * 3, mask)
    aggregator = build_aggregator("none_of_mine", student, rule)
    options = {"epochs": 1, "learning_rate": 0.1, "seed": 0}
    fit = fit_aggregator(aggregator, outputs, labels, **options)
    assert fit.learned and fit.accuracy > 0.95 > 0.9 > fit.mean_accuracy
    found = np.asarray(aggregator(outputs)).argmax(-1)  # the layers, not their twins
    assert np.mean(found == labels) > 0.95
    np.testing.assert_allclose(aggregator.get_layer("spread").kernel, mask)


def test_fit_keeps_the_mean_where_nothing_can_be_gained(student):
    """Also with few samples, where one held-out fifth would be 10 images."""
    for seed in range(3):
        outputs, labels = headers([0, 1, 2], 50, seed)
        wrong = np.random.default_rng(seed).permutation(50)[:4]
        outputs["logits"][wrong] = -outputs["logits"][wrong]
        fit, weights = fitted(student, outputs, labels, "feature_attention", seed=seed)
        assert not fit.learned and fit.epochs == 0
        assert fit.mean_accuracy == pytest.approx(0.92)
        np.testing.assert_array_equal(weights[0], 0)  # as it began
        assert "it is not used" in str(fit) and "92.0%" in str(fit)


@pytest.mark.slow
def test_fit_needs_more_than_its_standard_error(student):
    """One sample gained is exactly one standard error; two are more."""
    for gained, learned in ((1, False), (2, True)):
        outputs, labels = headers([0], 40)
        outputs["logits"][:, 1:] = 0.0
        spoilt = np.roll(outputs["logits"][:gained, 0], 1, axis=-1)
        outputs["logits"][:gained, 1] = 1.01 * spoilt
        fit, _ = fitted(student, outputs, labels, epochs=40)
        assert fit.accuracy - fit.mean_accuracy == pytest.approx(gained / 40)
        assert fit.learned == learned
        error = np.sqrt(gained * (40 - gained) / 39) / 40
        assert fit.standard_error == pytest.approx(error)


def test_fit_is_the_same_each_time_and_leaves_global_seeds_alone(student):
    outputs, labels = headers([1], 30)
    state = np.random.get_state()[1].copy()
    one, two = (fitted(student, outputs, labels, epochs=5) for _ in range(2))
    assert one[0] == two[0]
    np.testing.assert_array_equal(one[1], two[1])
    np.testing.assert_array_equal(state, np.random.get_state()[1])


@pytest.mark.slow
@rows("labels", [[0, 1, 2, 3], [0, 0], [1] * 10, list(range(4)) * 2 + [3, 3]])
def test_fit_takes_few_samples_and_missing_classes(labels, student):
    outputs, _ = headers([1], len(labels))
    fit, weights = fitted(student, outputs, np.array(labels), epochs=3)
    assert fit.samples == len(labels) and np.isfinite(weights[0]).all()
    assert 0 <= fit.accuracy <= 1 and np.isfinite(fit.standard_error)


def test_fit_of_the_mean_learns_nothing(student):
    outputs, labels = headers([1], 10)
    fit, _ = fitted(student, outputs, labels, "mean")
    assert not fit.learned and fit.accuracy == fit.mean_accuracy
