"""Each loss against one independent NumPy line."""

import keras
import numpy as np
import pytest
import tensorflow as tf

from cdfkd_tf.distillation import losses


def softmax(logits):
    exponentials = np.exp(logits - logits.max(-1, keepdims=True))
    return exponentials / exponentials.sum(-1, keepdims=True)


@pytest.fixture
def logits():
    rng = np.random.default_rng(0)
    return [rng.normal(size=(6, 3, 5)).astype("float32") for _ in range(2)]


def test_l1_is_the_mean_absolute_difference(logits):
    student, teacher = logits
    expected = np.abs(student - teacher).mean()
    np.testing.assert_allclose(losses.l1(student, teacher), expected, rtol=1e-6)


def test_kl_is_that_of_teacher_against_student(logits):
    student, teacher = logits
    p, q = softmax(teacher), softmax(student)
    expected = (p * np.log(p / q)).sum(-1).mean()
    np.testing.assert_allclose(losses.kl(student, teacher), expected, rtol=1e-5)


def test_kl_is_finite_where_probabilities_underflow():
    student = np.array([[2000.0, 0.0]], "float32")
    teacher = np.array([[0.0, 2000.0]], "float32")
    np.testing.assert_allclose(losses.kl(student, teacher), 2000, rtol=1e-6)


def test_feature_gap_sums_over_width_and_averages_over_headers():
    rng = np.random.default_rng(0)
    student = rng.normal(size=(6, 2, 7)).astype("float32")
    teachers = [rng.normal(size=(6, 7)).astype("float32") for _ in range(2)]
    gaps = [np.abs(student[:, h] - teachers[h]).sum(1).mean() for h in range(2)]
    np.testing.assert_allclose(
        losses.feature_gap(student, teachers), np.mean(gaps), rtol=1e-6
    )


def test_feature_gap_names_the_widths_that_do_not_fit():
    with pytest.raises(ValueError, match=r"width 7; the teachers have widths \[7, 9\]"):
        losses.feature_gap(np.zeros((6, 2, 7)), [np.zeros((6, 7)), np.zeros((6, 9))])


@pytest.mark.parametrize("dtype", ["float32", "float64"])  # one kernel; composed
def test_bn_gap_is_the_weighted_distance_of_biased_statistics(dtype, request):
    if dtype == "float64":
        request.getfixturevalue("float64")
    rng = np.random.default_rng(0)
    norms, expected, weights = [], 0.0, [5.0, 1.0]
    for width, weight in zip((3, 4), weights):
        inputs = rng.normal(size=(4, 5, 5, width))
        mean, variance = rng.normal(size=width), rng.uniform(0.5, 2, size=width)
        norms.append([tf.constant(x, dtype) for x in (inputs, mean, variance)])
        gaps = inputs.var((0, 1, 2)) - variance, inputs.mean((0, 1, 2)) - mean
        expected += weight * sum(np.linalg.norm(gap) for gap in gaps)
    np.testing.assert_allclose(losses.bn_gap(norms, weights), expected, rtol=1e-5)


def test_bn_gap_has_a_finite_gradient_where_it_is_zero():
    inputs = tf.Variable(np.zeros((4, 2, 2, 3), "float32"))
    with tf.GradientTape() as tape:
        gap = losses.bn_gap([(inputs, tf.zeros(3), tf.zeros(3))], [1.0])
    assert np.isfinite(tape.gradient(gap, inputs)).all()


def test_confidence_is_the_mean_entropy(logits):
    p = softmax(logits[0])
    expected = -(p * np.log(p)).sum(-1).mean()
    np.testing.assert_allclose(losses.confidence(logits[0]), expected, rtol=1e-5)


def test_balance_is_the_negative_entropy_of_the_mean_prediction(logits):
    p = softmax(logits[0]).mean(0)
    expected = (p * np.log(p)).sum(-1).mean()
    np.testing.assert_allclose(losses.balance(logits[0]), expected, rtol=1e-5)


@pytest.mark.parametrize("loss", [losses.confidence, losses.balance])
def test_entropies_are_finite_where_probabilities_underflow(loss):
    logits = tf.Variable([[[1e4, 0.0, -1e4]], [[1e4, 0.0, -1e4]]])
    with tf.GradientTape() as tape:
        value = loss(logits)
    assert np.isfinite(value) and np.isfinite(tape.gradient(value, logits)).all()


@pytest.mark.parametrize("loss", [losses.l1, losses.kl])
def test_logits_of_different_shapes_are_refused(loss):
    with pytest.raises(ValueError, match=r"\(6, 2, 5\).*\(6, 3, 5\)"):
        loss(np.zeros((6, 2, 5)), np.zeros((6, 3, 5)))


def test_losses_of_bfloat16_answers_are_float32(logits):
    student, teacher = (keras.ops.cast(tensor, "bfloat16") for tensor in logits)
    for loss in (losses.l1, losses.kl):
        assert (
            keras.backend.standardize_dtype(loss(student, teacher).dtype) == "float32"
        )
