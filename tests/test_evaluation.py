"""Predictions and metrics against NumPy; labels in every shape that users have."""

import warnings

import keras
import numpy as np
import pytest
from keras import layers, ops

from cdfkd_tf.data.specs import DatasetSpec
from cdfkd_tf.errors import DistillationWarning, RequestError
from cdfkd_tf.evaluation import (
    as_labels,
    compute_metrics,
    observe,
    predict_all,
    warn_of_unknown_classes,
)
from cdfkd_tf.networks.aggregators import build_aggregator, build_predictor
from cdfkd_tf.teachers.class_map import ClassMap
from cdfkd_tf.teachers.ensemble import TeacherEnsemble
from tests.rows import rows

SHAPE, CLASSES, COUNT = (2, 3, 1), 4, 10
SPEC = DatasetSpec("toy", CLASSES, SHAPE, mean=(0.3,), std=(0.5,))
KERNELS = np.random.default_rng(1).normal(size=(5, 6, CLASSES)).astype("float32")
IMAGES = np.random.default_rng(2).random((COUNT, *SHAPE)).astype("float32")
LABELS = np.random.default_rng(3).integers(0, CLASSES, COUNT)


def linear(*kernels):
    """Normalised images to one row of logits per kernel, on the second axis."""
    images = keras.Input(SHAPE)
    dense = [layers.Dense(kernel.shape[1], use_bias=False) for kernel in kernels]
    rows = [layer(layers.Flatten()(images)) for layer in dense]
    for layer, kernel in zip(dense, kernels):
        layer.set_weights([kernel])
    return images, rows


def teacher(kernel):
    images, (logits,) = linear(kernel)
    return keras.Model(images, logits)


def networks(aggregator="mean"):
    """Three teachers, a student of two headers, its predictor; none is trained."""
    ensemble = TeacherEnsemble([teacher(kernel) for kernel in KERNELS[:3]])
    images, rows = linear(*KERNELS[3:])
    logits = ops.stack(rows, axis=1)
    student = keras.Model(images, {"logits": logits, "features": 1 * logits})
    merge = build_aggregator(aggregator, student)
    return ensemble, student, build_predictor(student, merge, SPEC.mean, SPEC.std)


def batches(size, labels=LABELS):
    for start in range(0, COUNT, size):
        part = slice(start, start + size)
        yield IMAGES[part], None if labels is None else labels[part]


def softmax(logits):
    powers = np.exp(logits - logits.max(-1, keepdims=True))
    return powers / powers.sum(-1, keepdims=True)


LOGITS = ((IMAGES - 0.3) / 0.5).reshape(COUNT, -1) @ KERNELS  # (5, n, C)


@rows("size", [COUNT, 4])
def test_predict_all_equals_numpy_in_batches_of_any_size(size):
    outputs, labels = predict_all(*networks(), SPEC, batches(size))
    expected = {
        **{("teacher", index): LOGITS[index] for index in range(3)},
        **{("header", index): LOGITS[3 + index] for index in range(2)},
        "ensemble": LOGITS[:3].mean(0),
        "student": LOGITS[3:].mean(0),
        "predictor": softmax(LOGITS[3:].mean(0)),
    }
    assert outputs.keys() == expected.keys()
    for name, values in expected.items():
        np.testing.assert_allclose(outputs[name], values, rtol=1e-4, atol=1e-5)
    np.testing.assert_array_equal(labels, LABELS)


def test_predict_all_without_labels_gives_none():
    assert predict_all(*networks(), SPEC, batches(4, labels=None))[1] is None


@pytest.mark.slow
def test_predict_all_takes_labels_as_a_column():
    ensemble, student, predictor = networks()

    def metrics(labels):
        given = batches(4, labels)
        outputs, labels = predict_all(ensemble, student, predictor, SPEC, given)
        return compute_metrics(outputs, labels, ensemble, student)

    assert metrics(LABELS[:, None].astype("uint8")) == metrics(LABELS)


def test_predict_all_refuses_no_images():
    with pytest.raises(RequestError, match="no images to evaluate on"):
        predict_all(*networks(), SPEC, [])


