"""Which pixel values a network expects is read from what stands before its weights."""

import keras
import numpy as np
import pytest
import tensorflow as tf
from keras import layers, ops

from cdfkd_tf.data.specs import spec_of
from cdfkd_tf.networks.classifiers import build_classifier
from cdfkd_tf.networks.loading import load_classifier
from cdfkd_tf.networks.preprocessing import find_values, rescaling_to
from tests.rows import rows

pytestmark = pytest.mark.faults

SHAPE = (8, 8, 3)
PHOTOS = np.random.default_rng(0).random((64, *SHAPE)) * 0.8 + 0.05
MEAN = np.array([0.485, 0.456, 0.406], "float32")
STD = np.array([0.229, 0.224, 0.225], "float32")
CAFFE = np.array([103.939, 116.779, 123.68], "float32")


def normalization(data):
    layer = layers.Normalization()
    layer.adapt(data)
    return layer


def trained_norm(mean, variance):
    def apply(tensor):
        layer = layers.BatchNormalization()
        normed = layer(tensor)
        layer.moving_mean.assign([mean] * 3)
        layer.moving_variance.assign([variance] * 3)
        return normed

    return apply


def in_a_row(*parts):
    def apply(tensor):
        for part in parts:
            tensor = part(tensor)
        return tensor

    return apply


def standardised(x):
    x = x - ops.mean(x, axis=(1, 2, 3), keepdims=True)
    return x / (ops.std(x, axis=(1, 2, 3), keepdims=True) + 1e-7)


# What stands in front, as an operation or a layer -> the values that it is made for.
FRONTS = {
    "nothing": (lambda x: x, None),
    "division": (lambda x: x / 255.0, "0..255"),
    "functions": (lambda x: ops.subtract(ops.divide(x, 127.5), 1.0), "0..255"),
    "as EfficientNet-Lite": (lambda x: (x - 127) / 128, "0..255"),
    "clipped": (lambda x: ops.clip(x, 0, 255) / 255.0, "0..255"),
    "to -1..1": (lambda x: x * 2 - 1, "0..1"),
    "from -1..1": (lambda x: (x + 1) / 2, "-1..1"),
    "mean and deviation": (lambda x: (x - MEAN) / STD, "0..1"),
    "of bytes": (lambda x: (x - MEAN * 255) / (STD * 255), "0..255"),
    "of digits": (lambda x: (x - 0.1307) / 0.3081, "0..1"),
    "BGR less mean": (lambda x: x[..., ::-1] - CAFFE, "0..255"),
    "BGR": (lambda x: x[..., ::-1], None),
    "to bytes and on": (lambda x: layers.Rescaling(1 / 127.5, -1)(x * 255.0), "0..1"),
    "standardised": (standardised, "0..1"),
    "Rescaling": (layers.Rescaling(1 / 255), "0..255"),
    "Rescaling to -1..1": (layers.Rescaling(1 / 127.5, offset=-1), "0..255"),
    "Rescaling of 0..1": (layers.Rescaling(2.0, offset=-1), "0..1"),
    "Normalization": (normalization(PHOTOS), "0..1"),
    "Normalization of bytes": (normalization(PHOTOS * 255), "0..255"),
    "Normalization of -1..1": (normalization(PHOTOS * 2 - 1), "-1..1"),
    "Normalization given": (
        layers.Normalization(mean=MEAN * 255, variance=(STD * 255) ** 2),
        "0..255",
    ),
    "Normalization not adapted": (layers.Normalization(), None),
    "Lambda": (layers.Lambda(lambda x: x / 255.0), "0..255"),
    "augmentation around it": (
        in_a_row(
            layers.RandomFlip(),
            layers.Resizing(12, 12),
            layers.CenterCrop(10, 10),
            layers.ZeroPadding2D(3),
            layers.Rescaling(1 / 255),
            layers.Dropout(0.2),
        ),
        "0..255",
    ),
    "a model": (
        keras.Sequential([layers.Resizing(6, 6), layers.Rescaling(1 / 127.5, -1)]),
        "0..255",
    ),
    "as ResNet": (keras.applications.resnet.preprocess_input, "0..255"),
    "as DenseNet": (keras.applications.densenet.preprocess_input, "0..255"),
    "as Xception": (keras.applications.xception.preprocess_input, "0..255"),
    "padding": (layers.ZeroPadding2D(3), None),
    "joined": (lambda x: layers.Concatenate()([x / 255.0] * 2), "0..255"),
    "channels moved": (lambda x: layers.Permute((3, 1, 2))(x / 255.0), "0..255"),
    "trained norm": (trained_norm(0.45, 0.06), "0..1"),
    "trained norm of bytes": (trained_norm(115, 3600), "0..255"),
    "trained norm of -1..1": (trained_norm(-0.1, 0.25), "-1..1"),
    "fresh norm": (layers.BatchNormalization(), None),
}
ALSO_SAVED = (
    "nothing",
    "BGR less mean",
    "Normalization of -1..1",
    "Lambda",
    "augmentation around it",
    "trained norm of bytes",
)


