"""What people write in Python: it works, or is one sentence."""

import gc
import pathlib
import re
import tempfile

import keras
import numpy as np
import pytest
import tensorflow as tf

import cdfkd_tf
from cdfkd_tf.errors import RequestError
from tests import toys
from tests.rows import rows
from tests.test_api import IMAGES, Epochs, X, Y, options_of


@pytest.fixture(scope="module")
def models():
    return [toys.classifier(seed=0)]


@pytest.fixture(scope="module")
def made(toy_files, models, tmp_path_factory):
    """A run whose every value has another type than its option."""
    options = options_of(
        toy_files,
        epochs="1",
        steps_per_epoch=np.int64(2),
        batch_size=np.array(8),
        student_learning_rate=np.float32(0.01),
        milestones="",
        keep_best=np.bool_(False),
        teacher_input="0..255",
        export_formats="tflite_float32",
        student=pathlib.Path(toy_files.student),
        callbacks=Epochs(),
    )
    workdir = tmp_path_factory.mktemp("requests") / "run"
    generator = (model for model in models)  # can be gone through once
    shape = np.array(toys.SHAPE)
    keras.config.set_dtype_policy("mixed_float16")  # of the caller's own networks
    try:
        return cdfkd_tf.distill(
            generator, image_shape=shape, workdir=workdir, **options
        )
    finally:
        assert keras.config.dtype_policy().name == "mixed_float16"
        keras.config.set_dtype_policy("float32")


def test_distill_takes_values_and_teachers_of_other_types(made, toy_files):
    config = made.config
    assert (config.epochs, config.steps_per_epoch, config.batch_size) == (1, 2, 8)
    assert config.keep_best is False and config.image_shape == (8, 8, 1)
    assert config.teacher_input == ("0..255",) and config.milestones == ()
    assert config.export_formats == ("tflite_float32",)
    assert config.student == str(toy_files.student)
    assert len(made.history["student_header"]) == 1
    assert {layer.compute_dtype for layer in made.predictor.layers} == {"float32"}


def test_distill_takes_one_teacher_as_a_model_or_a_file(
    models, toy_files, tmp_path, monkeypatch, capsys
):
    """Its size is the student's if none is given; a second call distils nothing."""
    options = options_of(toy_files, epochs=1)
    result = cdfkd_tf.distill(models[0], workdir=str(tmp_path / "a"), **options)
    assert result.student.input_shape == (None, *toys.SHAPE)
    printed = capsys.readouterr().out
    assert "-- distill" in printed and "Teacher teacher_0: " in printed
    again = cdfkd_tf.distill(models, workdir=tmp_path / "a", **options)
    assert "-- distill" not in capsys.readouterr().out
    np.testing.assert_array_equal(again.predictor(IMAGES), result.predictor(IMAGES))
    other = [toys.classifier(seed=1)]
    with pytest.raises(RequestError, match=r"teacher_0 was replaced .* --noresume"):
        cdfkd_tf.distill(other, workdir=tmp_path / "a", **options)
    models[0].save(tmp_path / "own.keras")
    (tmp_path / "own.keras").rename(tmp_path / "x.keras")
    monkeypatch.chdir(tmp_path)
    of_file = cdfkd_tf.distill("x.k*", workdir=tmp_path / "b", **options)
    assert of_file.config.teachers == ("x.keras",)
    np.testing.assert_array_equal(of_file.predictor(IMAGES), result.predictor(IMAGES))


def diverged():
    """Two teachers, the second of which is no use."""
    found = [toys.classifier() for _ in "ab"]
    found[1].layers[-1].bias.assign([np.nan] * toys.CLASSES)
    return found


