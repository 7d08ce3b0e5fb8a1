"""What models of any origin answer becomes logits, or is refused in one sentence."""

import keras
import numpy as np
import pytest
import tensorflow as tf
from keras import layers, ops

from cdfkd_tf.data.specs import plain_spec
from cdfkd_tf.errors import RequestError
from cdfkd_tf.networks.loading import load_classifier
from cdfkd_tf.runtime.precision import dtype_policy
from cdfkd_tf.teachers.input_adapter import InputAdapter
from cdfkd_tf.teachers.teacher import Teacher
from tests.rows import rows
from tests.teachers.test_teacher import state_of

pytestmark = pytest.mark.faults

SHAPE, CLASSES = (8, 8, 3), 4
SPEC = plain_spec("none", SHAPE, CLASSES)
PIXELS = np.random.default_rng(0).random((5, *SHAPE)).astype("float32")
NORMALISED = SPEC.normalise(PIXELS).astype("float32")
KERNEL = np.random.default_rng(1).normal(size=(6, CLASSES)).astype("float32")


def network(end, kernel=KERNEL, **kwargs):
    """Pixels to what `end` makes of features `(B, 6)`, and of the logits' weights."""
    keras.utils.set_random_seed(0)
    image = keras.Input(SHAPE, **kwargs)
    maps = layers.Conv2D(kernel.shape[0], 3, strides=2, activation="relu")(image)
    model = keras.Model(image, end(layers.GlobalMaxPooling2D()(maps)))
    dense = [x for x in model._flatten_layers() if isinstance(x, layers.Dense)]
    for layer in dense:
        layer.set_weights([kernel, *np.zeros((int(layer.use_bias), kernel.shape[1]))])
    return model


def dense(activation=None):
    return layers.Dense(CLASSES, activation=activation)


def teacher_of(model, output="auto", spec=SPEC, **kwargs):
    shape = getattr(model, "input_shape", None) or (None, *SHAPE)
    adapter = InputAdapter(spec, "0..1", shape[1:])
    return Teacher(model, adapter, output=output, **kwargs)


def centred(logits):
    logits = np.asarray(logits, "float64")
    return logits - logits.mean(-1, keepdims=True)


def saved(function, folder, *, model=None, shape=(None, *SHAPE), dtype="float32"):
    """A SavedModel with this function of images as its signature, loaded."""
    module = tf.Module()
    module.model = model
    spec = tf.TensorSpec(shape, dtype, name="images")
    serve = tf.function(function, input_signature=[spec])
    tf.saved_model.save(module, str(folder), {"serving_default": serve})
    return load_classifier(folder)


class Subclassed(keras.Model):
    def __init__(self):
        super().__init__()
        self.inner, self.softmax = network(dense()), layers.Softmax()

    def call(self, images):
        return self.softmax(self.inner(images))


# Probabilities: their logits before the softmax, wherever it is seen.

SOFTMAXES = {
    "Dense": lambda: network(dense("softmax")),
    "Activation": lambda: network(lambda x: layers.Activation("softmax")(dense()(x))),
    "Softmax": lambda: network(lambda x: layers.Softmax()(dense()(x))),
    "operation": lambda: network(lambda x: ops.softmax(dense()(x))),
    "function": lambda: network(lambda x: keras.activations.softmax(dense()(x))),
    "nested": lambda: network(
        keras.Sequential([layers.Dropout(0.5), dense("softmax")])
    ),
    "Sequential": lambda: keras.Sequential([network(dense("softmax"))]),
    "subclassed": Subclassed,
}


@rows("kind", SOFTMAXES)
def test_logits_of_probabilities_are_those_before_the_softmax(kind):
    model, sure = SOFTMAXES[kind](), KERNEL * 300
    model(PIXELS)
    for layer in model._flatten_layers():
        if isinstance(layer, layers.Dense):
            layer.kernel.assign(sure)
    before, expected = state_of(model), centred(network(dense(), sure)(PIXELS))
    assert np.asarray(model(PIXELS)).min() == 0  # no logarithm could tell
    for _ in range(2):
        teacher = teacher_of(model)
        assert teacher.output == "probabilities"
        np.testing.assert_allclose(
            teacher(NORMALISED).logits, expected, rtol=1e-4, atol=1e-2
        )
        teacher.release()
        assert state_of(model) == before


