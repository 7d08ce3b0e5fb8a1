"""Every exported file is loaded again and answers like Keras."""

import collections

import keras
import numpy as np
import pytest

from cdfkd_tf.data.sampling import balanced_choice as balanced
from cdfkd_tf.errors import DistillationWarning, RunError
from cdfkd_tf.export import metadata
from cdfkd_tf.export.calibration import calibration_pixels
from cdfkd_tf.export.checking import Reference, check
from cdfkd_tf.export.exporting import export_checked
from cdfkd_tf.export.finetuning import finetune_int8
from cdfkd_tf.export.formats import FILES
from cdfkd_tf.export.lean import lean_predictor
from cdfkd_tf.export.packing import has_floats, pack
from cdfkd_tf.export.runners import SavedModelRunner, TfliteRunner
from cdfkd_tf.networks.aggregators import AGGREGATORS, build_aggregator, build_predictor
from cdfkd_tf.networks.backbones import BACKBONES
from cdfkd_tf.networks.students import build_student

PIXELS = np.random.default_rng(0).uniform(size=(20, 8, 8, 1)).astype("float32")
INTEGERS = {np.uint8, np.int8, np.int32}
DESCRIPTION = metadata.describe(
    dataset="toy",
    method="cdfkd_mfs",
    student="wrn10_1",
    class_names=["ant", "bee", "cat", "dög"],
    image_shape=(8, 8, 1),
)


def predictor_with(kind, backbone="wrn10_1", headers=3, sharing="multi_level", side=8):
    """A predictor whose statistics and scales are not those of a fresh network."""
    rng = np.random.default_rng(1)
    keras.utils.set_random_seed(0)
    student = build_student(
        backbone, (side, side, 1), 4, headers, width=0.5, sharing=sharing
    )
    aggregator = build_aggregator(kind, student)
    for weight in (*student.weights, *aggregator.weights):
        positive = any(name in weight.path for name in ("variance", "gamma"))
        noise = (
            rng.uniform(0, 1, weight.shape)
            if positive
            else rng.normal(0, 0.05, weight.shape)
        )
        weight.assign(weight + noise)
    return build_predictor(student, aggregator, (0.4,), (0.3,))


def reference_of(predictor, pixels=PIXELS):
    return Reference.of(predictor, [(pixels[:12], None), (pixels[12:], None)])


def export(predictor, directory, formats=tuple(FILES), **more):
    return export_checked(
        predictor,
        formats,
        directory,
        calibration=calibration_pixels(PIXELS, predictor, 20, 0),
        reference=reference_of(predictor),
        description=DESCRIPTION,
        **more,
    )


@pytest.fixture(scope="module")
def attentive():
    return predictor_with("attention")


@pytest.fixture(scope="module")
def exported(attentive, tmp_path_factory):
    """Folder and entries of an export in every format."""
    directory = tmp_path_factory.mktemp("export")
    return directory, export(attentive, directory)


def test_every_format_is_written_and_agrees(exported):
    directory, entries = exported
    assert sorted(path.name for path in directory.iterdir()) == sorted(FILES.values())
    assert [entry["format"] for entry in entries] == list(FILES)
    by_name = {entry["format"]: entry for entry in entries}
    for name in ("saved_model", "tflite_float32"):
        assert by_name[name]["max_abs_difference"] < 1e-4
    assert by_name["tflite_float16"]["max_abs_difference"] < 0.01
    assert by_name["tflite_int8"]["max_abs_difference"] < 0.25
    assert by_name["tflite_int8"]["bytes"] < 0.45 * by_name["tflite_float32"]["bytes"]
    keys = {"bytes", "accuracy", "agreement", "latency_ms", "threads", "operators"}
    for entry in entries:
        assert keys | {"file", "parameters", "multiply_adds"} <= set(entry)
        assert entry["accuracy"] is None  # no label was given
        assert entry["latency_ms"] > 0 and entry["multiply_adds"] > 10_000


def test_int8_computes_in_integers_throughout(exported):
    run = TfliteRunner(exported[0] / FILES["tflite_int8"])
    kinds = {tensor["dtype"] for tensor in run.tensors()}
    assert kinds <= INTEGERS
    (image,) = [t for t in run.tensors() if t["dtype"] == np.uint8 and t["index"] == 0]
    # A byte is a grey value: the whole range of pixels fits, none saturates.
    np.testing.assert_allclose(image["quantization"], (1 / 255, 0), atol=1e-6)
    scales = [len(t["quantization_parameters"]["scales"]) for t in run.tensors()]
    assert max(scales) > 1  # one per output channel of a kernel


def test_int8_of_a_residual_network_has_no_float_either(tmp_path, monkeypatch):
    """Its maps are padded and concatenated, where the converter may give up."""
    predictor = predictor_with("mean", "resnet18", headers=2)
    # More than can be: the export has to say what the agreement is.
    monkeypatch.setattr("cdfkd_tf.export.exporting.LOW_AGREEMENT", 1.01)
    with pytest.warns(DistillationWarning, match="tflite_int8 agrees with Keras on"):
        export(predictor, tmp_path, ("tflite_int8",))
    content = (tmp_path / FILES["tflite_int8"]).read_bytes()
    assert not has_floats(content)
    assert {t["dtype"] for t in TfliteRunner(content).tensors()} <= INTEGERS


