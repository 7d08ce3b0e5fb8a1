"""Every export format: its file, what it computes and what it says about itself."""

import collections
import ctypes
import re
import shutil
import subprocess
import sys
import zipfile

import keras
import numpy as np
import pytest
from ai_edge_litert import schema_py_generated as schema

from cdfkd_tf.data.specs import plain_spec
from cdfkd_tf.errors import RequestError
from cdfkd_tf.export.format import FORMATS, format_of
from cdfkd_tf.export.micro import (
    FIGURES,
    estimated_arena,
    micro_figures,
)
from cdfkd_tf.export.packing import pack
from cdfkd_tf.export.run import describe
from cdfkd_tf.export.runner import Runner
from cdfkd_tf.export.tflite import TfliteRunner, convert
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
    keys |= {"float_operators", *FIGURES}
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
    takes_bytes = name in ("tflite_int8", "c_array")
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
    again = pack(
        content, {}
    )  # packed before: nothing more to gain but what is attached
    assert len(again) <= len(content)
    packed = TfliteRunner(again)
    np.testing.assert_array_equal(packed(IMAGES), load("tflite_int8")(IMAGES))


def test_shapes_of_a_file_are_those_of_a_batch_of_one(exported, load):
    """A microcontroller takes them as they stand, whatever the batch was."""
    model = schema.ModelT.InitFromPackedBuf(load("tflite_int8").content)
    graph = model.subgraphs[0]
    codes = [code.builtinCode for code in model.operatorCodes]
    reshapes = [
        operation
        for operation in graph.operators
        if codes[operation.opcodeIndex] == schema.BuiltinOperator.RESHAPE
    ]
    for operation in reshapes:
        before, after = (
            graph.tensors[operation.inputs[0]],
            graph.tensors[operation.outputs[0]],
        )
        assert np.prod(before.shape) == np.prod(after.shape)
    assert reshapes and -1 in graph.tensors[graph.inputs[0]].shapeSignature


def test_c_array_is_the_int8_file_with_its_labels_for_a_compiler(
    exported, load, tmp_path
):
    folder = exported[0] / "c_array"
    run, image = load("c_array"), IMAGES[:1]
    np.testing.assert_array_equal(run(image), load("tflite_int8")(image))
    header = (folder / "student_int8.h").read_text()
    arena = int(re.search(r"ARENA_BYTES (\d+)", header)[1])
    assert arena % 16 == 0 and arena > 5_000 and "CONV_2D" in header
    if not (compiler := shutil.which("cc")):
        pytest.skip("no C compiler")
    library = tmp_path / "student.so"
    source = folder / "student_int8.c"
    subprocess.run([compiler, "-shared", "-fPIC", source, "-o", library], check=True)
    built = ctypes.CDLL(str(library))
    length = ctypes.c_uint.in_dll(built, "student_int8_tflite_len").value
    numbers = (ctypes.c_ubyte * length).in_dll(built, "student_int8_tflite")
    labels = (ctypes.c_char_p * len(NAMES)).in_dll(built, "student_int8_labels")
    assert bytes(numbers) == run.content and ctypes.addressof(numbers) % 16 == 0
    assert [label.decode() for label in labels] == NAMES


def test_file_has_the_metadata_that_other_readers_know(exported):
    """As a FlatBuffer: the schema's identifier, the deviation 255 of pixels."""
    content = (exported[0] / "student_int8.tflite").read_bytes()
    model = schema.ModelT.InitFromPackedBuf(content)
    (entry,) = [m for m in model.metadata if m.name == b"TFLITE_METADATA"]
    metadata = bytes(model.buffers[entry.buffer].data)
    assert metadata[4:8] == b"M001" and np.float32(255).tobytes() in metadata
    with zipfile.ZipFile(exported[0] / "student_int8.tflite") as archive:
        stored = archive.getinfo("labels.txt")
        assert archive.read(stored).decode().split() == NAMES
        assert stored.compress_type == zipfile.ZIP_STORED


@pytest.mark.slow
@pytest.mark.parametrize("arithmetic", ["int8", "float32"])
def test_other_readers_classify_by_the_metadata_alone(arithmetic, tmp_path):
    """MediaPipe: names, pixel values, the same probabilities."""
    mediapipe = pytest.importorskip("mediapipe")
    from mediapipe.tasks.python import BaseOptions, vision

    row = FORMATS[f"tflite_{arithmetic}"]
    keras.utils.set_random_seed(0)
    image = keras.Input((8, 8, 3))
    tensor = keras.layers.Conv2D(4, 3, activation="relu")(image)
    tensor = keras.layers.Dense(4)(keras.layers.GlobalAveragePooling2D()(tensor))
    predictor = keras.Model(image, keras.layers.Softmax()(tensor))
    images = np.random.default_rng(0).integers(0, 256, (20, 8, 8, 3)).astype("uint8")
    arguments = {"batches": [(images / np.float32(255), None)]}
    arguments["calibration_pool"] = lambda count, seed: images / np.float32(255)
    arguments["description"] = describe(
        plain_spec("toy", (8, 8, 3), 4), NAMES, method="cdfkd_mfs", student="a"
    )
    export_small(predictor, tmp_path, (row.name,), **arguments)
    expected = dict(
        zip(NAMES, row.load(tmp_path / row.file)(images[:1] / np.float32(255))[0])
    )
    options = vision.ImageClassifierOptions(BaseOptions(str(tmp_path / row.file)))
    with vision.ImageClassifier.create_from_options(options) as classifier:
        picture = mediapipe.Image(mediapipe.ImageFormat.SRGB, images[0])
        (answers,) = classifier.classify(picture).classifications
    assert {a.category_name: a.score for a in answers.categories} == pytest.approx(
        expected, abs=1 / 200
    )


@pytest.mark.slow
def test_int8_runs_in_the_interpreter_of_microcontrollers(load):
    """Where it is installed: as LiteRT does, and in the memory that is written down."""
    pytest.importorskip("tflite_micro")
    run, images = load("tflite_int8"), IMAGES[:4]
    figures = micro_figures(run.content, images, run(images))
    assert figures["micro_unsupported"] == [] and figures["micro_max_difference"] < 0.2
    assert figures["arena_bytes"] < estimated_arena(run.content)
    assert estimated_arena(run.content) < 1.4 * figures["arena_bytes"]
    image = keras.Input((8, 8, 1))
    tensor = keras.layers.Conv2D(2, 3, activation="gelu")(image)
    tensor = keras.layers.Dense(2)(keras.layers.GlobalAveragePooling2D()(tensor))
    content = convert(keras.Model(image, tensor), IMAGES)
    lacks = micro_figures(content, IMAGES[:1], np.zeros((1, 2)))
    assert lacks["micro_unsupported"] == ["GELU"] and lacks["arena_bytes"] is None


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
