"""The importer refuses what does not fit, by name."""

import numpy as np
import pytest

from cdfkd_tf.errors import RequestError
from cdfkd_tf.networks.classifiers import build_classifier
from cdfkd_tf.networks.pytorch_weights import load_pytorch_tensors
from tests.parity.filling import RECORDED, fill


@pytest.fixture
def tensors():
    return fill("wrn16_1", RECORDED["wrn16_1"]["tensors"])


@pytest.mark.slow
def test_batch_counters_are_ignored(tensors):
    tensors["bn1.num_batches_tracked"] = np.array(3)
    model = build_classifier("wrn16_1", (32, 32, 3), 100)
    load_pytorch_tensors(model, tensors)
    kernel = model.get_layer("logits").kernel
    np.testing.assert_array_equal(kernel, tensors["fc.weight"].T)


def test_a_missing_tensor_is_named(tensors):
    del tensors["block2.layer.0.conv1.weight"]
    with pytest.raises(RequestError, match=r"1 weights .* stage2_block0_conv1/kernel"):
        load_pytorch_tensors(build_classifier("wrn16_1", (32, 32, 3), 100), tensors)


@pytest.mark.slow
def test_a_stray_tensor_is_named(tensors):
    tensors["block9.layer.0.conv1.weight"] = np.zeros((1, 1, 3, 3))
    with pytest.raises(RequestError, match=r"block9\.layer\.0\.conv1\.weight fits no"):
        load_pytorch_tensors(build_classifier("wrn16_1", (32, 32, 3), 100), tensors)


def test_a_wrong_shape_is_explained(tensors):
    with pytest.raises(
        RequestError, match=r"fc\.weight should become shape \(64, 10\)"
    ):
        load_pytorch_tensors(build_classifier("wrn16_1", (32, 32, 3), 10), tensors)
    tensors["conv1.weight"] = tensors["conv1.weight"][0, 0]
    with pytest.raises(RequestError, match=r"conv1\.weight should .* it has \(3, 3\)"):
        load_pytorch_tensors(build_classifier("wrn16_1", (32, 32, 3), 100), tensors)