def test_all_operations_are_tflites_own_and_few(exported):
    operators = TfliteRunner(exported[0] / FILES["tflite_float32"]).operators()
    counted = collections.Counter(operators)
    assert not any(name.startswith("Flex") or "Custom" in name for name in operators)
    # Folded, or one convolution: no BatchNormalization is left as MUL and ADD ...
    assert "MUL" not in counted and "SUB" not in counted
    assert counted["ADD"] == 4  # ... only three residuals and the centring
    # The batch's size is nowhere asked for.
    assert not {"SHAPE", "PACK", "STRIDED_SLICE", "GATHER"} & set(counted)


@pytest.mark.parametrize("name", ["saved_model", "tflite_float32", "tflite_int8"])
def test_any_batch_size_is_answered(exported, attentive, name):
    path = exported[0] / FILES[name]
    run = SavedModelRunner(path) if name == "saved_model" else TfliteRunner(path)
    together = run(PIXELS[:5])
    apart = np.concatenate([run(PIXELS[i : i + 1]) for i in range(5)])
    np.testing.assert_allclose(together, apart, atol=1e-5)


def test_saved_model_takes_bytes_too(exported, attentive):
    run = SavedModelRunner(exported[0] / FILES["saved_model"])
    grey = np.rint(PIXELS * 255).astype("uint8")
    expected = attentive.predict(grey / np.float32(255), verbose=0)
    np.testing.assert_allclose(run.from_bytes(grey), expected, atol=1e-5)


@pytest.mark.parametrize("name", list(FILES))
def test_files_say_what_they_are(exported, name):
    said = metadata.read(exported[0] / FILES[name])
    assert said["classes"] == ["ant", "bee", "cat", "dög"]
    assert said["format"] == name and said["method"] == "cdfkd_mfs"
    assert said["input"]["range"] == ([0, 255] if name == "tflite_int8" else [0, 1])
    assert said["version"] and "licence" in said


@pytest.mark.parametrize("kind", sorted(AGGREGATORS))
@pytest.mark.parametrize(
    "backbone, headers, sharing",
    [("wrn10_1", 3, "multi_level"), ("resnet18", 2, "split"), ("lenet", 1, "single")],
)
def test_lean_graph_is_the_same_function(kind, backbone, headers, sharing):
    side = 16 if backbone == "lenet" else 8
    predictor = predictor_with(kind, backbone, headers, sharing, side)
    pixels = np.random.default_rng(2).uniform(size=(6, side, side, 1))
    lean = lean_predictor(predictor)
    answers = [np.array(model(pixels.astype("float32"))) for model in (predictor, lean)]
    np.testing.assert_allclose(*answers, atol=2e-5)
    kinds = {type(layer).__name__ for layer in lean.layers}
    assert "BatchNormalization" not in kinds
    assert lean.count_params() <= predictor.count_params()


def test_every_backbone_has_a_lean_graph():
    names = {"lenet", "resnet18", "wrn10_1"}
    assert names <= set(BACKBONES)  # the families tested above


def test_unlearned_attention_ships_as_the_mean():
    predictor = predictor_with("attention")
    scorer = predictor.layers[3].get_layer("scorer")
    scorer.kernel.assign(np.zeros(scorer.kernel.shape))
    lean = lean_predictor(predictor)
    assert "header_weights" not in {layer.name for layer in lean.layers}
    np.testing.assert_allclose(lean(PIXELS), predictor(PIXELS), atol=1e-5)


def test_packing_changes_no_answer(exported):
    content = (exported[0] / FILES["tflite_int8"]).read_bytes()
    again = pack(content)  # packed before: nothing more to gain but what is attached
    assert len(again) <= len(content)
    ours, theirs = TfliteRunner(again), TfliteRunner(content)
    np.testing.assert_array_equal(ours(PIXELS), theirs(PIXELS))


def test_calibration_is_balanced_and_covers_black_to_white(attentive):
    classes = np.array([0] * 50 + [1] * 6 + [3] * 6)
    chosen = classes[balanced(classes, 15, seed=0)]
    assert collections.Counter(chosen.tolist()) == {0: 5, 1: 5, 3: 5}
    assert len(set(balanced(classes, 40, seed=0).tolist())) == 40
    images = calibration_pixels(PIXELS * 3 - 1, attentive, 8, seed=0)
    assert images.shape == (9, 8, 8, 1) and images.dtype == np.float32
    assert images.min() == 0 and images.max() == 1
    assert images[-1].min() == 0 and images[-1].max() == 1


def test_finetuning_brings_rounded_answers_closer(attentive):
    model = lean_predictor(attentive)
    before = model.get_weights()
    pixels = np.random.default_rng(3).uniform(size=(96, 8, 8, 1)).astype("float32")
    first, last = finetune_int8(model, pixels, pixels, steps=50, seed=0)
    assert 0 < last < first
    moved = [not np.array_equal(a, b) for a, b in zip(before, model.get_weights())]
    assert any(moved)


def test_a_file_that_answers_otherwise_is_refused(exported):
    other = reference_of(predictor_with("weights", headers=2))
    with pytest.raises(RunError, match="answers otherwise than the Keras model"):
        check("tflite_float32", exported[0] / FILES["tflite_float32"], other)
    broken = Reference(other.batches, other.answers * np.nan, None)
    with pytest.raises(RunError, match="answers otherwise"):
        check("tflite_int8", exported[0] / FILES["tflite_int8"], broken)
