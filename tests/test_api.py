"""`cdfkd_tf.distill` from Python, with arrays only, and a second use of each call."""

import gc
import json
import random

import keras
import numpy as np
import pytest
import tensorflow as tf

import cdfkd_tf
from cdfkd_tf.errors import RequestError
from tests import toys

RNG = np.random.default_rng(0)
X, Y = RNG.random((40, 8, 8)).astype("float32"), RNG.integers(4, size=40)
IMAGES = X[..., None]


def options_of(toy_files, **more):
    """The options of a toy run without data, as from Python."""
    flags = [f for f in toy_files.without_data if not f.startswith("--teachers=")]
    values = vars(toys.parse(*flags, "--teachers=none.keras"))
    keep = ("student", "student_headers", "generator_width", "latent_size", "epochs")
    keep += ("student_steps", "steps_per_epoch", "batch_size", "student_learning_rate")
    keep += ("milestones", "method")
    return {name: values[name] for name in keep} | {"verbose": 0} | more


class Epochs(keras.callbacks.Callback):
    seen = ()

    def on_epoch_end(self, epoch, logs=None):
        self.seen = (*self.seen, sorted(logs))


class Seen:
    """Two models in memory and what `distill` made of them, once."""

    def __init__(self, toy_files):
        self.models = [toys.classifier(seed=0), toys.probabilities_of_bytes()]
        self.before = [self.state(model) for model in self.models]
        self.callback, self.files = Epochs(), toy_files
        self.draws = self.distil_between_draws(callbacks=[self.callback])

    def distil_between_draws(self, **more):
        keras.utils.set_random_seed(5)
        self.result = cdfkd_tf.distill(self.models, **options_of(self.files, **more))
        return [
            random.random(),
            float(np.random.random()),
            float(tf.random.normal(())),
            float(keras.random.normal(())),
        ]

    @staticmethod
    def state(model):
        """What a distillation might leave changed in a model."""
        layers = model._flatten_layers()
        flags = [(layer.trainable, "call" in vars(layer)) for layer in layers]
        return flags, [np.array(weight) for weight in model.weights], model(IMAGES)


@pytest.fixture(scope="module")
def seen(toy_files):
    return Seen(toy_files)


@pytest.fixture(scope="module")
def result(seen):
    return seen.result


def assert_same_state(ours, theirs):
    assert ours[0] == theirs[0]
    for a, b in zip(ours[1], theirs[1], strict=True):
        np.testing.assert_array_equal(a, b)
    np.testing.assert_array_equal(ours[2], theirs[2])


def test_distill_returns_networks_and_history(seen, result):
    assert result.student(IMAGES)["logits"].shape == (40, 2, 4)
    probabilities = np.asarray(result.predictor(IMAGES))
    np.testing.assert_allclose(probabilities.sum(-1), 1, rtol=1e-5)
    assert result.generator.output_shape[1:] == toys.SHAPE
    assert len(result.history["student_header"]) == 2
    epochs = seen.callback.seen
    assert len(epochs) == 2 and "student_header" in epochs[0]
    assert (result.workdir / "student.keras").exists()


def test_distill_leaves_models_and_random_state_as_they_were(seen):
    for model, before in zip(seen.models, seen.before):
        assert_same_state(seen.state(model), before)
    keras.utils.set_random_seed(5)
    expected = [
        random.random(),
        float(np.random.random()),
        float(tf.random.normal(())),
        float(keras.random.normal(())),
    ]
    assert seen.draws == pytest.approx(expected)


@pytest.mark.slow
def test_distill_again_with_the_same_models_gives_the_same(seen, result):
    workdir, student = result.workdir, result.student.get_weights()
    network = keras.saving.load_model(seen.files.student)  # as the file by its name
    again = cdfkd_tf.distill(seen.models, **options_of(seen.files, student=network))
    for a, b in zip(again.student.get_weights(), student, strict=True):
        np.testing.assert_array_equal(a, b)
    for model, before in zip(seen.models, seen.before):
        assert_same_state(seen.state(model), before)
    folder = again.workdir
    assert folder != workdir and folder.exists()
    del again
    gc.collect()
    assert not folder.exists() and workdir.exists()  # removed with its result


def test_evaluate_takes_arrays_whole_numbers_and_datasets(result):
    by_array = result.evaluate(X, Y)
    predicted = np.asarray(result.predictor(IMAGES)).argmax(-1)
    accuracy = by_array["aggregator"]["accuracy"]
    assert accuracy == pytest.approx(np.mean(predicted == Y))
    whole = np.rint(X * 255).astype("uint8")
    dataset = tf.data.Dataset.from_tensor_slices((whole, Y)).batch(16)
    assert result.evaluate(dataset) == result.evaluate(whole, Y)
    blind = result.evaluate(X)
    assert blind["student"]["accuracy"] is None
    assert blind["student"]["agreement"] == by_array["student"]["agreement"]


