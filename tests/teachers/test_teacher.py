"""Classifiers of any origin become frozen teachers behind one interface."""

import subprocess
import sys

import keras
import numpy as np
import pytest
import tensorflow as tf
from keras import layers

from cdfkd_tf.data.specs import plain_spec
from cdfkd_tf.errors import DistillationWarning, RequestError
from cdfkd_tf.networks.bn_folding import foldable
from cdfkd_tf.networks.classifiers import build_classifier
from cdfkd_tf.networks.loading import load_classifier
from cdfkd_tf.runtime import fused_batchnorm
from cdfkd_tf.teachers.input_adapter import InputAdapter
from cdfkd_tf.teachers.teacher import Teacher
from tests import toys
from tests.networks.test_bn_folding import with_statistics
from tests.rows import rows

SPEC = plain_spec("none", (8, 8, 1), 4)
PIXELS = np.random.default_rng(0).random((5, 8, 8, 1)).astype("float32")
NORMALISED = SPEC.normalise(PIXELS).astype("float32")
BN = frozenset({"bn_statistics"})
MAPS = frozenset({"feature_maps"})


@pytest.fixture(autouse=True)
def same_weights_each_time():
    keras.utils.set_random_seed(0)


def teacher_of(model, values="0..1", **kwargs):
    shape = getattr(model, "input_shape", (None, 8, 8, 1))[1:]
    return Teacher(model, InputAdapter(SPEC, values, shape), output="auto", **kwargs)


def wrn(seed=0, name="wrn10_1"):
    return with_statistics(build_classifier(name, (8, 8, 1), 4), seed)


def state_of(model):
    """What a teacher may change of a model: flags of training, and layers' calls."""
    found = model._flatten_layers()
    return [
        *((layer.trainable, "call" in vars(layer)) for layer in found),
        *(variable.trainable for variable in model.variables),
    ]


# What it is made of.


@rows(
    "build, num_bn, width",
    [
        (toys.classifier, 1, 6),
        (toys.nested, 2, 5),
        (lambda: toys.classifier(norm=layers.LayerNormalization), 0, 6),
        (toys.Subclassed, 2, 4),
    ],
)
def test_teacher_may_be_any_make_of_model(build, num_bn, width):
    model = build()
    teacher = teacher_of(model)
    assert (teacher.output, teacher.num_classes) == ("logits", 4)
    assert (teacher.num_batch_norms, teacher.feature_width) == (num_bn, width)
    bn = {"bn_statistics"} if num_bn else set()
    assert teacher.provides == {"gradient", "features", "feature_maps"} | bn
    outputs = teacher(NORMALISED, BN)
    np.testing.assert_allclose(outputs.logits, model(PIXELS), atol=1e-5)
    assert outputs.features.shape == (5, width) and len(outputs.bn) == num_bn
    assert model.trainable_variables == []


def test_teacher_of_a_saved_model_provides_gradients_alone(tmp_path):
    model = toys.classifier()
    model.export(tmp_path / "saved", verbose=False)
    teacher = teacher_of(load_classifier(tmp_path / "saved"))
    assert (teacher.num_batch_norms, teacher.feature_width) == (0, None)
    assert teacher.provides == {"gradient"}
    for needs in (frozenset(), BN | MAPS):
        outputs = teacher(NORMALISED, needs)
        np.testing.assert_allclose(outputs.logits, model(PIXELS), atol=1e-5)
        assert outputs[1:] == (None, [], [])
    teacher.release()
    np.testing.assert_allclose(teacher(NORMALISED).logits, model(PIXELS), atol=1e-5)


def test_teacher_with_a_cast_to_whole_numbers_provides_no_gradient():
    image = keras.Input((8, 8, 1))
    tensor = layers.Flatten()(toys.Casting()(image))
    model = keras.Model(image, layers.Dense(4)(tensor))
    assert "gradient" not in teacher_of(model).provides


@pytest.mark.slow
def test_teacher_takes_a_model_that_is_not_built():
    model = keras.Sequential(
        [
            layers.Conv2D(3, 3),
            layers.BatchNormalization(),
            layers.Flatten(),
            layers.Dense(4),
        ]
    )
    teacher = Teacher(model, InputAdapter(SPEC, "0..1", (8, 8, 1)))
    assert teacher.num_batch_norms == 1
    np.testing.assert_allclose(teacher(NORMALISED).logits, model(PIXELS), atol=1e-5)