@pytest.mark.slow
def test_logits_of_probabilities_survive_half_precision():
    """[-33, -3, 36]: in float16 the softmax is 0, 0, 1."""
    kernel = np.array([[-33, -3, 36, 0]] * 6, "float32") / 6
    model = network(dense("softmax"), kernel)
    expected = centred(network(dense(), kernel)(PIXELS))
    teacher = teacher_of(model)
    teacher.optimise_for_inference("mixed_float16")
    gap = np.abs(np.asarray(teacher(NORMALISED).logits) - expected).max()
    assert gap < 0.01 * np.abs(expected).max()


@pytest.mark.slow
def test_log_probabilities_are_logits():
    for end in (ops.log_softmax, keras.activations.log_softmax):
        model = network(lambda x, end=end: end(dense()(x)))
        teacher = teacher_of(model)
        assert teacher.output == "log-probabilities"
        np.testing.assert_allclose(teacher(NORMALISED).logits, model(PIXELS), atol=1e-5)


def test_logits_of_a_mean_of_softmaxes_are_its_logarithm():
    """Also where faint images, of the wrong values, tell no difference."""
    image = keras.Input(SHAPE)
    maps = layers.GlobalMaxPooling2D()(layers.Conv2D(6, 3)(image / 255.0))
    ends = [layers.Dense(CLASSES, "softmax")(maps) for _ in range(2)]
    model = keras.Model(image, layers.Average()(ends))
    for layer, kernel in zip(model.layers[-3:-1], (KERNEL, -KERNEL)):
        layer.set_weights([kernel, np.zeros(CLASSES)])
    teacher = teacher_of(model)
    teacher.adapter = InputAdapter(SPEC, "0..255", SHAPE)
    np.testing.assert_allclose(
        teacher(NORMALISED).logits, centred(np.log(model(PIXELS * 255))), atol=1e-4
    )


def test_percentages_are_refused():
    with pytest.raises(RequestError, match="all sum to 100, as percentages"):
        teacher_of(network(lambda x: 100 * dense("softmax")(x)))


# Separate sigmoids.


class SubclassedSigmoid(Subclassed):
    def call(self, images):
        return ops.sigmoid(self.inner(images))


SIGMOIDS = {
    "Dense": lambda: network(dense("sigmoid")),
    "hard": lambda: network(dense("hard_sigmoid")),
    "Activation": lambda: network(lambda x: layers.Activation("sigmoid")(dense()(x))),
    "operation": lambda: network(lambda x: ops.sigmoid(dense()(x))),
    "hard operation": lambda: network(lambda x: ops.hard_sigmoid(dense()(x))),
    "subclassed": SubclassedSigmoid,
}


@rows("kind", [*SIGMOIDS, "SavedModel"])
def test_separate_sigmoids_are_refused_unless_taken_for_logits(kind, tmp_path):
    if kind == "SavedModel":
        SIGMOIDS["Dense"]().export(tmp_path / "saved", verbose=False)
        model = load_classifier(tmp_path / "saved")
    else:
        model = SIGMOIDS[kind]()
    before = kind != "SavedModel" and state_of(model)
    with pytest.raises(RequestError, match=r"separate sigmoids.*--teacher_output=log"):
        teacher_of(model)
    assert before == (kind != "SavedModel" and state_of(model))
    teacher = teacher_of(model, output="logits")
    np.testing.assert_allclose(teacher(NORMALISED).logits, model(PIXELS), atol=1e-5)


@pytest.mark.slow
def test_logits_that_happen_to_lie_between_0_and_1_are_logits():
    model = network(dense(), np.abs(KERNEL) * 1e-5)
    assert teacher_of(model).output == "logits"


# Shapes and numbers of outputs.


def test_one_number_per_image_is_refused_with_how_to_make_two():
    for end in (layers.Dense(1), layers.Dense(1, activation="sigmoid")):
        with pytest.raises(RequestError, match=r"one number per image.*Concatenate"):
            teacher_of(network(end, KERNEL[:, :1]))


