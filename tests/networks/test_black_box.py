"""Classifiers that only answer: functions, ONNX and TFLite files."""

import numpy as np
import pytest
import tensorflow as tf

from cdfkd_tf.errors import RequestError, RunError
from cdfkd_tf.networks.black_box import BlackBoxClassifier, read_onnx
from cdfkd_tf.networks.loading import load_classifier
from tests import toys
from tests.rows import rows

onnx = pytest.importorskip("onnx")
IMAGES = np.random.default_rng(0).random((5, *toys.SHAPE)).astype("float32")
KERNEL = np.random.default_rng(1).normal(size=(3, 4)).astype("float32")


def _means(images):
    """What the ONNX files here compute: each channel's mean, times a kernel."""
    return images.mean(axis=(1, 2)) @ KERNEL


def _onnx(file, shape, element=onnx.TensorProto.FLOAT):
    """A file for images of `shape` with its batch: mean over rows, columns; product."""
    helper, axes = onnx.helper, [1, 2] if shape[-1] == 3 else [2, 3]
    nodes = [
        helper.make_node("Cast", ["image"], ["x"], to=onnx.TensorProto.FLOAT),
        helper.make_node("ReduceMean", ["x", "axes"], ["mean"], keepdims=0),
        helper.make_node("MatMul", ["mean", "kernel"], ["rows"]),
    ]
    constants = [
        onnx.numpy_helper.from_array(np.array(axes), "axes"),
        onnx.numpy_helper.from_array(KERNEL, "kernel"),
    ]
    image = helper.make_tensor_value_info("image", element, shape)
    rows = helper.make_tensor_value_info("rows", onnx.TensorProto.FLOAT, None)
    graph = helper.make_graph(nodes, "g", [image], [rows], constants)
    opset = [helper.make_opsetid("", 18)]
    model = helper.make_model(graph, opset_imports=opset, ir_version=9)
    onnx.save(model, str(file))
    return file


@rows("shape", [("n", 8, 8, 3), ("n", 3, 8, 8), (2, 3, "h", "w"), (1, 8, 8, 3)])
def test_onnx_file_answers_images_of_any_layout_and_batch(shape, tmp_path):
    model = read_onnx(_onnx(tmp_path / "a.onnx", list(shape)))
    images = np.random.default_rng(2).random((5, 8, 8, 3)).astype("float32")
    np.testing.assert_allclose(model(images), _means(images), rtol=1e-5, atol=1e-6)
    assert model.input_shape[-1] == 3
    whole = tf.function(model)(tf.constant(images[:3]))  # also within a graph
    np.testing.assert_allclose(whole, _means(images[:3]), rtol=1e-5, atol=1e-6)


@pytest.mark.slow
def test_onnx_file_of_whole_numbers_gets_whole_numbers(tmp_path):
    byte = onnx.TensorProto.UINT8
    file = _onnx(tmp_path / "a.onnx", ["n", 8, 8, 3], byte)
    images = np.random.default_rng(2).integers(0, 256, (4, 8, 8, 3)).astype("float32")
    for load in (read_onnx, load_classifier):
        np.testing.assert_allclose(load(file)(images), _means(images), rtol=1e-4)


@rows("quantised", [False, True])
def test_tflite_file_answers_as_its_network(quantised, tmp_path):
    network = toys.classifier(seed=1)
    converter = tf.lite.TFLiteConverter.from_keras_model(network)
    if quantised:
        converter.optimizations = [tf.lite.Optimize.DEFAULT]
        converter.representative_dataset = lambda: ([i[None]] for i in IMAGES)
        converter.target_spec.supported_ops = [tf.lite.OpsSet.TFLITE_BUILTINS_INT8]
        converter.inference_input_type = converter.inference_output_type = tf.uint8
    file = tmp_path / "a.anything"  # told by its content
    file.write_bytes(converter.convert())
    model = load_classifier(file)
    expected = network(IMAGES).numpy()
    assert model.input_shape == (None, *toys.SHAPE)
    spread = np.ptp(expected)
    for images in (IMAGES, IMAGES[:2]):  # another batch the second time
        gap = np.abs(model(images) - expected[: len(images)]).max()
        assert gap < (0.05 * spread if quantised else 1e-4 * spread)


@pytest.mark.slow
@rows("content", [b"\x1c\0\0\0TFL3 and more", b"\x08\x0a:\x10"])
def test_damaged_file_for_devices_is_refused_in_a_sentence(content, tmp_path):
    file = tmp_path / "teacher.bin"
    file.write_bytes(content)
    with pytest.raises(RequestError, match=r"Cannot read teacher .*teacher\.bin"):
        load_classifier(file)


@rows(
    "answer, message",
    [
        (lambda images: 1 / 0, "failed on 5 images .*division by zero"),
        (lambda images: images, r"returned \(5, 8, 8, 1\) for 5 images"),
        (lambda images: np.zeros((2, 4)), r"returned \(2, 4\) for 5 images"),
        (lambda images: np.full((5, 4), np.nan), "NaN or infinite"),
    ],
)
def test_function_that_fails_is_named(answer, message):
    model = BlackBoxClassifier(answer, "teacher_1")
    with pytest.raises(RunError, match=f"teacher_1.*{message}"):
        model._rows(IMAGES)


@pytest.mark.slow
def test_function_is_asked_in_its_own_batches_and_may_answer_maps_of_one_pixel():
    asked = []

    def answer(images):
        asked.append(len(images))
        return images.mean(axis=(1, 2), keepdims=True).repeat(4, -1)

    rows = BlackBoxClassifier(answer, "f", batch_size=2)(IMAGES)
    assert asked == [2, 2, 2]
    np.testing.assert_allclose(rows, IMAGES.mean(axis=(1, 2)).repeat(4, -1), rtol=1e-6)
