"""SavedModels that only compute are let in, all others are refused by operation."""

import keras
import pytest
import tensorflow as tf
from keras import layers

from cdfkd_tf.errors import RequestError
from cdfkd_tf.networks.saved_model_check import check_saved_model

pytestmark = pytest.mark.faults


def read_file(path):
    return tf.strings.length(tf.io.read_file(path))


def decode_with_a_file(path):
    _, (values,) = tf.io.decode_proto(
        tf.constant([b""]), "a.B", ["x"], [tf.int32], descriptor_source=path
    )
    return tf.reduce_sum(values)


def run_python(path):
    return tf.numpy_function(len, [path], tf.int64)


class Calling(tf.Module):
    """A classifier that also does something else."""

    def __init__(self, other):
        super().__init__()
        self.other = other

    @tf.function(input_signature=[tf.TensorSpec((None, 8, 8, 1))])
    def serve(self, images):
        other = tf.cast(self.other("/etc/hostname"), tf.float32)
        return tf.reduce_mean(images, (1, 2)) * tf.ones((1, 4)) + other


def test_check_saved_model_names_what_does_more_than_compute(tmp_path):
    for other, operation in [
        (read_file, "ReadFile"),
        (decode_with_a_file, "DecodeProtoV2"),
        (run_python, "PyFunc"),
    ]:
        module = Calling(other)
        tf.saved_model.save(module, str(tmp_path), {"serving_default": module.serve})
        with pytest.raises(RequestError, match=f"{operation}.*, which could"):
            check_saved_model(tmp_path)


def test_check_saved_model_lets_in_what_classifiers_are_made_of(tmp_path):
    image = keras.Input((8, 8, 3))
    tensor = layers.Normalization(mean=0.5, variance=2.0)(layers.RandomFlip()(image))
    tensor = layers.Conv2D(4, 3, strides=2, padding="same", activation="gelu")(tensor)
    tensor = layers.GroupNormalization(2)(layers.BatchNormalization()(tensor))
    tensor = layers.UpSampling2D(2, interpolation="bilinear")(tensor)
    tokens = layers.Dropout(0.1)(layers.Reshape((-1, 4))(tensor))
    tokens = layers.LayerNormalization()(
        layers.MultiHeadAttention(2, 2)(tokens, tokens)
    )
    model = keras.Model(
        image, layers.Dense(3, activation="softmax")(layers.GRU(4)(tokens))
    )
    model.export(tmp_path / "saved", verbose=False)
    check_saved_model(tmp_path / "saved")
