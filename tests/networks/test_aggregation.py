"""Aggregators start as the mean, and the predictor is the whole chain."""

import keras
import numpy as np
import pytest

from cdfkd_tf.errors import RequestError
from cdfkd_tf.networks.aggregators import (
    AGGREGATORS,
    aggregator_kind,
    build_aggregator,
    build_predictor,
    header_weights,
)
from cdfkd_tf.networks.students import build_student
from cdfkd_tf.teachers.rules import Rule, choose_rule
from tests.rows import rows

RNG = np.random.default_rng(0)
ANSWERS = {
    "logits": RNG.normal(size=(6, 3, 4)).astype("float32"),
    "features": RNG.normal(size=(6, 3, 5)).astype("float32"),
}


class Student:
    """What aggregators know of a student."""

    output = {
        "logits": keras.KerasTensor((None, 3, 4)),
        "features": keras.KerasTensor((None, 3, 5)),
    }


def test_untrained_aggregators_are_the_mean():
    for kind in sorted(AGGREGATORS):
        aggregator = build_aggregator(kind, Student())
        np.testing.assert_allclose(
            aggregator(ANSWERS), ANSWERS["logits"].mean(1), rtol=1e-5, atol=1e-6
        )


def softmax(values, axis):
    exponentials = np.exp(values - values.max(axis, keepdims=True))
    return exponentials / exponentials.sum(axis, keepdims=True)


@rows("kind, scored", [("attention", "logits"), ("feature_attention", "features")])
def test_attention_weighs_headers_by_one_linear_score(kind, scored):
    aggregator = build_aggregator(kind, Student())
    scorer = RNG.normal(size=(ANSWERS[scored].shape[-1], 1)).astype("float32")
    aggregator.set_weights([scorer])
    weights = softmax(ANSWERS[scored] @ scorer, axis=1)
    expected = (weights * ANSWERS["logits"]).sum(1)
    np.testing.assert_allclose(aggregator(ANSWERS), expected, rtol=1e-4, atol=1e-5)


def test_weights_are_one_number_per_header():
    aggregator = build_aggregator("weights", Student())
    aggregator.set_weights([np.array([[1.0], [0.0], [2.0]], "float32")])
    expected = ANSWERS["logits"][:, 0] + 2 * ANSWERS["logits"][:, 2]
    np.testing.assert_allclose(aggregator(ANSWERS), expected, rtol=1e-5)


def test_predictor_is_normalisation_student_aggregator_softmax():
    student = build_student("wrn10_1", (8, 8, 1), 4, 3, width=0.5)
    aggregator = build_aggregator("mean", student)
    predictor = build_predictor(student, aggregator, mean=(0.3,), std=(0.2,))
    pixels = RNG.uniform(size=(5, 8, 8, 1)).astype("float32")
    logits = np.asarray(student((pixels - 0.3) / 0.2)["logits"]).mean(1)
    np.testing.assert_allclose(
        predictor(pixels), softmax(logits, axis=1), rtol=1e-4, atol=1e-6
    )


@pytest.mark.slow
def test_unknown_aggregator_is_refused():
    with pytest.raises(RequestError, match="Unknown aggregator 'vote'"):
        build_aggregator("vote", Student())


MASK = np.array([[1, 1, 0, 0], [0, 1, 1, 0], [0, 1, 0, 1]], bool)
RULE = Rule(mask=MASK, competence=1.0 * MASK)


def test_a_mask_leaves_each_class_to_the_headers_that_know_it(tmp_path):
    for kind in sorted(set(AGGREGATORS) - {"competence"}):
        aggregator = build_aggregator(kind, Student(), RULE)
        expected = [
            [logits[MASK[:, label], label].mean() for label in range(4)]
            for logits in ANSWERS["logits"]
        ]
        np.testing.assert_allclose(aggregator(ANSWERS), expected, rtol=1e-4, atol=1e-6)
        aggregator.save(tmp_path / "a.keras")
        loaded = keras.saving.load_model(tmp_path / "a.keras")
        np.testing.assert_allclose(loaded(ANSWERS), expected, rtol=1e-4, atol=1e-6)


def test_one_more_logit_per_header_moves_its_classes_alone():
    """A class of several headers moves by the mean of theirs."""
    aggregator = build_aggregator("none_of_mine", Student(), RULE)
    assert [v.path.split("/")[0] for v in aggregator.trainable_variables] == [
        "learned"
    ] * 2
    kernel, offsets = RNG.normal(size=(5, 3)), np.array([0.5, -1.0, 2.0])
    learned = aggregator.get_layer("learned")
    learned.set_weights([kernel.reshape(5, 1, 3, 1), offsets])
    mine = np.einsum("bhf,fh->bh", ANSWERS["features"], kernel) + offsets
    moved = mine @ (MASK / MASK.sum(0))
    start = build_aggregator("mean", Student(), RULE)(ANSWERS)
    np.testing.assert_allclose(aggregator(ANSWERS), start + moved, atol=1e-5)
    alone = Student()
    alone.output = {
        name: keras.KerasTensor((None, 1, tensor.shape[-1]))
        for name, tensor in Student.output.items()
    }
    assert aggregator_kind("none_of_mine", alone, RULE) == "mean"