@pytest.mark.slow
def test_teacher_hooks_layers_that_are_called_by_keyword():
    class Sum(layers.Layer):
        def call(self, *, left, right):
            return left + right

    class Own(keras.Model):
        def __init__(self):
            super().__init__()
            self.sum, self.flat, self.out = Sum(), layers.Flatten(), layers.Dense(4)

        def call(self, images):
            return self.out(self.flat(self.sum(left=images, right=images)))

    model = Own()
    logits = teacher_of(model)(NORMALISED).logits
    np.testing.assert_allclose(logits, model(PIXELS), atol=1e-5)


@rows("build", [toys.nested, toys.Subclassed, lambda: wrn()])
def test_teacher_has_nothing_to_train_and_its_statistics_stay(build):
    model = build()
    model(PIXELS)
    before = model.get_weights()
    teacher_of(model)(NORMALISED)
    assert model.trainable_variables == []
    for old, new in zip(before, model.get_weights()):
        np.testing.assert_array_equal(old, new)


# Its logits.


def test_teacher_turns_probabilities_into_centred_logits():
    model = toys.probabilities_of_bytes()
    teacher = teacher_of(model, "0..255")
    assert teacher.output == "probabilities"
    logits = np.asarray(teacher(NORMALISED).logits)
    p = np.asarray(model(PIXELS * 255))
    np.testing.assert_allclose(
        logits, np.log(p) - np.log(p).mean(-1, keepdims=True), atol=1e-4
    )
    softmax = np.exp(logits) / np.exp(logits).sum(-1, keepdims=True)
    np.testing.assert_allclose(softmax, p, atol=1e-5)


@pytest.mark.slow
def test_teacher_of_certain_probabilities_stays_finite_and_so_do_gradients():
    model = toys.probabilities_of_bytes()
    model.layers[-1].kernel.assign(model.layers[-1].kernel * 1e4)
    teacher = teacher_of(model, "0..255")
    images = tf.constant(NORMALISED)
    with tf.GradientTape() as tape:
        tape.watch(images)
        logits = teacher(images).logits
    assert np.asarray(model(PIXELS * 255)).min() == 0
    assert np.isfinite(logits).all()
    assert np.isfinite(tape.gradient(logits, images)).all()


@pytest.mark.slow
def test_teacher_never_computes_gradients_of_its_filters():
    """TensorFlow 2.21 dies of some (oneDNN, AVX-512); frozen ones need none."""
    program = [sys.executable, "-m", "tests.teachers.narrow_shortcut"]
    ended = subprocess.run(program, capture_output=True, text=True)
    assert ended.returncode == 0, ended.stderr
    assert ended.stdout.count("(6, 64, 64, 3)") == 6


# Its inner values.


def test_teacher_reads_features_of_a_named_layer():
    model = toys.nested()
    teacher = teacher_of(model, feature_layer=model.layers[1].layers[0].name)
    assert teacher.feature_width == 5
    convolved = model.layers[1].layers[0](PIXELS)
    np.testing.assert_allclose(
        teacher(NORMALISED).features, np.mean(convolved, (1, 2)), atol=1e-5
    )
    with pytest.raises(RequestError, match=r"no layer 'absent'.*--teacher_features"):
        teacher_of(toys.classifier(), feature_layer="absent")


@pytest.mark.slow
@rows("place", [0, 1])
def test_teacher_does_not_fold_the_layer_that_features_are_read_of(place):
    model = with_statistics(build_classifier("resnet18", (8, 8, 1), 4, width=0.125))
    layer = foldable(model)[3][place]
    teacher = Teacher(model, feature_layer=layer.name)
    exact, folded = teacher(NORMALISED, BN).features, teacher(NORMALISED).features
    np.testing.assert_allclose(folded, exact, rtol=1e-4, atol=1e-5)


def test_teacher_records_bn_inputs_in_forward_order_at_any_depth():
    model = toys.nested()
    outputs = Teacher(model)(PIXELS, BN)
    convolved = model.layers[1].layers[0](PIXELS)
    assert [inputs.shape for inputs, _, _ in outputs.bn] == [(5, 6, 6, 5)] * 2
    np.testing.assert_allclose(outputs.bn[0][0], convolved, rtol=1e-4, atol=1e-5)
    assert outputs.features.shape == (5, 5)