@rows(
    "teachers, options, message",
    [
        (None, {}, "from images to classes; got a NoneType"),
        (3, {}, "got a int"),
        ({"a": "a.keras"}, {}, "got a dict"),
        ([toys.Subclassed], {}, "got the class .*Subclassed"),
        ([["a.keras"]], {}, "got a list"),
        ([], {}, "At least one teacher is needed"),
        ("", {}, "At least one teacher is needed"),
        (["absent.keras"], {}, "no teacher file absent.keras"),
        ([toys.Subclassed()], {}, "Give --image_shape"),
        (diverged(), {}, "teacher_1: weight .* 4 NaN or infinite"),
        ("model", {"student_rounds": 1}, "it is called --student_steps"),
        ("model", {"epochs": 0}, "--epochs must be at least 1"),
        ("model", {"epoch": 3}, "no option 'epoch'; did you mean 'epochs'"),
        ("model", {"epochs": "many"}, "--epochs must be a whole number; got 'many'"),
        ("model", {"seed": None}, "--seed must be a whole number; got NoneType"),
        ("model", {"epochs": np.bool_(True)}, "--epochs must be a whole number"),
        ("model", {"milestones": [1.5]}, "--milestones must be a comma list"),
        ("model", {"milestones": 3}, "--milestones must be a comma list"),
        ("model", {"image_shape": 8}, "--image_shape must be a comma list"),
        ("model", {"image_shape": (None, None, 1)}, "of whole numbers"),
        ("model", {"image_shape": (8, 8)}, "height,width,channels"),
        ("model", {"teacher_input": 255}, "--teacher_input must be a comma list"),
        ("model", {"teacher_input": "0-255"}, "--teacher_input"),
        ("model", {"export_formats": "tflite"}, "got 'tflite'"),
        ("model", {"student_loss": {"header": "x"}}, "--student_loss must be"),
        ("model", {"student_loss": ["header"]}, "--student_loss must be"),
        ("model", {"workdir": 3}, "--workdir must be text; got int 3"),
        ("model", {"workdir": ""}, "--workdir must name the folder"),
        ("model", {"workdir": __file__ + "/run"}, "Cannot use .*: Not a directory"),
        ("model", {"callbacks": [print]}, "callbacks are of keras.callbacks"),
        ("model", {"dataset": None}, "--dataset must be text"),
        (
            "model",
            {"dataset": "folder", "image_folder": "absent"},
            "no folder 'absent'",
        ),
    ],
)
def test_distill_refuses_in_one_sentence(
    teachers, options, message, models, toy_files, tmp_path, monkeypatch
):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    options = {k: models[0] if v == "model" else v for k, v in options.items()}
    given = models if teachers == "model" else teachers
    flags = models[0].trainable, keras.config.dtype_policy().name
    with pytest.raises(RequestError, match=message) as refused:
        cdfkd_tf.distill(given, **options_of(toy_files, **options))
    assert "\n" not in str(refused.value)
    assert flags == (models[0].trainable, keras.config.dtype_policy().name)
    assert not any("call" in vars(layer) for layer in models[0].layers)
    assert list(tmp_path.iterdir()) == []  # of the run's folder, too


@pytest.mark.slow
def test_distill_without_a_workdir_leaves_nothing(
    models, toy_files, tmp_path, monkeypatch
):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    callback = Epochs()
    options = options_of(toy_files, epochs=1, callbacks=[callback])
    result = cdfkd_tf.distill(models, **options)
    assert (result.workdir / "student.keras").exists() and len(callback.seen) == 1
    assert result.evaluate(X, Y)["student"]["accuracy"] is not None
    assert list(tmp_path.glob("cdfkd_tf*")) == [result.workdir]
    del result
    gc.collect()
    assert list(tmp_path.glob("cdfkd_tf*")) == []


@pytest.mark.slow
def test_evaluate_of_a_finished_run_gives_models_back(made, models):
    """Nothing was left to do: the teachers are built only to be measured."""
    options = {
        name: value
        for name, value in vars(made.config).items()
        if name not in ("teachers", "workdir", "image_shape")
    }
    again = cdfkd_tf.distill(
        models, workdir=made.workdir, image_shape=toys.SHAPE, verbose=0, **options
    )
    keras.utils.set_random_seed(5)
    assert again.teachers == made.teachers and again.teachers[0]["input"] == "0..255"
    assert models[0].trainable
    measured = again.evaluate(X, Y)
    assert models[0].trainable and not any("call" in vars(x) for x in models[0].layers)
    drawn = float(keras.random.normal(()))
    keras.utils.set_random_seed(5)
    assert drawn == float(keras.random.normal(()))
    assert again.evaluate(X, Y) == measured == made.evaluate(X, Y)