def test_predict_all_refuses_images_with_values_that_are_no_numbers():
    spoilt = IMAGES.copy()
    spoilt[7, 0, 0] = np.nan
    given = [(IMAGES[:5], None), (spoilt[5:], None)]
    with pytest.raises(RequestError, match=r"got NaN .*among those from number 5"):
        predict_all(*networks(), SPEC, given)


@pytest.mark.slow
@rows("missing", [0, 1])
def test_predict_all_refuses_labels_of_some_batches_alone(missing):
    given = list(batches(5))
    given[missing] = (given[missing][0], None)
    with pytest.raises(RequestError, match="Expected one label per image"):
        predict_all(*networks(), SPEC, given)


def test_as_labels_gives_whole_numbers_in_one_row():
    for labels in [
        [0, 3, 1],
        np.array([0, 3, 1], object),
        np.array([[0], [3], [1]], "uint8"),
        np.array([0.0, 3.0, 1.0], "float32"),
        ops.convert_to_tensor([0, 3, 1]),
    ]:
        found = as_labels(labels, 3, 4)
        assert found.dtype == "int64" and found.tolist() == [0, 3, 1]


@pytest.mark.slow
def test_as_labels_refuses_what_is_no_label():
    for labels, found in [
        ([0, 1], r"shape \(2,\)"),
        (np.eye(4)[:3], r"shape \(3, 4\), one-hot rows\? Give their argmax"),
        ([[0], [1, 2], [3]], r"\[0\]"),
        (np.zeros((1, 3)), r"shape \(1, 3\)"),
        ([0, 4, 1], "the value 4"),
        ([0, -1, 1], "the value -1"),
        ([0, 1.5, 1], "the value 1.5"),
        ([0, float("nan"), 1], "the value nan"),
        (["cat", "1", "2"], "'cat', a name"),
        (np.array(["cat", 1, 2], object), "'cat', a name"),
        (np.zeros(3, complex), "values of type complex128"),
    ]:
        expected = (
            f"Expected one label per image, 3 whole numbers from 0 to 3; got {found}"
        )
        with pytest.raises(RequestError, match=expected):
            as_labels(labels, 3, 4)


def test_compute_metrics_are_shares_of_images():
    ensemble, student, predictor = networks()
    outputs, labels = predict_all(ensemble, student, predictor, SPEC, batches(4))
    found = compute_metrics(outputs, labels, ensemble, student)
    right = (LOGITS.argmax(-1) == LABELS).mean(-1)
    together, student_class = LOGITS[:3].mean(0).argmax(-1), LOGITS[3:].mean(0)
    student_class = student_class.argmax(-1)
    accuracy = np.mean(student_class == LABELS)
    names = [t.name for t in ensemble.teachers]
    facts = {"input": "as they are", "input_evidence": "given", "output": "logits"}
    assert found == {
        "teachers": [
            {"file": name, "parameters": 24, "accuracy": share, **facts}
            for name, share in zip(names, right)
        ],
        "teacher_ensemble": {
            "parameters": 72,
            "accuracy": np.mean(together == LABELS),
            "task_accuracy": None,
            "rule": "mean",
            "rule_evidence": "given",
            "competence": ensemble.rule.competence.round(3).tolist(),
        },
        "student": {
            "parameters": 48,
            "accuracy": accuracy,
            "task_accuracy": None,
            "header_accuracy": right[3:].tolist(),
            "agreement": np.mean(student_class == together),
        },
        "aggregator": {"accuracy": accuracy, "mean_accuracy": accuracy},
    }


def test_teacher_that_never_picks_a_class_is_named():
    ensemble = networks()[0]
    labels = np.arange(40) % CLASSES
    knows = np.eye(CLASSES)[labels]
    outputs = {("teacher", index): knows.copy() for index in range(3)}
    outputs["teacher", 1][:, 2] = -1
    names = ["ant", "bee", "cat", "owl"]
    with pytest.warns(DistillationWarning, match="never picks cat, 1 of 4 cl") as found:
        warn_of_unknown_classes(outputs, labels, ensemble, names)
    assert [ensemble.teachers[1].name in str(w.message) for w in found] == [True]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        warn_of_unknown_classes(outputs, None, ensemble, names)
        few = np.where(labels == 2, 0, labels)  # no image shows it
        warn_of_unknown_classes(outputs, few, ensemble, names)