def behind(front, shape=SHAPE, **kwargs):
    image = keras.Input(shape, **kwargs)
    maps = layers.Conv2D(3, 2, padding="same")(front(image))
    return keras.Model(image, layers.Dense(4)(layers.GlobalAveragePooling2D()(maps)))


@rows("kind", FRONTS)
def test_find_values_reads_layers_and_operations(kind):
    front, expected = FRONTS[kind]
    model = behind(front)
    before = [("call" in vars(layer)) for layer in model._flatten_layers()]
    for _ in range(2):  # and leaves no trace
        found = find_values(model, SHAPE)
        assert (found and found.values) == expected
        assert found is None or found.is_certain
    assert before == [("call" in vars(layer)) for layer in model._flatten_layers()]


@rows("kind", ALSO_SAVED)
def test_find_values_reads_the_graph_of_a_saved_model(kind, tmp_path):
    front, expected = FRONTS[kind]
    behind(front).export(tmp_path / "saved", verbose=False)
    found = find_values(load_classifier(tmp_path / "saved"), SHAPE)
    assert (found and found.values) == expected
    assert found is None or found.is_certain


@pytest.mark.slow
@rows("scale, expected", [(1, "0..1"), (255, "0..255")])
def test_find_values_reads_a_fused_norm_of_a_saved_model(scale, expected, tmp_path):
    """As files of Keras 2 and TensorFlow 1 hold them."""
    module = tf.Module()
    module.norm = [
        tf.Variable([value] * 3) for value in (0.45 * scale, 0.06 * scale**2)
    ]
    module.kernel = tf.Variable(tf.random.normal((3, 3, 3, 4)))

    @tf.function(input_signature=[tf.TensorSpec((None, *SHAPE))])
    def serve(images):
        ones, zeros = tf.ones(3) * 7, tf.zeros(3)
        normed = tf.compat.v1.nn.fused_batch_norm(
            images, ones, zeros, *module.norm, is_training=False
        )[0]
        maps = tf.nn.conv2d(normed, module.kernel, 1, "SAME")
        return tf.reduce_mean(maps, (1, 2))

    tf.saved_model.save(module, str(tmp_path / "saved"), {"serving_default": serve})
    found = find_values(load_classifier(tmp_path / "saved"), SHAPE)
    assert found.values == expected and "statistics of its first" in found.evidence


def test_find_values_looks_into_models_in_models_and_subclassed_ones():
    inner = behind(layers.Rescaling(1 / 255))
    assert find_values(keras.Sequential([inner]), SHAPE).values == "0..255"

    class Own(keras.Model):
        def __init__(self):
            super().__init__()
            self.inner, self.head = behind(lambda x: x), layers.Dense(4)

        def call(self, images):
            return self.head(self.inner(images / 127.5 - 1.0))

    model = Own()
    model(np.zeros((1, *SHAPE)))
    assert find_values(model, SHAPE).values == "0..255"


def test_find_values_reads_inputs():
    model = build_classifier("wrn10_1", SHAPE, 4)
    assert find_values(model, SHAPE).values == "normalised"
    found = find_values(behind(lambda x: ops.cast(x, "float32"), dtype="uint8"), SHAPE)
    assert found == ("0..255", "read from its input of uint8", True)


def test_find_values_names_the_layer():
    for front, words in [
        (layers.Rescaling(1 / 255, name="bytes"), "read from layer bytes"),
        (trained_norm(115, 3600), "read from the statistics of layer batch_norm"),
        (lambda x: x / 255.0, "read from the operations before layer conv2d"),
    ]:
        assert words in find_values(behind(front), SHAPE).evidence


@pytest.mark.slow
def test_find_values_is_not_certain_where_two_ranges_are_as_likely():
    # As statistics look that have not come far from 0 and 1 in training.
    found = find_values(behind(trained_norm(0.22, 0.34)), SHAPE)
    assert found.values == "-1..1" and not found.is_certain


@pytest.mark.slow
@rows(
    "name, expected",
    [
        ("EfficientNetB0", "0..255"),
        ("EfficientNetV2B0", "0..255"),
        ("ConvNeXtTiny", "0..255"),
        ("MobileNetV3Small", "0..255"),
        ("ResNet50", None),
        ("MobileNetV2", None),
        ("DenseNet121", None),
    ],
)
def test_find_values_reads_published_networks(name, expected):
    model = getattr(keras.applications, name)(weights=None, classes=5)
    found = find_values(model, (224, 224, 3))
    assert (found and found.values) == expected


def test_rescaling_makes_expected_values_of_normalised_ones():
    spec = spec_of("cifar10")
    for values, scale, offset in [("0..1", 1, 0), ("0..255", 255, 0), ("-1..1", 2, -1)]:
        rescaled = rescaling_to(spec, values)(spec.normalise(PHOTOS))
        np.testing.assert_allclose(rescaled, PHOTOS * scale + offset, atol=1e-4)
    assert rescaling_to(spec, "normalised") is None