@pytest.mark.slow
@rows("several", [dict, lambda x: list(x.values())])
def test_teacher_of_several_outputs_answers_with_the_classes(several):
    def end(features):
        boxes = layers.Dense(CLASSES, use_bias=False, name="classes")(features)
        return several({"boxes": layers.Rescaling(2)(features), "classes": boxes})

    model = network(end)
    teacher = teacher_of(model, num_classes=CLASSES)
    expected = network(dense())(PIXELS)
    np.testing.assert_allclose(teacher(NORMALISED).logits, expected, atol=1e-4)
    assert "logits classes" in str(teacher)
    with pytest.raises(
        RequestError, match=r"answers .*\(6, 6\).*\(6, 4\).*a row alone"
    ):
        teacher_of(model)


def test_teacher_of_logits_and_their_softmax_answers_with_the_logits():
    def end(features):
        logits = dense()(features)
        return {"a": ops.softmax(logits), "b": logits}

    teacher = teacher_of(network(end), num_classes=CLASSES)
    assert teacher.output == "logits"
    expected = network(dense())(PIXELS)
    np.testing.assert_allclose(teacher(NORMALISED).logits, expected, atol=1e-4)


@pytest.mark.slow
def test_teacher_may_answer_maps_of_one_pixel():
    model = network(lambda x: layers.Reshape((1, 1, CLASSES))(dense("softmax")(x)))
    teacher = teacher_of(model)
    assert (teacher.output, teacher.num_classes) == ("probabilities", CLASSES)
    expected = centred(network(dense())(PIXELS))
    np.testing.assert_allclose(teacher(NORMALISED).logits, expected, atol=1e-3)


@pytest.mark.slow
def test_teacher_that_answers_no_row_is_refused():
    with pytest.raises(RequestError, match=r"one row of at least two.*\(6, 3, 2\)"):
        teacher_of(network(layers.Reshape((3, 2))))


# Answers that nothing can be learned from.


def test_teacher_that_answers_nan_is_refused_and_given_back():
    model = network(lambda x: dense()(x) / ops.zeros((1, 1)))
    before = state_of(model)
    with pytest.raises(RequestError, match="answers NaN or infinite"):
        teacher_of(model)
    assert state_of(model) == before


@rows("rate, told", [(0.9, None), (0.05, "something random")])
def test_teacher_of_random_answers_is_told_or_refused(rate, told, tmp_path):
    model = network(dense())

    def noisy(images):
        features = model.layers[-2](model.layers[1](images))
        noise = 1 + rate * tf.random.uniform(tf.shape(features), -1, 1)
        return model.layers[-1](features * (noise if told else tf.round(noise) * 9))

    teacher = teacher_of(saved(noisy, tmp_path / "noisy", model=model))
    if told:
        teacher.check_repetition()
        assert 0 < teacher.variation < 0.5 and told in str(teacher)
    else:
        with pytest.raises(RequestError, match="differently each time, by"):
            teacher.check_repetition()
    teacher = teacher_of(model)
    teacher.check_repetition()
    assert teacher.variation == 0 and "random" not in str(teacher)


def test_logits_are_refused_as_probabilities():
    with pytest.raises(RequestError, match="which is no probability"):
        teacher_of(network(dense(), KERNEL - 2), output="probabilities")


# Models that take images in their own way.


def check(model, expected, bound=1e-4):
    """The teacher's logits are these, and gradients reach its images."""
    teacher = teacher_of(model)
    assert "gradient" in teacher.provides
    for call in (teacher, tf.function(teacher)):
        with tf.GradientTape() as tape:
            images = tf.constant(NORMALISED)
            tape.watch(images)
            logits = call(images).logits
        np.testing.assert_allclose(logits, expected, atol=bound)
        assert np.abs(tape.gradient(logits, images)).max() > 0
    return teacher


