"""Published checkpoints become teachers that answer what was recorded."""

import keras
import numpy as np
import pytest
from safetensors.numpy import save_file

from cdfkd_tf.tools import import_torch, prepare_data
from tests.parity.filling import RECORDED, draw, fill, load

NAME = "wrn16_1"


@pytest.fixture
def tensors():
    return fill(NAME, RECORDED[NAME]["tensors"])


def convert(checkpoint, output, **changes):
    options = {"network": NAME, "dataset": "cifar100", **changes}
    options |= {"checkpoint": checkpoint, "output": output}
    given = {name: value for name, value in options.items() if value is not None}
    return import_torch.main([f"--{name}={value}" for name, value in given.items()])


def assert_recorded(file):
    model = keras.saving.load_model(file)
    logits = model(draw(NAME, "x", RECORDED[NAME]["input"]), training=False)
    recorded = load(f"forward_{NAME}")["logits_eval"]
    limit = 2e-4 * np.abs(recorded).max()
    np.testing.assert_allclose(logits, recorded, rtol=0, atol=limit)


@pytest.mark.slow
def test_npz_gives_the_recorded_logits(tensors, tmp_path):
    np.savez(tmp_path / "a.npz", **tensors)
    assert convert(tmp_path / "a.npz", tmp_path / "a.keras") == 0
    assert_recorded(tmp_path / "a.keras")


def test_safetensors_give_the_recorded_logits(tensors, tmp_path):
    contiguous = {name: np.ascontiguousarray(value) for name, value in tensors.items()}
    save_file(contiguous, tmp_path / "a.safetensors")
    assert convert(tmp_path / "a.safetensors", tmp_path / "a.keras") == 0
    assert_recorded(tmp_path / "a.keras")


def test_images_of_ones_own_have_as_many_classes_as_the_weights(
    tensors, tmp_path, capsys
):
    np.savez(tmp_path / "a.npz", **tensors)
    size = {"dataset": None, "image_shape": "32,32,3"}
    assert convert(tmp_path / "a.npz", tmp_path / "a.keras", **size) == 0
    assert_recorded(tmp_path / "a.keras")
    assert "100 classes. Use --teachers. It takes pixels as" in capsys.readouterr().out
    assert keras.saving.load_model(tmp_path / "a.keras").input.name == "image"


def assert_refused(capsys, words):
    error = capsys.readouterr().err
    assert error.startswith("error: ") and error.count("\n") == 1
    assert words in error, error


@pytest.mark.slow
def test_unreadable_checkpoints_are_refused(tmp_path, capsys):
    for file, content, words in [
        ("a.npz", None, "There is no checkpoint"),
        ("a.npz", b"broken", "Cannot read"),
        ("a.bin", b"", "Cannot read"),
    ]:
        if content is not None:
            (tmp_path / file).write_bytes(content)
        assert convert(tmp_path / file, tmp_path / "a.keras") == 2
        assert_refused(capsys, words)
        assert not (tmp_path / "a.keras").exists()


@pytest.mark.slow
def test_pickled_code_in_an_npz_is_not_run(tmp_path, capsys):
    np.savez(tmp_path / "a.npz", fc=np.array([object()], dtype=object))
    assert convert(tmp_path / "a.npz", tmp_path / "a.keras") == 2
    assert_refused(capsys, "Cannot read")


@pytest.mark.slow
def test_wrong_options_are_refused(tensors, tmp_path, capsys):
    np.savez(tmp_path / "a.npz", **tensors)
    for changes, words in [
        ({"output": "a.h5"}, "--output must end in .keras"),
        ({"dataset": "numbers"}, "Unknown data set 'numbers'"),
        ({"network": "vgg"}, "Unknown network 'vgg'. Known: compact"),
        ({"dataset": None, "image_shape": "32,32"}, "height,width,channels, such as"),
    ]:
        output = changes.pop("output", "a.keras")
        assert convert(tmp_path / "a.npz", tmp_path / output, **changes) == 2
        assert_refused(capsys, words)


def test_another_architecture_is_refused(tensors, tmp_path, capsys):
    np.savez(tmp_path / "a.npz", **tensors)
    code = convert(tmp_path / "a.npz", tmp_path / "a.keras", network="resnet18")
    assert code == 2
    assert_refused(capsys, "Is it the same architecture")


def test_data_is_prepared_by_one_command(tmp_path, capsys):
    code = prepare_data.main(["--dataset=digits", f"--data_dir={tmp_path}"])
    assert code == 0
    assert "1,437 train, 360 test images" in capsys.readouterr().out
    assert prepare_data.main(["--dataset=numbers"]) == 2
    assert_refused(capsys, "Unknown data set 'numbers'")
