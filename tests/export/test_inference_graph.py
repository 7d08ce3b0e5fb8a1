"""The graph that is exported: equal to the predictor, also after fine-tuning, and how
its int8 form is calibrated."""

import keras
import numpy as np
import pytest
from keras import layers

from cdfkd_tf.export.calibration import calibration_images
from cdfkd_tf.export.finetuning import finetune_int8
from cdfkd_tf.export.inference_graph import inference_graph
from cdfkd_tf.export.run import check_formats
from cdfkd_tf.export.tflite import TfliteRunner, convert
from cdfkd_tf.networks.introspection import multiply_adds
from tests.export.small import IMAGES, own_predictor, predictor_with
from tests.rows import rows


@rows(
    "kind, backbone, headers, sharing, mask",
    [
        ("mean", "wrn10_1", 3, "multi_level", None),
        ("attention", "resnet18", 2, "split", None),
        ("weights", "lenet", 2, "multi_level", None),
        ("feature_attention", "wrn10_1", 2, "split", None),
        ("attention", "lenet", 1, "single", None),
        ("mean", "lenet", 2, "multi_level", [[1, 1, 1, 0], [1, 0, 1, 1]]),
        ("competence", "lenet", 2, "multi_level", [[1, 1, 1, 0], [1, 0, 1, 1]]),
        ("stacking", "lenet", 2, "multi_level", None),
        ("none_of_mine", "lenet", 2, "multi_level", [[1, 1, 1, 0], [1, 0, 1, 1]]),
        ("header_tuning", "lenet", 2, "multi_level", [[1, 1, 1, 0], [1, 0, 1, 1]]),
    ],
)
def test_inference_graph_is_the_same_function(kind, backbone, headers, sharing, mask):
    side = 16 if backbone == "lenet" else 8
    predictor = predictor_with(kind, backbone, headers, sharing, side, mask)
    images = np.random.default_rng(2).uniform(size=(6, side, side, 1))
    images = images.astype("float32")
    graph = inference_graph(predictor)
    np.testing.assert_allclose(graph(images), predictor(images), atol=2e-5)
    kinds = {type(layer) for layer in graph._flatten_layers()}
    assert keras.layers.BatchNormalization not in kinds
    assert graph.count_params() <= predictor.count_params()


@rows(
    "part, dtype",
    [
        (layers.GroupNormalization(2), "float32"),
        (layers.LayerNormalization(scale=False), "float32"),
        (layers.Activation("gelu"), "float32"),
        (layers.Conv2D(8, 3, 2, "same", groups=4), "float32"),
        (layers.Conv2D(4, (3, 2), groups=2, activation="gelu"), "float32"),
        (keras.Sequential([layers.Conv2D(4, 1), layers.ReLU()]), "float32"),
        (layers.BatchNormalization(), "mixed_bfloat16"),
    ],
)
def test_inference_graph_of_an_open_backbone_has_sizes_and_integer_kernels(part, dtype):
    predictor = own_predictor(part, dtype=dtype)
    graph = inference_graph(predictor)
    tolerance = 1e-6 if dtype == "float32" else 0.01
    expected = predictor.predict(IMAGES, verbose=0)
    np.testing.assert_allclose(graph(IMAGES), expected, atol=tolerance)
    assert multiply_adds(graph) >= 4 * 4 * 9 * 4 + 8 * 8 + 8 * 4
    run = TfliteRunner(convert(graph, IMAGES))
    assert run.float_operators == []
    np.testing.assert_allclose(run(IMAGES), expected, atol=0.05)
    assert check_formats(predictor, ("onnx",)) is None


@pytest.mark.slow
@rows("axis", [1, -1])
def test_inference_graph_keeps_the_axis_of_a_batchnormalization(axis):
    predictor = own_predictor(layers.BatchNormalization(axis=axis), shape=(8, 8, 1))
    expected = predictor.predict(IMAGES, verbose=0)
    np.testing.assert_allclose(inference_graph(predictor)(IMAGES), expected, atol=1e-6)


@pytest.mark.slow
def test_inference_graph_shares_what_the_predictor_shares():
    shared = keras.Sequential([layers.Conv2D(4, 3, padding="same"), layers.ReLU()])
    predictor = own_predictor(lambda x: shared(shared(x)))
    graph = inference_graph(predictor)
    np.testing.assert_allclose(graph(IMAGES), predictor(IMAGES), atol=1e-6)
    # Folding takes two moving statistics of each channel and adds no bias.
    assert graph.count_params() == predictor.count_params() - 4 * 8


@pytest.mark.slow
def test_inference_graph_of_a_predictor_from_disk_is_the_same(tmp_path):
    predictor = predictor_with("attention", headers=2)
    predictor.save(tmp_path / "predictor.keras")
    loaded = keras.saving.load_model(tmp_path / "predictor.keras")
    graph = inference_graph(loaded)
    np.testing.assert_allclose(graph(IMAGES), predictor(IMAGES), atol=2e-5)
    graph.set_weights([weight + 1 for weight in graph.get_weights()])  # copies
    np.testing.assert_allclose(loaded(IMAGES), predictor(IMAGES), atol=1e-6)


def test_finetuning_brings_rounded_predictions_closer():
    model = inference_graph(predictor_with())
    before = model.get_weights()
    images = np.random.default_rng(3).uniform(size=(96, 8, 8, 1)).astype("float32")
    first, last = finetune_int8(model, images, images, steps=25, seed=0)
    assert 0 < last < first
    moved = [not np.array_equal(a, b) for a, b in zip(before, model.get_weights())]
    assert any(moved)


@pytest.mark.slow
def test_finetuning_takes_layers_and_operations_of_any_network():
    def part(x):  # hard swish, as MobileNets have it: a product with a number
        x = x * layers.ReLU(6.0)(x + 3.0) * (1.0 / 6.0)
        return layers.GroupNormalization(2)(x)

    predictor = own_predictor(part)
    assert check_formats(predictor, ("tflite_int8",), int8_finetune_steps=5) is None
    model = inference_graph(predictor)
    first, last = finetune_int8(model, IMAGES, IMAGES, steps=2, seed=0)
    assert 0 < last <= first


def test_calibration_covers_all_classes_and_black_to_white():
    predictor = predictor_with()
    images = calibration_images(IMAGES, predictor, 8, seed=0)
    assert images.shape == (9, 8, 8, 1) and images.dtype == np.float32
    assert images[-1].min() == 0 and images[-1].max() == 1
    available = np.bincount(predictor(IMAGES).numpy().argmax(-1), minlength=4)
    chosen = np.bincount(predictor(images[:-1]).numpy().argmax(-1), minlength=4)
    rare = available <= 8 / np.count_nonzero(available)
    np.testing.assert_array_equal(chosen[rare], available[rare])