def test_evaluate_measures_teachers_as_plain_keras_does(seen, result):
    """Each in its own way: grey values in [0, 1], and bytes."""
    pixels = (IMAGES, IMAGES * 255)
    measured = result.evaluate(X, Y)["teachers"]
    for entry, model, images in zip(measured, seen.models, pixels, strict=True):
        share = np.mean(np.asarray(model(images)).argmax(-1) == Y)
        assert entry["accuracy"] == pytest.approx(share)


def test_result_tells_what_was_found_out_about_teachers(result):
    found = [dict(each) for each in result.teachers]
    assert [each.pop("name") for each in found] == ["teacher_0", "teacher_1"]
    evidence = [each.pop("input_evidence") for each in found]
    assert evidence[0].startswith("guessed: ") and "--teacher_input" in evidence[0]
    assert evidence[1].startswith("read from layer rescaling")
    common = {"classes": 4, "batch_norms": 1}
    assert found == [
        {"input": "0..1", "output": "logits", **common},
        {"input": "0..255", "output": "probabilities", **common},
    ]


@pytest.mark.slow
def test_evaluate_takes_labels_of_other_shapes(result):
    expected = result.evaluate(X, Y)
    assert result.evaluate(X, Y[:, None]) == expected  # as Keras's CIFAR has them
    assert result.evaluate(X, Y.astype("float32")) == expected
    assert result.evaluate(IMAGES, list(Y)) == expected
    column = tf.data.Dataset.from_tensor_slices((IMAGES, Y[:, None])).batch(8)
    assert result.evaluate(column) == expected


def test_fit_aggregator_changes_the_predictor_and_goes_back(result):
    before = result.predictor
    mean = np.asarray(before(IMAGES))
    labels = mean.argmax(-1)
    fit = result.fit_aggregator(X, labels, kind="weights", epochs=2)
    assert fit.samples == 40 and result.predictor is not before
    column = result.fit_aggregator(X, labels[:, None], kind="weights", epochs=2)
    assert column == fit
    result.fit_aggregator(X, labels, kind="mean")
    np.testing.assert_allclose(result.predictor(IMAGES), mean, rtol=1e-5)


def test_export_again_keeps_earlier_files(result, tmp_path):
    folder = tmp_path / "out"
    (folder / "saved_model").mkdir(parents=True)
    (folder / "saved_model/own.txt").write_text("not of this package")
    (entry,) = result.export(folder, ["tflite_float32"])
    assert entry["agreement"] == 1 and entry["bytes"] > 0
    content = (folder / entry["file"]).read_bytes()
    (other,) = result.export(folder, ["tflite_float16"])
    assert (folder / other["file"]).exists()
    assert (folder / entry["file"]).read_bytes() == content
    assert (folder / "saved_model/own.txt").exists()


class Stop(keras.callbacks.Callback):
    """Ends a run after its first epoch as Ctrl-C does."""

    def on_epoch_begin(self, epoch, logs=None):
        if epoch == 1:
            raise KeyboardInterrupt


def test_distill_goes_on_with_the_batches_it_would_have_seen(toy_files, tmp_path):
    """With real images, whose order must go on, too."""
    more = {"method": "kd", "dataset": "folder", "image_folder": str(toy_files.images)}
    more |= {"image_shape": toys.SHAPE, "student_headers": ""}
    options = options_of(toy_files, **more)
    teachers = [toys.classifier(seed=0)]
    whole = cdfkd_tf.distill(teachers, workdir=tmp_path / "whole", **options)
    parts = {"workdir": tmp_path / "parts", **options}
    with pytest.raises(KeyboardInterrupt):
        cdfkd_tf.distill(teachers, callbacks=[Stop()], **parts)
    resumed = cdfkd_tf.distill(teachers, **parts)
    for a, b in zip(whole.student.weights, resumed.student.weights, strict=True):
        np.testing.assert_array_equal(a, b)
    assert whole.generator is None
    # What is done is not repeated, and what was asked otherwise is refused.
    before = (tmp_path / "parts/student.keras").stat().st_mtime_ns
    again = cdfkd_tf.distill(teachers, **parts)
    assert (tmp_path / "parts/student.keras").stat().st_mtime_ns == before
    assert again.evaluate(X, Y) == whole.evaluate(X, Y)
    with pytest.raises(RequestError, match="--batch_size=8; now"):
        cdfkd_tf.distill(teachers, **{**parts, "batch_size": 4})


def assert_same_weights(*folders):
    for name in ("student.keras", "generator.keras", "predictor.keras"):
        ours, theirs = (
            keras.saving.load_model(folder / name).get_weights() for folder in folders
        )
        for a, b in zip(ours, theirs, strict=True):
            np.testing.assert_array_equal(a, b)


