"""Each loss term against one independent NumPy line."""

import dataclasses

import keras
import numpy as np
import pytest
import tensorflow as tf

from cdfkd_tf.distillation import losses
from cdfkd_tf.distillation.losses import TERMS, Objective, Outputs
from cdfkd_tf.teachers.ensemble import TeacherOutputs
from cdfkd_tf.teachers.rules import Rule
from tests import toys
from tests.rows import rows

MASK = np.array([[1, 1, 1, 0, 0], [0, 1, 1, 1, 1], [1, 1, 1, 1, 1]], bool)  # (T, C)


def softmax(logits):
    exponentials = np.exp(logits - logits.max(-1, keepdims=True))
    return exponentials / exponentials.sum(-1, keepdims=True)


def draw(*shape, seed=0):
    return np.random.default_rng(seed).normal(size=shape).astype("float32")


@pytest.fixture
def logits():
    return draw(6, 3, 5, seed=0), draw(6, 3, 5, seed=1)


@pytest.fixture
def outputs():
    statistics = (draw(3), np.abs(draw(3)))
    layers = [(draw(6, 4, 4, 3), *statistics), (draw(6, 2, 2, 3), *statistics)]
    student = {"logits": draw(6, 2, 5, seed=0), "features": draw(6, 2, 7, seed=1)}
    teachers = TeacherOutputs(
        logits=draw(6, 2, 5, seed=2),
        features=[draw(6, 7, seed=3), draw(6, 7, seed=4)],
        bn=[layers, layers[:1], []],  # the third teacher has none
        maps=[],
    )
    return Outputs(student, teachers)


def term(name, outputs, row="cdfkd_mfs", **changes):
    return float(TERMS[name].loss(outputs, toys.method(row, **changes)))


def test_l1_is_the_mean_absolute_difference(logits):
    student, teacher = logits
    expected = np.abs(student - teacher).mean()
    np.testing.assert_allclose(losses.l1(student, teacher), expected, rtol=1e-6)


def test_l1_leaves_masked_classes_out_of_the_mean(logits):
    student, teacher = logits
    expected = np.abs(student - teacher)[:, MASK].mean()
    ours = losses.l1(student, teacher, mask=MASK)
    np.testing.assert_allclose(ours, expected, rtol=1e-6)


def test_kl_is_that_of_teacher_against_student(logits):
    student, teacher = logits
    p, q = softmax(teacher), softmax(student)
    expected = (p * np.log(p / q)).sum(-1).mean()
    np.testing.assert_allclose(losses.kl(student, teacher), expected, rtol=1e-5)


def test_kl_is_of_softmaxes_over_the_known_classes(logits):
    student, teacher = logits
    rows = []
    for index, known in enumerate(MASK):
        p, q = softmax(teacher[:, index, known]), softmax(student[:, index, known])
        rows.append((p * np.log(p / q)).sum(-1).mean())
    ours = losses.kl(student, teacher, mask=MASK)
    np.testing.assert_allclose(ours, np.mean(rows), rtol=1e-5)


def test_divergences_count_some_images_in_the_mean_over_all(logits):
    student, teacher = logits
    counted = np.array([1, 0, 0, 1, 1, 0], bool)
    gaps = np.abs(student - teacher).mean((1, 2))
    ours = losses.l1(student, teacher, counted=counted)
    np.testing.assert_allclose(ours, (gaps * counted).mean(), rtol=1e-6)
    p, q = softmax(teacher), softmax(student)
    rows = (p * np.log(p / q)).sum(-1).mean(-1)
    ours = losses.kl(student, teacher, counted=counted)
    np.testing.assert_allclose(ours, (rows * counted).mean(), rtol=1e-5)


def test_kl_with_temperature_is_softened_and_keeps_its_size(outputs):
    student, teacher = (
        outputs.student["logits"].mean(1),
        outputs.teachers.logits.mean(1),
    )
    p, q = softmax(teacher / 4), softmax(student / 4)
    expected = 16 * (p * np.log(p / q)).sum(-1).mean()
    ours = term("ensemble", outputs, "kd", temperature=4.0)
    np.testing.assert_allclose(ours, expected, rtol=1e-5)


def test_kl_is_finite_where_probabilities_underflow():
    student = np.array([[2000.0, 0.0]], "float32")
    teacher = np.array([[0.0, 2000.0]], "float32")
    np.testing.assert_allclose(losses.kl(student, teacher), 2000, rtol=1e-6)


@pytest.mark.slow
@rows("loss", [losses.l1, losses.kl])
def test_divergences_refuse_logits_of_different_shapes(loss):
    with pytest.raises(ValueError, match=r"\(6, 2, 5\).*\(6, 3, 5\)"):
        loss(np.zeros((6, 2, 5)), np.zeros((6, 3, 5)))


@pytest.mark.slow
def test_divergences_of_bfloat16_logits_are_float32(logits):
    student, teacher = (keras.ops.cast(tensor, "bfloat16") for tensor in logits)
    for loss in (losses.l1, losses.kl):
        dtype = keras.backend.standardize_dtype(loss(student, teacher).dtype)
        assert dtype == "float32"