@pytest.mark.slow
def test_teacher_records_every_bn_of_our_own_networks():
    model = build_classifier("wrn16_1", (8, 8, 1), 4)
    bns = [x for x in model.layers if isinstance(x, layers.BatchNormalization)]
    assert len(Teacher(model)(NORMALISED, BN).bn) == len(bns) == 13


@pytest.mark.slow
def test_teacher_counts_a_shared_bn_once_per_place_where_it_is_called():
    shared = layers.BatchNormalization()
    image = keras.Input((8, 8, 1))
    halves = [
        keras.Sequential([layers.Conv2D(3, 3), shared, layers.ReLU()]) for _ in "ab"
    ]
    maps = layers.Concatenate()([half(image) for half in halves])
    pooled = layers.GlobalAveragePooling2D()(maps)
    model = keras.Model(image, layers.Dense(4)(pooled))
    bn = Teacher(model)(PIXELS, BN).bn
    assert len(bn) == 2
    for half, (inputs, _, _) in zip(halves, bn):
        np.testing.assert_allclose(inputs, half.layers[0](PIXELS), atol=1e-6)


@rows("axis", [1, -1, 3])
def test_teacher_gives_bn_inputs_with_the_layers_own_axis_last(axis):
    """Rows and channels are equally many: a wrong axis would not be refused."""
    image = keras.Input((8, 8, 1))
    maps = layers.Conv2D(8, 3, padding="same")(image)
    normed = layers.BatchNormalization(axis=axis)(maps)
    model = keras.Model(image, layers.Dense(4)(layers.Flatten()(normed)))
    with_statistics(model)
    convolved = np.asarray(model.layers[1](PIXELS))
    axes = tuple(i for i in range(4) if i != axis % 4)
    (given, mean, variance) = Teacher(model)(PIXELS, BN).bn[0]
    given = np.asarray(given)
    assert given.shape[-1] == mean.shape[0] == variance.shape[0] == 8
    np.testing.assert_allclose(
        given.mean((0, 1, 2)), convolved.mean(axes), rtol=1e-4, atol=1e-5
    )
    np.testing.assert_allclose(
        given.var((0, 1, 2)), convolved.var(axes), rtol=1e-4, atol=1e-5
    )
    teacher = Teacher(model)
    np.testing.assert_allclose(
        teacher(PIXELS).logits, model(PIXELS), rtol=1e-4, atol=1e-5
    )


def test_teacher_gives_the_last_map_of_each_resolution_finest_first():
    image = keras.Input((8, 8, 1))
    first = layers.Conv2D(2, 3, padding="same")(image)
    second = layers.ReLU()(first)
    coarse = layers.Conv2D(3, 3, strides=2, padding="same")(second)
    normed = layers.BatchNormalization()(coarse)
    logits = layers.Dense(4)(layers.GlobalAveragePooling2D()(normed))
    model = keras.Model(image, logits)
    outputs = Teacher(model)(PIXELS, MAPS)
    expected = keras.Model(image, [second, normed])(PIXELS)
    for ours, theirs in zip(outputs.maps, expected, strict=True):
        np.testing.assert_allclose(ours, theirs, atol=1e-6)
    assert outputs.bn == []


@pytest.mark.slow
def test_teacher_leaves_the_output_as_it_was_where_it_records():
    model = wrn()
    before = model(NORMALISED, training=False)
    teacher = Teacher(model)
    np.testing.assert_allclose(
        teacher(NORMALISED, BN).logits, before, rtol=1e-4, atol=1e-5
    )
    np.testing.assert_array_equal(model(NORMALISED, training=False), before)


# Fewer operations.


@pytest.mark.slow
@rows("needs", [frozenset(), BN])
def test_teacher_without_fused_kernels_computes_as_keras_does(needs):
    teacher = Teacher(wrn())
    fused = teacher(NORMALISED, needs)
    fused_batchnorm.use(False)
    try:
        traced = tf.function(lambda x: teacher(x, needs).logits)
        graph = traced.get_concrete_function(tf.constant(NORMALISED)).graph
        kinds = {operation.type for operation in graph.get_operations()}
        plain = teacher(NORMALISED, needs)
    finally:
        fused_batchnorm.use(True)
    assert "FusedBatchNormV3" not in kinds
    np.testing.assert_array_equal(plain.logits, teacher.model(NORMALISED))
    for ours, theirs in zip(fused[:2], plain[:2]):
        np.testing.assert_allclose(ours, theirs, rtol=1e-3, atol=1e-4)
    assert len(fused.bn) == len(plain.bn)