def test_distill_leaves_the_folder_that_the_command_line_leaves(
    toy_files, finished, tmp_path, capsys
):
    """The same options from Python: the same files and bits; either goes on."""
    flags = (*toy_files.with_data, "--aggregator=attention", "--labelled_samples=8")
    config = toys.parse(*flags, "--report", f"--workdir={tmp_path}")
    options = {
        name: value
        for name, value in vars(config).items()
        if name not in ("teachers", "workdir", "image_shape")
    }
    cdfkd_tf.distill(
        config.teachers,
        image_shape=config.image_shape,
        workdir=tmp_path,
        verbose=0,
        **options,
    )

    def names(folder):
        return {
            str(path.relative_to(folder))
            for path in folder.rglob("*")
            if "logs" not in path.parts and path.is_file()
        }

    later = {"report.html", "observations.json"}
    missing = {n for n in names(finished) - names(tmp_path) if "export" not in n}
    assert {n for n in missing if not n.startswith(("teachers/", "splits/"))} <= later
    assert names(tmp_path) <= names(finished)
    assert_same_weights(tmp_path, finished)
    assert json.loads((tmp_path / "config.json").read_text())["epochs"] == 2
    assert toys.run_main(*flags, f"--workdir={tmp_path}", "--export_formats=") == 0
    printed = capsys.readouterr().out
    assert "-- evaluate" in printed and "Epoch" not in printed
    assert_same_weights(tmp_path, finished)


def test_distill_refuses_a_folder_in_use(toy_files, tmp_path):
    from cdfkd_tf.workdir import Workdir

    with (
        Workdir(tmp_path).locked(),
        pytest.raises(RequestError, match="is in use by process"),
    ):
        cdfkd_tf.distill([toys.classifier()], workdir=tmp_path, **options_of(toy_files))


def test_distill_without_options_learns_from_drawn_images(tmp_path, monkeypatch):
    """Nothing but teachers: sizes and length follow, no image is needed."""
    monkeypatch.setattr("cdfkd_tf.distillation.schedule._UPDATES", 40)
    teachers = [toys.classifier(seed=0), toys.probabilities_of_bytes()]
    options = {"bank_size": 64, "epochs": 2, "verbose": 0}
    result = cdfkd_tf.distill(teachers, workdir=tmp_path, **options)
    assert result.generator is None and result.config.method == "cdfkd_plus"
    assert result.student(IMAGES)["logits"].shape == (40, 2, 4)
    assert len(result.history["student_header"]) == 2
    assert 0 <= result.evaluate(X, Y)["student"]["accuracy"] <= 1
    assert np.load(tmp_path / "bank" / "answers_0.npy").shape == (64, 2, 4)
    again = cdfkd_tf.distill(teachers, workdir=tmp_path / "again", **options)
    for a, b in zip(again.student.get_weights(), result.student.get_weights()):
        np.testing.assert_array_equal(a, b)


@pytest.mark.slow
def test_distill_mixes_generated_images_with_a_bank(tmp_path):
    teachers = [toys.classifier(seed=seed) for seed in (0, 1)]
    result = cdfkd_tf.distill(
        teachers,
        images="generated,noise",
        workdir=tmp_path,
        bank_size=64,
        batch_size=8,
        epochs=2,
        steps_per_epoch=2,
        verbose=0,
    )
    assert {"student_header", "generator_header"} <= set(result.history)
    assert np.load(tmp_path / "bank" / "answers_0.npy").shape == (32, 2, 4)
    assert result.generator.output_shape == (None, *toys.SHAPE)
    ring = dict(tf.train.list_variables(str(tmp_path / "checkpoints" / "ckpt-4")))
    assert [32, *toys.SHAPE] in ring.values()


def test_distill_takes_functions_and_files_that_only_answer(tmp_path):
    network = toys.classifier(seed=0)
    file = tmp_path / "b.tflite"
    file.write_bytes(tf.lite.TFLiteConverter.from_keras_model(network).convert())
    asked = []

    def answer(images):
        asked.append(images)
        return np.asarray(network(images))

    teachers, shape = [answer, file, network], toys.SHAPE
    options = {"bank_size": 64, "epochs": 1, "steps_per_epoch": 2, "verbose": 0}
    result = cdfkd_tf.distill(teachers, image_shape=shape, workdir=tmp_path, **options)
    assert all(part.min() >= 0 and part.max() <= 1 for part in asked)
    kept = np.load(tmp_path / "bank" / "answers_0.npy")
    np.testing.assert_allclose(kept[:, 0], kept[:, 1], rtol=1e-3, atol=1e-3)
    measured = result.evaluate(X, Y)
    assert measured["teachers"][0]["accuracy"] == measured["teachers"][1]["accuracy"]
    with pytest.raises(RequestError, match=r"No gradient .* teacher_0.*procedural"):
        cdfkd_tf.distill(teachers, image_shape=shape, method="dfad", **options)


def test_function_that_fails_ends_the_run_by_name(tmp_path):
    calls = []

    def answer(images):
        calls.append(len(images))
        if sum(calls) > 200:
            raise ConnectionError("service is gone")
        return np.ones((len(images), 4)) * np.arange(4)

    with pytest.raises(RuntimeError, match=r"teacher_0 failed.*service is gone"):
        cdfkd_tf.distill(
            [answer], image_shape=toys.SHAPE, bank_size=600, workdir=tmp_path
        )
