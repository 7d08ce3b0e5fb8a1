"""Networks of PyTorch become Keras models; files that would run something do not."""

import json
import zipfile

import keras
import numpy as np
import pytest

import cdfkd_tf
from cdfkd_tf.errors import RequestError
from cdfkd_tf.imported.torch_programs import from_torch, without_triton
from cdfkd_tf.networks.loading import load_classifier
from experiments.own_teachers import zoo
from tests.rows import rows
from tests.toys import classifier

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


class Answers(torch.nn.Module):
    """Whatever a function makes of the images."""

    def __init__(self, function):
        super().__init__()
        self.answer = function

    def forward(self, images):
        return self.answer(images)


@rows(
    "function, words",
    [
        (lambda x: x[:, :4].mean((2, 3)) @ torch.ones(3, 2), "images, channels, heig"),
        (lambda x: {"logits": x.mean((2, 3))}, "answers a dict, not one tensor"),
        (lambda x: torch.round(x).mean((2, 3)), "operator Round"),
        (lambda x: x.mean((2, 3)) if x.sum() > 0 else x.amax((2, 3)), "data-dependent"),
    ],
)
def test_module_that_cannot_be_opened_is_refused_in_one_sentence(
    function, words, capfd
):
    example = np.zeros((2, 16, 16, 3) if "channels" in words else (2, 3, 16, 16))
    with pytest.raises(RequestError, match=words):
        cdfkd_tf.distill([(Answers(function), example)], verbose=0)
    assert capfd.readouterr() == ("", "")


def test_module_is_distilled_with_a_file(module, tmp_path):
    classifier(shape=(16, 16, 3), classes=4).save(tmp_path / "b.keras")
    teachers = [(module, torch.rand(2, 3, 16, 16)), tmp_path / "b.keras"]
    small = {"epochs": 1, "steps_per_epoch": 2, "batch_size": 4, "bank_size": 16}
    result = cdfkd_tf.distill(teachers, teacher_input="0..1", verbose=0, **small)
    assert result.predictor(IMAGES).shape == (5, 4)


@pytest.mark.parametrize("count", [1, None])
def test_program_for_one_or_any_count_of_images_is_opened(count, module, tmp_path):
    open_batch = None if count else ({0: torch.export.Dim("images")},)
    image = (torch.rand(count or 2, 3, 16, 16),)
    with without_triton():
        program = torch.export.export(module.eval(), image, dynamic_shapes=open_batch)
        torch.export.save(program, tmp_path / "a.pt2")
    check(load_classifier(tmp_path / "a.pt2"), module)


def test_program_file_is_refused_where_it_would_run_more(module, tmp_path):
    good, bad = tmp_path / "good.pt2", tmp_path / "bad.pt2"
    with without_triton():
        program = torch.export.export(module.eval(), (torch.rand(1, 3, 16, 16),))
        torch.export.save(program, good)
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


@pytest.mark.parametrize(
    "name", ["lenet", "mobilenet_v3_small", "shufflenet_v2_x1_0", "ghostnet_100"]
)
def test_network_of_the_zoo_is_opened_with_its_batch_norms(name, tmp_path):
    try:
        difference, largest, kept, norms, _ = zoo.measured(name, tmp_path / "a.onnx")
    except ImportError as error:
        pytest.skip(str(error))
    assert difference < 1e-5 * largest and kept == norms
