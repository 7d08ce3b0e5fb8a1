"""Aggregators start as the mean, and the predictor is the whole chain."""

import keras
import numpy as np
import pytest

from cdfkd_tf.distillation.fit_aggregator import fit_aggregator
from cdfkd_tf.errors import RequestError
from cdfkd_tf.networks.aggregators import AGGREGATORS, build_aggregator, build_predictor
from cdfkd_tf.networks.students import build_student

RNG = np.random.default_rng(0)
ANSWERS = {
    "logits": RNG.normal(size=(6, 3, 4)).astype("float32"),
    "features": RNG.normal(size=(6, 3, 5)).astype("float32"),
}


class Told:
    """A student that answers what it is told, for tests of the aggregators alone."""

    output = {
        "logits": keras.KerasTensor((None, 3, 4)),
        "features": keras.KerasTensor((None, 3, 5)),
    }

    def __init__(self, logits):
        features = np.zeros((len(logits), 3, 5), "float32")
        self.answers = {"logits": logits, "features": features}

    def predict(self, images, **kwargs):
        return self.answers


@pytest.mark.parametrize("kind", sorted(AGGREGATORS))
def test_untrained_aggregators_are_the_mean(kind):
    aggregator = build_aggregator(kind, Told(ANSWERS["logits"]))
    np.testing.assert_allclose(
        aggregator(ANSWERS), ANSWERS["logits"].mean(1), rtol=1e-5, atol=1e-6
    )


def softmax(values, axis):
    exponentials = np.exp(values - values.max(axis, keepdims=True))
    return exponentials / exponentials.sum(axis, keepdims=True)


@pytest.mark.parametrize(
    "kind, scored", [("attention", "logits"), ("feature_attention", "features")]
)
def test_attention_weighs_headers_by_one_linear_score(kind, scored):
    aggregator = build_aggregator(kind, Told(ANSWERS["logits"]))
    scorer = RNG.normal(size=(ANSWERS[scored].shape[-1], 1)).astype("float32")
    aggregator.set_weights([scorer])
    weights = softmax(ANSWERS[scored] @ scorer, axis=1)
    expected = (weights * ANSWERS["logits"]).sum(1)
    np.testing.assert_allclose(aggregator(ANSWERS), expected, rtol=1e-4, atol=1e-5)


def test_weights_are_one_number_per_header():
    aggregator = build_aggregator("weights", Told(ANSWERS["logits"]))
    aggregator.set_weights([np.array([[1.0], [0.0], [2.0]], "float32")])
    expected = ANSWERS["logits"][:, 0] + 2 * ANSWERS["logits"][:, 2]
    np.testing.assert_allclose(aggregator(ANSWERS), expected, rtol=1e-5)


def headers_of_which_one_is_right(count=200, seed=0):
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, 4, count)
    logits = rng.normal(size=(count, 3, 4)).astype("float32") * 3
    logits[:, 1] = np.eye(4, dtype="float32")[labels] * 4
    return logits, labels


@pytest.mark.parametrize("kind", ["weights", "attention"])
def test_fitting_finds_the_header_to_trust(kind):
    logits, labels = headers_of_which_one_is_right()
    student = Told(logits)
    aggregator = build_aggregator(kind, student)
    fit = fit_aggregator(
        aggregator,
        student,
        np.zeros((200, 1)),
        labels,
        epochs=30,
        learning_rate=0.3,
        seed=0,
    )
    assert fit.learned and fit.held_out == 40
    assert fit.accuracy > fit.mean_accuracy


def test_without_a_gain_on_held_out_samples_the_mean_stays():
    logits, labels = headers_of_which_one_is_right()
    logits[:40] = np.eye(4, dtype="float32")[labels[:40]][:, None] * 50  # all agree
    logits[40:, 1] = -logits[40:, 1]  # what is learned here would hurt there
    student = Told(logits)
    aggregator = build_aggregator("weights", student)
    fit = fit_aggregator(
        aggregator,
        student,
        np.zeros((200, 1)),
        labels,
        epochs=5,
        learning_rate=0.5,
        seed=0,
    )
    assert not fit.learned and fit.epoch == 0
    np.testing.assert_allclose(aggregator.get_weights()[0], 1 / 3, rtol=1e-6)


def test_predictor_is_normalisation_student_aggregator_softmax():
    student = build_student("wrn10_1", (8, 8, 1), 4, 3, width=0.5)
    aggregator = build_aggregator("mean", student)
    predictor = build_predictor(student, aggregator, mean=(0.3,), std=(0.2,))
    pixels = RNG.uniform(size=(5, 8, 8, 1)).astype("float32")
    logits = np.asarray(student((pixels - 0.3) / 0.2)["logits"]).mean(1)
    np.testing.assert_allclose(
        predictor(pixels), softmax(logits, axis=1), rtol=1e-4, atol=1e-6
    )


def test_unknown_aggregator_is_refused():
    with pytest.raises(RequestError, match="Unknown aggregator 'vote'"):
        build_aggregator("vote", Told(ANSWERS["logits"]))
