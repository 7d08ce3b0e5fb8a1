"""What an export leaves in its folder: whole, checked files, and what stood there."""

import dataclasses
import pathlib
import signal
import subprocess
import sys
import textwrap
import weakref

import keras
import numpy as np
import pytest
from keras import layers

from cdfkd_tf.errors import DistillationWarning, RequestError, RunError
from cdfkd_tf.export.format import FORMATS
from cdfkd_tf.export.run import check_formats
from cdfkd_tf.export.runner import in_parts
from cdfkd_tf.export.tflite import TfliteRunner
from cdfkd_tf.export.verify import verify
from tests.export.small import IMAGES, export_small, own_predictor, predictor_with
from tests.rows import rows

SLOW = pytest.mark.slow
FLOAT32 = FORMATS["tflite_float32"]


@pytest.fixture(scope="module")
def predictor():
    return predictor_with("mean", "lenet")


@pytest.fixture(scope="module")
def file(predictor, tmp_path_factory):
    folder = tmp_path_factory.mktemp("export")
    export_small(predictor, folder, ("tflite_float32",))
    return folder / FLOAT32.file


def content_of(folder):
    files = [path for path in folder.rglob("*") if path.is_file()]
    return {str(path.relative_to(folder)): path.read_bytes() for path in files}


@rows("shape", [(20,), (20, 1)])
def test_export_measures_accuracy_on_labels(predictor, tmp_path, shape):
    labels = predictor.predict(IMAGES, verbose=0).argmax(-1)
    labels[:5] = (labels[:5] + 1) % 4
    (entry,) = export_small(
        predictor, tmp_path, ("tflite_float32",), labels.reshape(shape)
    )
    assert entry["accuracy"] == 0.75 and entry["agreement"] == 1


def test_second_export_replaces_its_files_and_touches_no_other(predictor, tmp_path):
    export_small(predictor, tmp_path, ("saved_model", "tflite_float32"))
    (tmp_path / "notes.txt").write_text("mine")
    (tmp_path / "saved_model" / "mine.txt").write_text("mine")
    first = content_of(tmp_path)
    other = predictor_with("mean", "lenet", headers=2)
    export_small(other, tmp_path, ("saved_model",))
    second = content_of(tmp_path)
    assert {path.name for path in tmp_path.iterdir()} == {
        "saved_model",
        FLOAT32.file,
        "notes.txt",
    }
    assert second[FLOAT32.file] == first[FLOAT32.file]
    assert second["saved_model/mine.txt"] == b"mine"
    run = FORMATS["saved_model"].load(tmp_path / "saved_model")
    np.testing.assert_allclose(run(IMAGES), other(IMAGES), atol=1e-5)


@rows("place", ["saved_model", FLOAT32.file])
def test_export_refuses_to_replace_a_folder_of_somebody_else(
    predictor, tmp_path, place
):
    (tmp_path / place / "variables").mkdir(parents=True)
    (tmp_path / place / "saved_model.pb").write_bytes(b"mine")
    before = content_of(tmp_path)
    with pytest.raises(RequestError, match=r"would replace .*a folder that none has"):
        export_small(
            predictor, tmp_path, ("tflite_float16", "saved_model", "tflite_float32")
        )
    assert content_of(tmp_path) == before and len(list(tmp_path.iterdir())) == 1


def test_failed_second_export_leaves_the_first(predictor, tmp_path, monkeypatch):
    def write_garbage(model, calibration, description, path):
        path.write_bytes(b"no network at all")

    broken = type(FLOAT32)("broken", "b.tflite", write_garbage, TfliteRunner, 1.0)
    monkeypatch.setitem(FORMATS, "broken", broken)
    export_small(predictor, tmp_path, ("saved_model", "tflite_float32"))
    before = content_of(tmp_path)
    other = predictor_with("mean", "lenet", headers=2)
    with pytest.raises(RunError, match="broken file cannot be run"):
        export_small(other, tmp_path, ("saved_model", "tflite_float32", "broken"))
    assert content_of(tmp_path) == before


def test_export_keeps_few_batches_in_memory(predictor, tmp_path):
    alive, most = weakref.WeakSet(), []

    class Array(np.ndarray):
        __hash__ = object.__hash__

    class Batches:
        def __iter__(self):
            for start in range(0, 20, 2):
                images = IMAGES[start : start + 2].copy().view(Array)
                alive.add(images)
                most.append(len(alive))
                yield images, None

    (entry,) = export_small(predictor, tmp_path, ("tflite_float32",), batches=Batches())
    assert entry["agreement"] == 1 and len(most) == 10
    assert max(most) <= 3


@rows(
    "formats, options, words",
    [
        (
            ("tflite",),
            {},
            "Unknown export format 'tflite'. Known: c_array, saved_model",
        ),
        (("tflite_float32",), {"batches": []}, "no images to compare"),
    ],
)
def test_wrong_export_is_refused(predictor, tmp_path, formats, options, words):
    with pytest.raises(RequestError, match=words):
        export_small(predictor, tmp_path, formats, **options)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.slow
def test_parts_of_large_images_are_small():
    assert [len(part) for part in in_parts(np.zeros((70, 224, 224, 1)))] == [20] * 3 + [
        10
    ]
    assert [len(part) for part in in_parts(np.zeros((300, 8, 8, 1)))] == [256, 44]


class Unknown(layers.Layer):
    """Computes what no device format has."""

    def call(self, inputs):
        import tensorflow as tf

        return tf.math.erfinv(tf.clip_by_value(inputs, -0.5, 0.5))