def test_evaluate_takes_images_and_labels_of_other_forms(made):
    expected = made.evaluate(X, Y)
    for elements in (
        {"image": IMAGES, "label": Y},
        {"images": IMAGES, "labels": Y[:, None], "id": np.arange(40)},
        (IMAGES, Y, np.ones(40)),  # weights of samples
    ):
        data = tf.data.Dataset.from_tensor_slices(elements).batch(8)
        assert made.evaluate(data) == expected
    assert made.evaluate(list(IMAGES), tf.constant(Y)) == expected
    assert made.evaluate(IMAGES.astype("float64"), Y.tolist()) == expected
    blind = tf.data.Dataset.from_tensor_slices({"x": IMAGES}).batch(8)
    assert made.evaluate(blind)["student"]["accuracy"] is None


NAN = np.where(np.arange(40)[:, None, None] == 3, np.nan, X)


@rows(
    "x, y, message",
    [
        (None, None, "an array of numbers"),
        ([], [], "no images"),
        (X[:0], None, "no images"),
        (X[0], None, r"\(8, 8, 1\)"),
        (X[:, :4], Y, r"\(8, 8, 1\); got \(8, 4, 8"),
        (3, None, r"\(8, 8, 1\); got \(\)"),
        (["a.png"], None, "an array of numbers"),
        ([X[0], X[1, :4]], None, "an array of numbers"),
        ((x for x in X), None, "an array of numbers"),
        (NAN, Y, "values from nan to nan"),
        (X * 255, Y, "values from 0"),
        (X, Y[:3], "40 images and 3 labels"),
        (X, 3, "40 images and 1 labels"),
        (X, np.eye(4)[Y], "one label per image"),
        (X, np.array(["cat"] * 40), "got .cat., a name"),
        (X, Y + 1, "from 0 to 3; got the value 4"),
        (X, Y - 1, "got the value -1"),
        (X, Y + 0.5, "got the value"),
        (X, np.where(Y, np.nan, 0), "got the value nan"),
        ({"picture": X}, None, "keys picture; expected image and label"),
        ({"image": X, "x": X}, None, "expected image and label"),
        ((X, Y), "labels", "brings its labels"),
    ],
)
def test_evaluate_refuses_in_one_sentence(made, x, y, message):
    if isinstance(x, (dict, tuple)):
        x = tf.data.Dataset.from_tensor_slices(x).batch(8)
    for call in (made.evaluate, made.fit_aggregator):
        with pytest.raises(RequestError) as refused:
            call(x, y)
        sentence = str(refused.value)
        assert "\n" not in sentence and sentence.endswith(".")
        if call == made.evaluate:
            assert re.search(message, sentence), sentence


def test_other_calls_refuse_in_one_sentence(made):
    one = made.fit_aggregator(X, Y, kind="weights", epochs=2)
    assert made.fit_aggregator(X, Y, kind="weights", epochs="2") == one
    for options, message in [
        ({"kind": "vote"}, "got 'vote'"),
        ({"epochs": 0}, "--aggregator_epochs must be at least 1"),
        ({"learning_rate": "fast"}, "--aggregator_learning_rate must be a number"),
    ]:
        with pytest.raises(RequestError, match=message):
            made.fit_aggregator(X, Y, **options)
    with pytest.raises(ValueError, match="at least 2 images with labels"):
        made.fit_aggregator(X)
    with pytest.raises(RequestError, match="a file is in the place of a folder"):
        made.export(__file__, "tflite_float32")
    with pytest.raises(RequestError, match=r"space is weights, .* got a int"):
        cdfkd_tf.search("x.keras", 3)
    for formats in ("tflite", 3, ["tflite_int8", None]):
        with pytest.raises(RequestError, match="got"):
            made.export("x", formats)
