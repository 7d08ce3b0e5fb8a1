"""`cdfkd_tf.distill` from Python, with arrays only."""

import keras
import numpy as np
import pytest
import tensorflow as tf

import cdfkd_tf
from cdfkd_tf.errors import RequestError
from tests import toys

SMALL = {
    "student": "wrn10_1",
    "student_width": 0.25,
    "student_feature_weight": 0,
    "generator_width": 0.125,
    "latent_size": 8,
    "student_rounds": 2,
    "epochs": 2,
    "steps_per_epoch": 2,
    "batch_size": 8,
    "verbose": 0,
}
RNG = np.random.default_rng(0)
X, Y = RNG.random((40, 8, 8)).astype("float32"), RNG.integers(4, size=40)


class Epochs(keras.callbacks.Callback):
    seen = ()

    def on_epoch_end(self, epoch, logs=None):
        self.seen = (*self.seen, sorted(logs))


pytestmark = pytest.mark.usefixtures("all_eagerly")


@pytest.fixture(scope="module")
def callback():
    return Epochs()


@pytest.fixture(scope="module")
def result(callback, all_eagerly):
    keras.utils.set_random_seed(0)
    teachers = [toys.classifier(), toys.probabilities_of_bytes()]
    return cdfkd_tf.distill(teachers, callbacks=[callback], **SMALL)


def test_networks_and_history_are_there(result, callback):
    assert result.student(X[..., None])["logits"].shape == (40, 2, 4)
    probabilities = np.asarray(result.predictor(X[..., None]))
    np.testing.assert_allclose(probabilities.sum(-1), 1, rtol=1e-5)
    assert len(result.history["student_header"]) == 2
    assert len(callback.seen) == 2 and "student_header" in callback.seen[0]
    assert (result.workdir / "student.keras").exists()


def test_evaluate_takes_arrays_whole_numbers_and_datasets(result):
    by_array = result.evaluate(X, Y)
    said = np.asarray(result.predictor(X[..., None])).argmax(-1)
    assert by_array["aggregator"]["accuracy"] == pytest.approx(np.mean(said == Y))
    whole = np.rint(X * 255).astype("uint8")
    dataset = tf.data.Dataset.from_tensor_slices((whole, Y)).batch(16)
    by_dataset = result.evaluate(dataset)
    by_whole = result.evaluate(whole, Y)
    assert by_dataset == by_whole
    blind = result.evaluate(X)
    assert blind["student"]["accuracy"] is None
    assert blind["student"]["agreement"] == by_array["student"]["agreement"]


def test_an_aggregator_is_fitted_to_labels(result):
    before = result.predictor
    labels = np.asarray(before(X[..., None])).argmax(-1)
    fit = result.fit_aggregator(X, labels, kind="weights", epochs=2)
    assert fit.held_out == 8
    assert result.predictor is not before
    result.fit_aggregator(X, labels, kind="mean")


def test_export_checks_each_file(result, tmp_path):
    (entry,) = result.export(tmp_path / "out", ["tflite_float32"])
    assert entry["agreement"] == 1 and entry["bytes"] > 0


def test_the_same_call_goes_on_and_another_is_refused(result, tmp_path):
    teachers = [toys.classifier()]
    first = cdfkd_tf.distill(teachers, workdir=tmp_path, **SMALL)
    again = cdfkd_tf.distill(teachers, workdir=tmp_path, **SMALL)
    for ours, theirs in zip(first.student.weights, again.student.weights):
        np.testing.assert_array_equal(ours, theirs)
    with pytest.raises(RequestError, match="--batch_size=8; now"):
        cdfkd_tf.distill(teachers, workdir=tmp_path, **{**SMALL, "batch_size": 4})


@pytest.mark.parametrize(
    "teachers, options, message",
    [
        ([], {}, "one teacher is needed"),
        (["absent.keras"], {}, r"no teacher file absent\.keras"),
        ([toys.classifier], {"epoch": 1}, "no option 'epoch'; did you mean 'epochs'"),
        ([toys.classifier], {"epochs": 0}, "--epochs must be at least 1"),
        ([toys.Subclassed], {}, "Give image_shape"),
    ],
)
def test_wrong_calls_say_what_to_do(teachers, options, message):
    teachers = [build() if callable(build) else build for build in teachers]
    with pytest.raises(ValueError, match=message):
        cdfkd_tf.distill(teachers, **{**SMALL, **options})


@pytest.mark.parametrize(
    "call, message",
    [
        (lambda result: result.evaluate(X[:, :4], Y), r"\(8, 8, 1\); got \(40, 4, 8"),
        (lambda result: result.evaluate(X * 255, Y), r"images in \[0, 1\]"),
        (lambda result: result.evaluate(X, Y[:3]), "40 images and 3 labels"),
        (lambda result: result.fit_aggregator(X), "at least 2 images with labels"),
    ],
)
def test_wrong_arrays_are_refused(result, call, message):
    with pytest.raises(RequestError, match=message):
        call(result)
