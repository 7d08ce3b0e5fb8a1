"""Model files are read without running code from them, or refused in one sentence."""

import keras
import pytest
import tensorflow as tf
from keras import layers

from cdfkd_tf.errors import RequestError
from cdfkd_tf.networks.loading import load_classifier


@pytest.mark.parametrize("content", [b"not a zip", b"PK\x03\x04 broken"])
def test_load_classifier_refuses_unreadable_files(tmp_path, content):
    file = tmp_path / "teacher.keras"
    file.write_bytes(content)
    with pytest.raises(RequestError, match=r"Cannot read teacher .*teacher\.keras"):
        load_classifier(str(file))


@pytest.mark.parametrize("suffix", [".keras", ".h5"])
def test_load_classifier_never_runs_a_lambda(tmp_path, suffix):
    image = keras.Input((8, 8, 1))
    tensor = layers.Lambda(lambda x: x * 2)(image)
    model = keras.Model(image, layers.Dense(4)(layers.Flatten()(tensor)))
    model.save(tmp_path / f"lambda{suffix}")
    with pytest.raises(RequestError, match=r"Cannot read teacher .*(lambda|Lambda)"):
        load_classifier(str(tmp_path / f"lambda{suffix}"))


def test_load_classifier_refuses_a_saved_model_that_touches_files(tmp_path):
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


def test_load_classifier_refuses_a_folder_that_is_no_saved_model(tmp_path):
    with pytest.raises(RequestError, match=r"is a folder: expected a \.keras file"):
        load_classifier(tmp_path)


def test_load_classifier_refuses_an_empty_file(tmp_path):
    (tmp_path / "empty.keras").touch()
    with pytest.raises(RequestError, match=r"empty\.keras is empty"):
        load_classifier(tmp_path / "empty.keras")
