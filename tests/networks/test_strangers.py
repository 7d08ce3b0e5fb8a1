"""Anybody's classifiers as teachers."""

import keras
import numpy as np
import pytest
import tensorflow as tf
from keras import layers

from cdfkd_tf.data.specs import plain_spec
from cdfkd_tf.errors import RequestError
from cdfkd_tf.networks.loading import load_classifier
from cdfkd_tf.networks.pixel_ranges import ImageView
from cdfkd_tf.teachers.teacher import Teacher, TeacherEnsemble
from tests import strangers

SPEC = plain_spec("none", (8, 8, 1), 4)
PIXELS = np.random.default_rng(0).random((5, 8, 8, 1)).astype("float32")
IMAGES = SPEC.normalise(PIXELS).astype("float32")


def teacher_of(model, values="0..1", **kwargs):
    shape = getattr(model, "input_shape", (None, 8, 8, 1))[1:]
    view = ImageView(SPEC, values, shape)
    return Teacher(model, view, output="auto", **kwargs)


def test_probabilities_become_centred_logits():
    model = strangers.probabilities_of_bytes()
    teacher = teacher_of(model, "0..255")
    assert teacher.output == "probabilities"
    said = np.asarray(teacher(IMAGES)[0])
    p = np.asarray(model(PIXELS * 255))
    np.testing.assert_allclose(
        said, np.log(p) - np.log(p).mean(-1, keepdims=True), atol=1e-4
    )
    softmax = np.exp(said) / np.exp(said).sum(-1, keepdims=True)
    np.testing.assert_allclose(softmax, p, atol=1e-5)


def test_certain_probabilities_stay_finite_and_so_do_gradients():
    model = strangers.probabilities_of_bytes()
    model.layers[-1].kernel.assign(model.layers[-1].kernel * 1e4)
    teacher = teacher_of(model, "0..255")
    images = tf.constant(IMAGES)
    with tf.GradientTape() as tape:
        tape.watch(images)
        said = teacher(images)[0]
    assert np.asarray(model(PIXELS * 255)).min() == 0
    assert np.isfinite(said).all()
    assert np.isfinite(tape.gradient(said, images)).all()


@pytest.mark.parametrize(
    "build, num_bn, width",
    [
        (strangers.logits, 1, 6),
        (strangers.nested, 2, 5),
        (lambda: strangers.logits(norm=layers.LayerNormalization), 0, 6),
        (strangers.Subclassed, 2, 4),
    ],
)
def test_any_make_of_model_teaches(build, num_bn, width):
    model = build()
    teacher = teacher_of(model)
    assert (teacher.output, teacher.num_classes) == ("logits", 4)
    assert (teacher.num_batch_norms, teacher.feature_width) == (num_bn, width)
    assert teacher.passes_gradient
    said, features, bn = teacher(IMAGES)
    np.testing.assert_allclose(said, model(PIXELS), atol=1e-5)
    assert features.shape == (5, width) and len(bn) == num_bn
    assert model.trainable_variables == []


def test_separate_sigmoids_are_refused():
    image = keras.Input((8, 8, 1))
    answer = layers.Dense(4, activation="sigmoid")(layers.Flatten()(image))
    with pytest.raises(RequestError, match="separate sigmoids, one per class"):
        teacher_of(keras.Model(image, answer))


def test_features_by_name():
    model = strangers.nested()
    teacher = teacher_of(model, feature_layer=model.layers[1].layers[0].name)
    assert teacher.feature_width == 5
    _, features, _ = teacher(IMAGES)
    convolved = model.layers[1].layers[0](PIXELS)
    np.testing.assert_allclose(features, np.mean(convolved, (1, 2)), atol=1e-5)
    with pytest.raises(RequestError, match="no layer 'absent'"):
        teacher_of(strangers.logits(), feature_layer="absent")


def test_a_cast_to_whole_numbers_passes_no_gradient():
    image = keras.Input((8, 8, 1))
    tensor = layers.Flatten()(strangers.Casting()(image))
    assert not teacher_of(keras.Model(image, layers.Dense(4)(tensor))).passes_gradient


def test_a_saved_model_teaches_without_layers(tmp_path):
    model = strangers.logits()
    model.export(tmp_path / "saved", verbose=False)
    loaded = load_classifier(tmp_path / "saved")
    teacher = teacher_of(loaded)
    assert (teacher.num_batch_norms, teacher.feature_width) == (0, None)
    assert teacher.passes_gradient
    np.testing.assert_allclose(teacher(IMAGES)[0], model(PIXELS), atol=1e-5)


def test_a_saved_model_that_touches_files_is_refused(tmp_path):
    class Reader(tf.Module):
        @tf.function(input_signature=[tf.TensorSpec((None, 8, 8, 1))])
        def serve(self, images):
            tf.io.write_file(str(tmp_path / "pwned"), "x")
            return tf.reduce_mean(images, (1, 2)) * tf.ones((1, 4))

    module = Reader()
    tf.saved_model.save(
        module, str(tmp_path / "saved"), {"serving_default": module.serve}
    )
    with pytest.raises(RequestError, match="WriteFile"):
        load_classifier(tmp_path / "saved")
    assert not (tmp_path / "pwned").exists()


def test_a_folder_that_is_no_saved_model_is_refused(tmp_path):
    with pytest.raises(RequestError, match=r"is a folder: expected a \.keras file"):
        load_classifier(tmp_path)


def test_an_empty_file_is_refused(tmp_path):
    (tmp_path / "empty.keras").touch()
    with pytest.raises(RequestError, match=r"empty\.keras is empty"):
        load_classifier(tmp_path / "empty.keras")


@pytest.mark.parametrize("suffix", [".keras", ".h5"])
def test_lambdas_never_run(tmp_path, suffix):
    image = keras.Input((8, 8, 1))
    tensor = layers.Lambda(lambda x: x * 2)(image)
    model = keras.Model(image, layers.Dense(4)(layers.Flatten()(tensor)))
    model.save(tmp_path / f"lambda{suffix}")
    with pytest.raises(RequestError, match=r"Cannot read teacher .*lambda"):
        load_classifier(tmp_path / f"lambda{suffix}")


def test_calibration_brings_logits_to_one_scale():
    models = [strangers.logits(), strangers.logits()]
    models[1].layers[-1].kernel.assign(models[1].layers[-1].kernel * 50)
    ensemble = TeacherEnsemble([teacher_of(model) for model in models])
    before = np.asarray(ensemble(IMAGES)["logits"])
    factors = ensemble.calibrate(IMAGES)
    after = np.asarray(ensemble(IMAGES)["logits"])
    np.testing.assert_allclose(after, before * np.array(factors)[:, None], rtol=1e-5)
    centred = after - after.mean(-1, keepdims=True)
    deviations = centred.std((0, 2))
    np.testing.assert_allclose(deviations[0], deviations[1], rtol=1e-4)