@rows("part", [Unknown(name="odd"), keras.ops.erfinv])
@rows("names", ["tflite_float16, tflite_int8", "onnx"])
def test_check_formats_names_formats_layer_and_operation(names, part):
    formats = ("saved_model", *names.split(", "))
    with pytest.raises(RequestError) as refused:
        check_formats(own_predictor(part), formats)
    text = str(refused.value)
    layer = "odd (Unknown)" if part is not keras.ops.erfinv else "(Erfinv)"
    assert f"exported as {names}: " in text and f"{layer}. Leave {names} out" in text
    assert "TFLite has no operation Erfinv." in text or "for Erfinv" in text


@pytest.mark.slow
def test_check_formats_refuses_a_layer_that_cannot_be_built_again():
    class Settings(layers.Layer):
        def __init__(self, factor):
            super().__init__()
            self.factor = factor

        def call(self, inputs):
            return inputs * self.factor

    with pytest.raises(RequestError, match=r"student cannot be exported: .*Settings"):
        check_formats(own_predictor(Settings(2)), ("tflite_float32",))


@pytest.mark.slow
def test_int8_computes_with_floats_only_what_has_no_integers(tmp_path):
    predictor = own_predictor(layers.Activation("elu"))
    with pytest.warns(
        DistillationWarning, match="tflite_int8 computes ELU with floats"
    ):
        assert check_formats(predictor, ("tflite_int8",)) is None
    with pytest.warns(
        DistillationWarning, match="tflite_int8 computes ELU with floats"
    ):
        (entry,) = export_small(predictor, tmp_path, ("tflite_int8",))
    assert entry["float_operators"] == ["ELU"] and entry["max_abs_difference"] < 0.05


@pytest.mark.slow
def test_export_of_a_network_in_sixteen_bits_is_compared_with_as_much_slack(tmp_path):
    predictor = own_predictor(layers.BatchNormalization(), dtype="mixed_bfloat16")
    (entry,) = export_small(predictor, tmp_path, ("tflite_float32",))
    assert 1e-5 < entry["max_abs_difference"] < 0.05


def measure(row, file, expected):
    """`verify` of one file against outputs that are given."""
    (figures,) = verify([row], file.parent, lambda images: expected, [(IMAGES, None)])
    return figures


def test_verify_refuses_what_computes_something_else(file):
    other = predictor_with("weights", "lenet", headers=2).predict(IMAGES, verbose=0)
    with pytest.raises(RunError, match="something else than the Keras model"):
        measure(FLOAT32, file, other)
    dynamic = dataclasses.replace(FORMATS["tflite_dynamic"], file=file.name)
    for row in (FLOAT32, dynamic):
        with pytest.raises(RunError, match="something else than the Keras model"):
            measure(row, file, other * np.nan)
    swapped = np.roll(np.eye(4)[TfliteRunner(file)(IMAGES).argmax(-1)], 1, axis=-1)
    with pytest.raises(RunError, match="of the probability is on other classes"):
        measure(dynamic, file, swapped)


def test_verify_warns_of_disagreement_with_a_remedy(file, recwarn):
    coarse = dataclasses.replace(FORMATS["tflite_int8"], file=file.name)
    expected = TfliteRunner(file)(IMAGES)
    moved = expected.copy()
    moved[:1] = np.roll(moved[:1], 1, axis=-1)  # of 20: 95 %
    exact = dataclasses.replace(coarse, calibrated=False)
    assert measure(exact, file, expected)["agreement"] == 1 and not recwarn
    with pytest.warns(DistillationWarning, match="tflite_int8 agrees .* 95.0%.*steps"):
        assert measure(exact, file, moved)["agreement"] == 0.95
    with pytest.warns(DistillationWarning, match="computes .*CONV_2D, .* with floats"):
        measure(coarse, file, expected)


_CHILD = """
    import os, resource, signal, sys, pathlib
    from tests.export.small import export_small, predictor_with

    directory, how = pathlib.Path(sys.argv[1]), sys.argv[2]
    write = pathlib.Path.write_bytes

    def write_half(path, content):
        write(path, content[: len(content) // 2])
        os.kill(os.getpid(), signal.SIGKILL)

    def write_to_a_full_disk(path, content):
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, 20_000))
        write(path, content)

    full = how == "full"
    pathlib.Path.write_bytes = write_to_a_full_disk if full else write_half
    export_small(predictor_with("mean", "lenet"), directory, ("tflite_float32",))
"""


@pytest.mark.parametrize("how", ["killed", pytest.param("full", marks=[SLOW])])
def test_unfinished_export_gives_no_file_its_name(how, predictor, tmp_path):
    earlier = tmp_path / FLOAT32.file
    earlier.write_bytes(b"of an earlier export")
    child = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(_CHILD), str(tmp_path), how],
        cwd=pathlib.Path(__file__).parents[2],
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert earlier.read_bytes() == b"of an earlier export"
    if how == "full":
        assert "Cannot export tflite_float32: OSError" in child.stderr
        assert list(tmp_path.iterdir()) == [earlier]
        return
    assert child.returncode == -signal.SIGKILL, child.stderr
    assert any(path.name.startswith(".unfinished-") for path in tmp_path.iterdir())
    export_small(predictor, tmp_path, ("tflite_float32",))  # clears what was left
    assert list(tmp_path.iterdir()) == [earlier]
    assert earlier.read_bytes() != b"of an earlier export"
