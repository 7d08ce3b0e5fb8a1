"""Every export format: its file, what it computes and what it says about itself."""

import collections
import subprocess
import sys

import keras
import numpy as np
import pytest

from cdfkd_tf.errors import RequestError
from cdfkd_tf.export.format import FORMATS, format_of
from cdfkd_tf.export.packing import pack
from cdfkd_tf.export.runner import Runner
from cdfkd_tf.export.tflite import TfliteRunner
from tests.export.small import IMAGES, NAMES, export_small, predictor_with
from tests.rows import rows

ALL = list(FORMATS)


@pytest.fixture(scope="module")
def predictor():
    return predictor_with("attention", headers=2)


@pytest.fixture(scope="module")
def exported(predictor, tmp_path_factory):
    """Folder and entries of an export in every format."""
    directory = tmp_path_factory.mktemp("export")
    return directory, export_small(predictor, directory, ALL)


@pytest.fixture
def load(exported):
    return lambda name: FORMATS[name].load(exported[0] / FORMATS[name].file)


def test_formats_are_known_without_tensorflow():
    code = (
        "import sys; from cdfkd_tf.export.format import FORMATS; assert FORMATS; "
        "assert not {'keras', 'tensorflow'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)


def test_export_writes_every_format_and_measures_it(exported):
    directory, entries = exported
    files = sorted(row.file for row in FORMATS.values())
    assert sorted(path.name for path in directory.iterdir()) == files
    assert [entry["format"] for entry in entries] == ALL
    by_name = {entry["format"]: entry for entry in entries}
    for name in ("saved_model", "onnx", "tflite_float32"):
        assert by_name[name]["max_abs_difference"] < 1e-4
    assert by_name["tflite_float16"]["max_abs_difference"] < 0.01
    assert by_name["tflite_int8"]["max_abs_difference"] < 0.25
    assert by_name["tflite_int8"]["bytes"] < 0.5 * by_name["tflite_float32"]["bytes"]
    keys = {"file", "bytes", "accuracy", "agreement", "max_abs_difference", "threads"}
    keys |= {"format", "latency_ms", "operators", "parameters", "multiply_adds"}
    keys |= {"float_operators"}
    for entry in entries:
        assert set(entry) == keys
        assert entry["accuracy"] is None  # no label was given
        assert entry["latency_ms"] > 0 and entry["multiply_adds"] > 10_000
        assert format_of(directory / FORMATS[entry["format"]].file).load


@rows("name", ALL)
def test_runner_takes_any_batch_size(load, name):
    run = load(name)
    together = run(IMAGES[:5])
    apart = np.concatenate([run(IMAGES[i : i + 1]) for i in range(5)])
    np.testing.assert_allclose(together, apart, atol=1e-5)
    assert together.shape == (5, 4) and run.image_shape == (8, 8, 1)


@rows("name", ALL)
def test_runner_reads_what_the_file_says_about_itself(load, name):
    description = load(name).description
    assert description["classes"] == NAMES
    assert description["format"] == name and description["method"] == "cdfkd_mfs"
    takes_bytes = name == "tflite_int8"
    assert description["input"]["range"] == ([0, 255] if takes_bytes else [0, 1])
    assert description["input"]["type"] == ("uint8" if takes_bytes else "float32")
    assert description["version"] and "licence" in description


def test_saved_model_takes_bytes_too(exported, predictor):
    import tensorflow as tf

    loaded = tf.saved_model.load(str(exported[0] / "saved_model"))
    levels = np.rint(IMAGES * 255).astype("uint8")
    output = loaded.signatures["serve_uint8"](image=tf.constant(levels))
    expected = predictor.predict(levels / np.float32(255), verbose=0)
    np.testing.assert_allclose(output["probabilities"], expected, atol=1e-5)


def test_onnx_file_names_its_input_output_and_batch(exported):
    import onnxruntime

    session = onnxruntime.InferenceSession(exported[0] / "student.onnx")
    (image,), (output,) = session.get_inputs(), session.get_outputs()
    assert (image.name, image.type) == ("image", "tensor(float)")
    assert image.shape == ["batch", 8, 8, 1]
    assert (output.name, output.shape) == ("probabilities", ["batch", 4])


def test_int8_computes_in_integers_throughout(load):
    run = load("tflite_int8")
    tensors = run.interpreter.get_tensor_details()
    assert run.float_operators == []
    assert {tensor["dtype"] for tensor in tensors} <= {
        np.uint8,
        np.int8,
        np.int32,
    }
    (image,) = [t for t in tensors if t["dtype"] == np.uint8 and t["index"] == 0]
    # A byte is a grey value: the whole range of pixels fits, none saturates.
    np.testing.assert_allclose(image["quantization"], (1 / 255, 0), atol=1e-6)
    scales = [len(t["quantization_parameters"]["scales"]) for t in tensors]
    assert max(scales) > 1  # one per output channel of a kernel
    assert "CONV_2D" in load("tflite_dynamic").float_operators


@pytest.mark.slow
def test_int8_of_a_residual_network_has_no_float_either(tmp_path):
    """Its maps are padded and concatenated, where the converter may give up."""
    predictor = predictor_with("mean", "resnet18", headers=2, width=0.1)
    export_small(predictor, tmp_path, ("tflite_int8",))
    run = TfliteRunner(tmp_path / FORMATS["tflite_int8"].file)
    assert run.float_operators == []


@pytest.mark.slow
def test_tflite_operations_are_its_own_and_few(load):
    counted = collections.Counter(load("tflite_float32").operators)
    assert not any(name.startswith("Flex") or "Custom" in name for name in counted)
    # No BatchNormalization is left as a product and a sum: the normalisation's alone.
    assert counted["MUL"] == 1 and "SUB" not in counted
    assert counted["ADD"] == 4  # and three residuals
    # The size of the batch is not looked up.
    assert not {"SHAPE", "PACK", "STRIDED_SLICE", "GATHER"} & set(counted)


def test_pack_changes_no_output(exported, load):
    content = (exported[0] / FORMATS["tflite_int8"].file).read_bytes()
    again = pack(content)  # packed before: nothing more to gain but what is attached
    assert len(again) <= len(content)
    packed = TfliteRunner(again)
    np.testing.assert_array_equal(packed(IMAGES), load("tflite_int8")(IMAGES))


def test_format_without_its_packages_is_refused_before_anything_is_written(
    predictor, tmp_path, monkeypatch
):
    monkeypatch.setitem(sys.modules, "tf2onnx", None)  # as if not installed
    with pytest.raises(RequestError, match=r"tf2onnx: pip install 'cdfkd_tf\[onnx\]'"):
        export_small(predictor, tmp_path / "new", ("tflite_float32", "onnx"))
    assert not (tmp_path / "new").exists()


class KerasRunner(Runner):
    def __init__(self, path):
        self._model = keras.saving.load_model(path)
        self.image_shape, self.description = self._model.input_shape[1:], {}

    def __call__(self, images):
        return self._model.predict_on_batch(images)


@pytest.mark.slow
def test_a_row_is_all_that_a_new_format_takes(predictor, tmp_path, monkeypatch):
    row = type(FORMATS["onnx"])(
        "keras",
        "student.keras",
        write=lambda model, calibration, description, path: predictor.save(path),
        load=KerasRunner,
        tolerance=1e-6,
    )
    monkeypatch.setitem(FORMATS, "keras", row)
    (entry,) = export_small(predictor, tmp_path, ("keras",))
    assert entry["agreement"] == 1 and entry["threads"] == 1
    assert format_of(tmp_path / "student.keras") is row