@pytest.mark.slow
def test_teacher_of_the_float16_policy_answers_in_float32():
    plain = network(dense())
    with dtype_policy("float16"):
        model = network(dense())
    model.set_weights(plain.get_weights())
    teacher = check(model, plain(PIXELS), bound=0.02)
    assert teacher(NORMALISED).logits.dtype == "float32"


@pytest.mark.slow
@rows("cast", [layers.Rescaling(1), lambda x: ops.cast(x, "float32")])
@rows("make", ["functional", "Sequential", "SavedModel"])
def test_teacher_of_whole_numbers_lets_gradients_through(make, cast, tmp_path):
    keras.utils.set_random_seed(0)
    image = keras.Input(SHAPE, dtype="uint8")
    model = keras.Model(image, network(dense())(cast(image)))
    if make == "Sequential":
        if not isinstance(cast, layers.Layer):
            return
        inner = network(dense())
        model = keras.Sequential([keras.Input(SHAPE, dtype="uint8"), cast, inner])
    expected = network(dense())(PIXELS * 255)
    if make == "SavedModel":
        model.export(tmp_path / "saved", verbose=False)
        model = load_classifier(tmp_path / "saved")
    teacher = teacher_of(model)
    teacher.find_reading(None)
    assert teacher.reading.values == "0..255" and not teacher.reading.guessed
    assert "gradient" in teacher.provides
    logits = np.asarray(teacher(NORMALISED).logits)
    np.testing.assert_allclose(logits, expected, rtol=1e-3, atol=1e-2)


@pytest.mark.slow
@rows("size", [1, 4])
def test_teacher_of_a_fixed_batch_gets_images_in_pieces(size, tmp_path):
    model = network(dense())
    fixed = saved(model, tmp_path / "fixed", model=model, shape=(size, *SHAPE))
    check(fixed, model(PIXELS))


@pytest.mark.slow
def test_teacher_of_unknown_rank_is_called_with_the_data_sets_images(tmp_path):
    model = network(dense())

    def serve(images):
        return tf.reshape(model(tf.reshape(images, (-1, *SHAPE))), tf.constant([-1, 4]))

    check(saved(serve, tmp_path / "open", model=model, shape=None), model(PIXELS))


@pytest.mark.slow
def test_teacher_of_encoded_images_is_refused_unless_it_takes_pixels_too(tmp_path):
    model = network(dense())

    def decode(files):
        images = tf.map_fn(
            lambda file: tf.cast(tf.io.decode_jpeg(file, 3), tf.float32),
            files,
            fn_output_signature=tf.TensorSpec(SHAPE),
        )
        return model(tf.reshape(images, (-1, *SHAPE)))

    module = tf.Module()
    module.model = model
    strings = tf.function(decode, input_signature=[tf.TensorSpec([None], tf.string)])
    pixels = tf.function(model, input_signature=[tf.TensorSpec((None, *SHAPE))])
    for name, signatures in [
        ("both", {"serving_default": strings, "pixels": pixels}),
        ("strings", {"serving_default": strings}),
    ]:
        tf.saved_model.save(module, str(tmp_path / name), signatures)
    check(load_classifier(tmp_path / "both"), model(PIXELS))
    with pytest.raises(RequestError, match="serving_default takes string"):
        load_classifier(tmp_path / "strings")


def test_teacher_of_channels_first_gets_its_images_so():
    image = keras.Input((3, 8, 8))
    model = keras.Model(image, network(dense())(ops.transpose(image, (0, 2, 3, 1))))
    check(model, network(dense())(PIXELS))


@pytest.mark.slow
def test_teacher_of_pixels_in_a_row_gets_them_so():
    inner = network(dense())
    rows = keras.Input((int(np.prod(SHAPE)),))
    model = keras.Model(rows, inner(layers.Reshape(SHAPE)(rows)))
    check(model, inner(PIXELS))


@pytest.mark.slow
def test_teacher_that_cannot_be_called_is_refused():
    image = keras.Input(SHAPE, batch_size=2)
    rows = ops.reshape(layers.Conv2D(3, 3)(image), (2, -1))
    with pytest.raises(RequestError, match=r"cannot be called with 6 images of \(8, 8"):
        teacher_of(keras.Model(image, layers.Dense(4)(rows)))