def test_compute_metrics_without_labels_knows_agreement_alone():
    ensemble, student, predictor = networks()
    outputs, labels = predict_all(ensemble, student, predictor, SPEC, batches(4, None))
    found = compute_metrics(outputs, labels, ensemble, student)
    assert found["student"]["header_accuracy"] == [None, None]
    assert found["student"]["accuracy"] is found["aggregator"]["accuracy"] is None
    assert 0 <= found["student"]["agreement"] <= 1


def test_observe_counts_classes_and_averages_header_weights():
    ensemble, student, predictor = networks("attention")
    scorer = np.random.default_rng(4).normal(size=(CLASSES, 1))
    predictor.layers[-2].get_layer("scorer").set_weights([scorer])
    labels = np.where(LABELS == 2, 1, LABELS)  # no image of class 2
    given = list(batches(4, labels))
    outputs, truth = predict_all(ensemble, student, predictor, SPEC, given)
    found = observe(predictor, outputs, truth, "abcd", given, [IMAGES[:2], IMAGES[2:3]])

    by_image = softmax((LOGITS[3:] @ scorer)[..., 0].T)  # (n, H)
    classes = (by_image.T[..., None] * LOGITS[3:]).sum(0).argmax(-1)
    assert found["classes"] == list("abcd") and found["confusion_rows"] == "labels"
    assert found["confusion"] == [
        [int(np.sum((labels == row) & (classes == column))) for column in range(4)]
        for row in range(4)
    ]
    np.testing.assert_allclose(found["header_weights"], by_image.mean(0), atol=1e-4)
    assert found["header_weights_by_class"][2] is None
    for label in (0, 1, 3):
        weights = by_image[labels == label].mean(0)
        np.testing.assert_allclose(
            found["header_weights_by_class"][label], weights, atol=1e-4
        )
    assert found["invented_classes"] == [list(classes[:3]).count(c) for c in range(4)]


@pytest.mark.slow
def test_observe_without_labels_compares_with_the_ensemble():
    given = list(batches(4, labels=None))
    predictor = (parts := networks())[2]
    outputs, labels = predict_all(*parts, SPEC, given)
    found = observe(predictor, outputs, labels, "abcd", given)
    rows, columns = LOGITS[:3].mean(0).argmax(-1), LOGITS[3:].mean(0).argmax(-1)
    assert found["confusion_rows"] == "teachers"
    assert np.trace(found["confusion"]) == np.sum(rows == columns)
    assert found["header_weights"] == [0.5, 0.5]
    assert found["invented_classes"] is None


@pytest.mark.slow
def test_metrics_leave_out_classes_that_a_teacher_does_not_know():
    columns = [(2, 0), (1, 2, 3)]
    kernels = [kernel[:, : len(c)] for kernel, c in zip(KERNELS, columns)]
    mapping = ClassMap(columns, CLASSES)
    ensemble = TeacherEnsemble([teacher(kernel) for kernel in kernels], mapping)
    _, student, predictor = networks()
    outputs, labels = predict_all(ensemble, student, predictor, SPEC, batches(4))
    found = compute_metrics(outputs, labels, ensemble, student)

    def masked(logits, known):
        return np.where(np.isin(np.arange(CLASSES), known), logits, np.nan)

    whole = np.full((2, COUNT, CLASSES), np.nan)
    for index, known in enumerate(columns):
        whole[index][:, list(known)] = LOGITS[index][:, : len(known)]
    headers = np.stack([masked(LOGITS[3 + h], columns[h]) for h in range(2)])
    together, student_logits = np.nanmean(whole, 0), np.nanmean(headers, 0)
    np.testing.assert_allclose(outputs["ensemble"], together, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(outputs["student"], student_logits, rtol=1e-4, atol=1e-5)
    shares = [np.mean(np.nanargmax(x, -1) == LABELS) for x in (*whole, *headers)]
    assert [entry["accuracy"] for entry in found["teachers"]] == shares[:2]
    assert found["student"]["header_accuracy"] == shares[2:]