def test_header_term_compares_each_header_with_its_teacher(outputs):
    gap = np.abs(outputs.student["logits"] - outputs.teachers.logits)
    np.testing.assert_allclose(term("header", outputs), gap.mean(), rtol=1e-6)


def test_ensemble_term_compares_the_mean_header_with_the_mean_teacher(outputs):
    gap = outputs.student["logits"].mean(1) - outputs.teachers.logits.mean(1)
    ours = term("ensemble", outputs)
    np.testing.assert_allclose(ours, np.abs(gap).mean(), rtol=1e-6)


@rows("headers", [3, 1])
def test_ensemble_term_averages_over_the_teachers_that_know_a_class(headers):
    student, teacher = draw(6, headers, 5, seed=0), draw(6, 3, 5, seed=1)
    known = MASK / MASK.sum(0)
    mean = (student * known).sum(1) if headers == 3 else student[:, 0]
    expected = np.abs(mean - (teacher * known).sum(1)).mean()
    outputs = Outputs(
        {"logits": student}, TeacherOutputs(teacher, [], [], []), rule=Rule(mask=MASK)
    )
    np.testing.assert_allclose(term("ensemble", outputs), expected, rtol=1e-6)


def test_feature_gap_sums_over_width_and_averages_over_headers():
    student, teachers = draw(6, 2, 7), [draw(6, 7, seed=1), draw(6, 7, seed=2)]
    gaps = [np.abs(student[:, h] - teachers[h]).sum(1).mean() for h in range(2)]
    ours = losses.feature_gap(student, teachers)
    np.testing.assert_allclose(ours, np.mean(gaps), rtol=1e-6)
    # Headers that were mapped to other widths come as a list.
    wide = [draw(6, 7), draw(6, 9)], [draw(6, 7, seed=1), draw(6, 9, seed=2)]
    gaps = [np.abs(ours - theirs).sum(1).mean() for ours, theirs in zip(*wide)]
    np.testing.assert_allclose(losses.feature_gap(*wide), np.mean(gaps), rtol=1e-6)


@pytest.mark.slow
def test_feature_gap_names_the_widths_that_do_not_fit():
    with pytest.raises(ValueError, match=r"width 7; the teachers have widths \[7, 9\]"):
        losses.feature_gap(np.zeros((6, 2, 7)), [np.zeros((6, 7)), np.zeros((6, 9))])


@rows("dtype", ["float32", "float64"])  # one kernel; composed
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
    np.testing.assert_allclose(losses.bn_gap(norms), expected, rtol=1e-5)


@pytest.mark.slow
def test_bn_gap_has_a_finite_gradient_where_it_is_zero():
    inputs = tf.Variable(np.zeros((4, 2, 2, 3), "float32"))
    with tf.GradientTape() as tape:
        gap = losses.bn_gap([(inputs, tf.zeros(3), tf.zeros(3))])
    assert np.isfinite(tape.gradient(gap, inputs)).all()


def test_bn_term_weighs_first_layers_five_times_and_skips_teachers_without(outputs):
    total = 0.0
    for teacher in outputs.teachers.bn:
        for index, (inputs, mean, variance) in enumerate(teacher):
            gap = np.linalg.norm(inputs.var((0, 1, 2)) - variance)
            gap += np.linalg.norm(inputs.mean((0, 1, 2)) - mean)
            total += gap * (5 if index == 0 else 1)
    np.testing.assert_allclose(term("bn", outputs), total / 2, rtol=1e-5)


def test_bn_mean_term_is_a_weighted_mean_over_layers(outputs):
    first, second = (losses.bn_gap(bn) for bn in outputs.teachers.bn[:2])
    np.testing.assert_allclose(
        term("bn_mean", outputs), (first / 6 + second / 5) / 2, rtol=1e-5
    )


@rows("asked", [True, False])
def test_cross_entropy_term_is_of_the_asked_classes_or_the_likeliest(outputs, asked):
    p = softmax(outputs.teachers.logits.mean(1))
    labels = np.array([0, 1, 2, 3, 4, 0]) if asked else p.argmax(-1)
    expected = -np.log(p[np.arange(6), labels]).mean()
    outputs = dataclasses.replace(outputs, labels=labels if asked else None)
    np.testing.assert_allclose(term("cross_entropy", outputs), expected, rtol=1e-5)


def test_total_variation_and_l2_are_norms_averaged_over_images():
    images = draw(4, 5, 6, 2)
    steps = ((0, 1), (1, 0), (1, 1), (1, -1))
    expected = 0.0
    for image in images:
        for down, right in steps:
            pairs = [
                image[i + down, j + right] - image[i, j]
                for i in range(5 - down)
                for j in range(6)
                if 0 <= j + right < 6
            ]
            expected += np.linalg.norm(pairs) / 4
    np.testing.assert_allclose(losses.total_variation(images), expected, rtol=1e-5)
    expected = np.mean([np.linalg.norm(image) for image in images])
    np.testing.assert_allclose(losses.length(images), expected, rtol=1e-5)