@rows("rule", [RULE, choose_rule("auto", [None] * 3, MASK)])
def test_tuned_headers_add_to_their_own_logits_before_these_are_joined(rule):
    aggregator = build_aggregator("header_tuning", Student(), rule)
    kernels, offsets = RNG.normal(size=(3, 5, 4)), RNG.normal(size=(3, 4))
    for header in range(3):
        layer = aggregator.get_layer(f"header_{header}")
        layer.set_weights([kernels[header], offsets[header]])
    changes = np.einsum("bhf,hfc->bhc", ANSWERS["features"], kernels) + offsets
    tuned = {**ANSWERS, "logits": (ANSWERS["logits"] + changes).astype("float32")}
    free = build_aggregator(aggregator_kind("auto", Student(), rule), Student(), rule)
    np.testing.assert_allclose(aggregator(ANSWERS), free(tuned), rtol=1e-4, atol=1e-5)


def test_learned_weights_multiply_out_unknown_classes():
    aggregator = build_aggregator("weights", Student(), RULE)
    weights = np.array([[0.5], [0.2], [0.3]], "float32")
    aggregator.set_weights([weights])
    logits, scale = ANSWERS["logits"], 3 / MASK.sum(0)
    expected = (logits * MASK[None] * weights).sum(1) * scale
    np.testing.assert_allclose(aggregator(ANSWERS), expected, rtol=1e-4, atol=1e-6)


@pytest.mark.slow
def test_without_unknown_classes_there_is_no_mask_layer():
    aggregator = build_aggregator("mean", Student())
    assert {layer.name for layer in aggregator.layers} <= {"features", "logits", "mean"}


@pytest.mark.slow
def test_a_mask_that_does_not_fit_is_refused():
    for mask in (MASK[:2], np.eye(3, 4, dtype=bool)):
        with pytest.raises(ValueError, match="some header knows each class"):
            build_aggregator("mean", Student(), Rule(mask=mask, competence=1.0 * mask))


def test_header_weights_are_those_that_the_predictor_uses(tmp_path):
    for kind in ("mean", "weights", "attention", "feature_attention"):
        student = build_student("lenet", (8, 8, 1), 4, 3, width=0.25)
        aggregator = build_aggregator(kind, student)
        assert AGGREGATORS[kind].learned == bool(aggregator.weights)
        moved = [w + RNG.normal(size=w.shape) for w in aggregator.get_weights()]
        aggregator.set_weights(moved)
        predictor = build_predictor(student, aggregator, (0.3,), (0.2,))
        predictor.save(tmp_path / "predictor.keras")
        images = RNG.uniform(size=(5, 8, 8, 1)).astype("float32")
        logits = np.asarray(student((images - 0.3) / 0.2)["logits"])
        loaded = keras.saving.load_model(tmp_path / "predictor.keras")
        for model in (predictor, loaded):
            merged = (header_weights(model, images)[..., None] * logits).sum(1)
            expected = softmax(merged, axis=1)
            np.testing.assert_allclose(model(images), expected, rtol=1e-3, atol=1e-5)


AT_THE_RULE = {"competence", "none_of_mine", "header_tuning", "per_class", "stacking"}
NORMS = np.array([[4, 4, 1, 1], [1, 4, 4, 1], [1, 1, 2, 4]], float)


@rows("known", [np.ones((3, 4), bool), MASK])
def test_competence_joins_headers_as_the_rule_joins_teachers(known, tmp_path):
    """`q_c` proportional to the sum over k of `w_kc exp(-4 H_k) p_kc`."""
    rule = choose_rule("auto", list(NORMS), known)
    assert rule.name == "competence"
    weights = (NORMS / NORMS.max(1, keepdims=True, where=known, initial=0)) ** 4 * known
    weights /= weights.sum(0)
    p = softmax(np.where(known, ANSWERS["logits"], -np.inf), axis=2)
    entropy = -(p * np.log(np.where(p > 0, p, 1))).sum(2, keepdims=True)
    q = (weights * np.exp(-4 * entropy) * p).sum(1)
    expected = q / q.sum(1, keepdims=True)
    np.testing.assert_allclose(
        softmax(np.array(rule(ANSWERS["logits"])), 1), expected, rtol=1e-4
    )
    for kind in sorted(AT_THE_RULE):  # untrained
        aggregator = build_aggregator(kind, Student(), rule)
        aggregator.save(tmp_path / "a.keras")
        loaded = keras.saving.load_model(tmp_path / "a.keras")
        for model in (aggregator, loaded):
            np.testing.assert_allclose(
                softmax(np.array(model(ANSWERS)), 1), expected, rtol=1e-4
            )
