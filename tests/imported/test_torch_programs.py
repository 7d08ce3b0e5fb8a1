"""Networks of PyTorch become Keras models; files that would run something do not."""

import json
import zipfile

import keras
import numpy as np
import pytest

from cdfkd_tf.errors import RequestError
from cdfkd_tf.imported.torch_programs import from_torch, without_triton
from cdfkd_tf.networks.loading import load_classifier

torch = pytest.importorskip("torch")
pytest.importorskip("onnxscript")
pytest.importorskip("onnxruntime")
pytestmark = pytest.mark.slow
IMAGES = np.random.default_rng(0).random((5, 16, 16, 3), "float32")


@pytest.fixture(scope="module")
def module():
    """A small network in training mode, its statistics those of noise."""
    nn = torch.nn
    torch.manual_seed(0)
    layers = [nn.Conv2d(3, 8, 3, 2, 1, bias=False), nn.BatchNorm2d(8), nn.ReLU6()]
    layers += [nn.Conv2d(8, 8, 3, 1, 1, groups=8), nn.BatchNorm2d(8), nn.SiLU()]
    layers += [nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 4)]
    module = nn.Sequential(*layers)
    for _ in range(5):
        module(torch.randn(8, 3, 16, 16))
    return module


def answers(module):
    with torch.no_grad():
        rows = module.eval()(torch.tensor(IMAGES).movedim(-1, 1)).numpy()
    module.train()
    return rows


def check(model, module):
    np.testing.assert_allclose(model(IMAGES), answers(module), rtol=1e-4, atol=1e-5)
    names = [type(layer).__name__ for layer in model.layers]
    assert names.count("BatchNormalization") == 2


def test_module_becomes_a_keras_model_and_stays_as_it_was(module):
    model = from_torch(module, torch.rand(2, 3, 16, 16))
    assert isinstance(model, keras.Model) and module.training
    check(model, module)


def test_program_file_is_opened_and_refused_where_it_would_run_more(module, tmp_path):
    good, bad = tmp_path / "good.pt2", tmp_path / "bad.pt2"
    with without_triton():
        program = torch.export.export(module.eval(), (torch.rand(1, 3, 16, 16),))
        torch.export.save(program, good)
    check(load_classifier(good), module)
    with zipfile.ZipFile(good) as old, zipfile.ZipFile(bad, "w") as new:
        for name in old.namelist():
            content = old.read(name)
            if name.endswith("models/model.json"):
                entry = json.loads(content)
                nodes = entry["graph_module"]["graph"]["nodes"]
                nodes[0]["target"] = "torch.hub.load"
                content = json.dumps(entry)
            new.writestr(name, content)
    with pytest.raises(RequestError, match=r"the call torch\.hub\.load|torch\.hub"):
        load_classifier(bad)