@pytest.mark.slow
def test_teacher_may_be_traced_at_its_first_call():
    teacher = Teacher(wrn())
    traced = tf.function(lambda x: teacher(x).logits)(tf.constant(NORMALISED))
    np.testing.assert_allclose(
        traced, teacher(NORMALISED, BN).logits, rtol=1e-4, atol=1e-5
    )


@pytest.mark.slow
@rows("build", [toys.Subclassed, None])
def test_teacher_that_stays_in_float32_says_why(build, tmp_path):
    if build:
        model = build()
    else:
        toys.classifier().export(tmp_path / "saved", verbose=False)
        model = load_classifier(tmp_path / "saved")
    teacher = teacher_of(model, name="mine")
    with pytest.warns(DistillationWarning, match=r"mine does not compute in mixed_bf"):
        teacher.optimise_for_inference("mixed_bfloat16")
    np.testing.assert_allclose(
        teacher(NORMALISED).logits, model(PIXELS), rtol=1e-4, atol=1e-5
    )


@pytest.mark.slow
def test_teacher_whose_layers_cannot_be_built_again_says_why():
    class Stubborn(layers.Layer):
        def call(self, images):
            return images * 2

        def get_config(self):
            raise NotImplementedError("no settings to give")

    image = keras.Input((8, 8, 1))
    model = keras.Model(image, layers.Dense(4)(layers.Flatten()(Stubborn()(image))))
    teacher = teacher_of(model)
    with pytest.warns(DistillationWarning, match="no settings to give"):
        teacher.optimise_for_inference("mixed_bfloat16")
    np.testing.assert_allclose(
        teacher(NORMALISED).logits, model(PIXELS), rtol=1e-4, atol=1e-5
    )


# The model is lent, not taken.


@rows("build", [toys.nested, toys.Subclassed, wrn])
def test_teacher_releases_its_model_as_it_was(build):
    model = build()
    model(PIXELS)
    inner = model._flatten_layers()[2]
    inner.trainable = False
    before, expected = state_of(model), np.asarray(model(PIXELS))
    teacher = teacher_of(model)
    assert state_of(model) != before
    teacher(NORMALISED, BN)
    for _ in range(2):
        teacher.release()
        assert state_of(model) == before
    np.testing.assert_array_equal(model(PIXELS), expected)
    teacher = teacher_of(model)  # and once more
    np.testing.assert_allclose(teacher(NORMALISED).logits, expected, atol=1e-5)
    teacher.release()
    assert state_of(model) == before


def test_teachers_may_share_a_model_and_wrap_it_once():
    model = wrn()
    before = state_of(model)
    expected = np.asarray(model(NORMALISED))
    first = Teacher(model)
    calls = [vars(layer)["call"] for layer in model.layers[1:]]
    second = Teacher(model)
    assert [vars(layer)["call"] for layer in model.layers[1:]] == calls
    for teacher in (first, second):
        np.testing.assert_allclose(
            teacher(NORMALISED).logits, expected, rtol=1e-4, atol=1e-5
        )
        outputs = teacher(NORMALISED, BN)
        np.testing.assert_allclose(outputs.logits, expected, rtol=1e-4, atol=1e-5)
        assert len(outputs.bn) == teacher.num_batch_norms == 7
    first.release()  # the second one still sees it
    assert model.trainable_variables == []
    assert len(second(NORMALISED, BN).bn) == 7
    second.release()
    assert state_of(model) == before


def test_teacher_files_saved_meanwhile_hold_plain_layers(tmp_path):
    model = wrn()
    Teacher(model)(NORMALISED)
    model.save(tmp_path / "model.keras")
    again = keras.saving.load_model(tmp_path / "model.keras")
    np.testing.assert_allclose(again(NORMALISED), model(NORMALISED), rtol=1e-6)
    assert not any("call" in vars(layer) for layer in again.layers)