def test_contrast_is_the_cross_entropy_of_the_own_image_among_all(outputs):
    def directions(teachers):  # each teacher's cosine counts alike
        rows = [f for f in teachers.features if f is not None]
        return [np.array(f) / np.linalg.norm(f, axis=1, keepdims=True) for f in rows]

    earlier, views = (
        outputs.teachers._replace(features=[draw(n, *f.shape[1:]) for f in known])
        for n in (3, 6)
        for known in [[f for f in outputs.teachers.features if f is not None]]
    )
    seen = map(directions, (views, outputs.teachers, earlier))
    cosines = np.mean([v @ np.concatenate([o, e]).T for v, o, e in zip(*seen)], 0)
    p = softmax(cosines / 0.1)
    expected = -np.log(p[np.arange(6), np.arange(6)]).mean()
    both = dataclasses.replace(outputs, views=views, earlier=earlier)
    np.testing.assert_allclose(term("contrast", both), expected, rtol=1e-4)


def test_entropy_is_the_mean_over_predictions(logits):
    p = softmax(logits[0])
    expected = -(p * np.log(p)).sum(-1).mean()
    np.testing.assert_allclose(losses.entropy(logits[0]), expected, rtol=1e-5)


def test_negative_marginal_entropy_is_that_of_the_mean_prediction(logits):
    p = softmax(logits[0]).mean(0)
    expected = (p * np.log(p)).sum(-1).mean()
    ours = losses.negative_marginal_entropy(logits[0])
    np.testing.assert_allclose(ours, expected, rtol=1e-5)


@pytest.mark.slow
@rows("loss", [losses.entropy, losses.negative_marginal_entropy])
def test_entropies_are_finite_where_probabilities_underflow(loss):
    logits = tf.Variable([[[1e4, 0.0, -1e4]], [[1e4, 0.0, -1e4]]])
    with tf.GradientTape() as tape:
        value = loss(logits)
    assert np.isfinite(value) and np.isfinite(tape.gradient(value, logits)).all()


def attention(maps):
    energy = (maps**2).sum(-1).reshape(len(maps), -1)
    return energy / np.linalg.norm(energy, axis=1, keepdims=True)


def test_attention_map_gap_compares_the_resolutions_that_both_have():
    student = [draw(6, 8, 8, 3, seed=0), draw(6, 4, 4, 5, seed=1)]
    teachers = [  # other widths; the second has one of the two resolutions, and 2x2
        [draw(6, 8, 8, 7, seed=2), draw(6, 4, 4, 2, seed=3)],
        [draw(6, 4, 4, 9, seed=4), draw(6, 2, 2, 9, seed=5)],
    ]
    pairs = [
        (student[0], teachers[0][0]),
        (student[1], teachers[0][1]),
        (student[1], teachers[1][0]),
    ]
    gaps = [((attention(a) - attention(b)) ** 2).sum(1).mean() for a, b in pairs]
    ours = losses.attention_map_gap(student, teachers)
    np.testing.assert_allclose(ours, np.mean(gaps), rtol=1e-5)


@pytest.mark.slow
def test_attention_map_gap_is_finite_where_maps_are_zero():
    maps = tf.Variable(np.zeros((2, 4, 4, 3), "float32"))
    with tf.GradientTape() as tape:
        gap = losses.attention_map_gap([maps], [[tf.constant(draw(2, 4, 4, 3))]])
    assert np.isfinite(gap) and np.isfinite(tape.gradient(gap, maps)).all()


@pytest.mark.slow
def test_attention_map_gap_refuses_maps_without_a_common_size():
    with pytest.raises(ValueError, match="--student_loss=attention=0"):
        losses.attention_map_gap([draw(2, 4, 4, 3)], [[draw(2, 8, 8, 3)]])


def test_objective_sums_its_weighted_terms_and_logs_their_true_values(outputs):
    row = toys.method(student={"header": 2.0, "ensemble": 5.0, "feature": 0.0})
    objective = Objective("student", row)
    header, ensemble = term("header", outputs), term("ensemble", outputs)
    ours = float(objective(outputs))
    np.testing.assert_allclose(ours, 2 * header + 5 * ensemble, rtol=1e-6)
    logged = {name: float(m.result()) for name, m in objective.trackers.items()}
    expected = {"student_header": header, "student_ensemble": ensemble}
    assert logged == pytest.approx(expected)  # a term of weight 0 is not computed
    assert objective.needs == {"header_per_teacher"}


@pytest.mark.slow
def test_objective_ends_at_a_term_that_is_no_number(outputs):
    spoilt = Outputs({"logits": outputs.student["logits"] * np.nan}, outputs.teachers)
    with pytest.raises(tf.errors.InvalidArgumentError, match="student_header"):
        Objective("student", toys.method(student={"header": 1.0}))(spoilt)
