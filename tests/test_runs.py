"""Whole runs at toy size, through the command line."""

import json
import signal

import keras
import numpy as np
import pytest

from cdfkd_tf.data.images import RealImages
from cdfkd_tf.data.specs import spec_of
from tests.conftest import TOY, run_main

WEIGHTS = 6_338  # of a teacher, by arithmetic


def toy(workdir, data_dir, *more):
    return run_main(
        "--dataset=digits",
        f"--workdir={workdir}",
        f"--data_dir={data_dir}",
        *TOY,
        *more,
    )


@pytest.fixture(scope="module")
def finished(tmp_path_factory, data_dir):
    """A workdir that holds a whole pipeline."""
    workdir = tmp_path_factory.mktemp("run")
    more = ("--aggregator=attention", "--real_samples=20", "--report")
    assert toy(workdir, data_dir, *more) == 0
    return workdir


def student_of(workdir):
    return keras.saving.load_model(workdir / "student.keras").get_weights()


def assert_same(ours, theirs, **tolerance):
    for a, b in zip(ours, theirs, strict=True):
        np.testing.assert_allclose(a, b, **tolerance)


def test_pipeline_leaves_the_promised_files(finished):
    for name in (
        "config.json",
        "run.flags",
        "teachers/teacher_0.keras",
        "teachers/teacher_1.keras",
        "checkpoints/ckpt-4.index",
        "student.keras",
        "generator.keras",
        "predictor.keras",
        "export/saved_model/saved_model.pb",
        "export/student_float32.tflite",
        "export/student_int8.tflite",
        "samples/epoch_0002.png",
        "results.json",
        "observations.json",
        "report.html",
    ):
        assert (finished / name).exists(), name
    assert any((finished / "logs").iterdir())


def test_results_have_the_promised_form(finished):
    results = json.loads((finished / "results.json").read_text())
    assert results["format"] == 1
    assert (results["dataset"], results["method"], results["seed"]) == (
        "digits",
        "cdfkd_mfs",
        0,
    )
    assert [entry["parameters"] for entry in results["teachers"]] == [WEIGHTS] * 2
    assert results["teacher_ensemble"]["parameters"] == 2 * WEIGHTS
    assert len(results["student"]["header_accuracy"]) == 2
    assert results["aggregator"]["kind"] == "attention"
    assert results["aggregator"]["real_samples"] == 20
    shares = [
        *(entry["accuracy"] for entry in results["teachers"]),
        results["teacher_ensemble"]["accuracy"],
        results["student"]["accuracy"],
        results["student"]["agreement"],
        results["aggregator"]["accuracy"],
        results["aggregator"]["mean_accuracy"],
    ]
    assert all(0 <= share <= 1 for share in shares)
    formats = [entry["format"] for entry in results["exports"]]
    assert formats == ["saved_model", "tflite_float32", "tflite_int8"]
    for entry in results["exports"]:
        assert entry["bytes"] > 10_000 and entry["latency_ms"] > 0
        assert entry["multiply_adds"] > 10_000 and entry["parameters"] > 1_000
        assert 0 <= entry["accuracy"] <= 1 and 0 <= entry["agreement"] <= 1
    for entry in results["teacher_costs"]:
        assert entry["multiply_adds"] > 100_000
        assert entry["bytes"] > 4 * WEIGHTS and entry["latency_ms"] > 0
    assert set(results["seconds"]) >= {"train_teachers", "distill", "export"}
    assert set(results["versions"]) == {"cdfkd_tf", "tensorflow", "keras"}


def test_predictor_is_what_was_measured(finished, data_dir):
    predictor = keras.saving.load_model(finished / "predictor.keras")
    images = RealImages(spec_of("digits"), str(data_dir))
    pixels, labels = map(np.concatenate, zip(*images.evaluation_pixels()))
    accuracy = np.mean(predictor.predict(pixels, verbose=0).argmax(-1) == labels)
    results = json.loads((finished / "results.json").read_text())
    np.testing.assert_allclose(accuracy, results["aggregator"]["accuracy"])


def test_a_finished_run_is_not_repeated(finished, data_dir, capsys, monkeypatch):
    monkeypatch.setattr("cdfkd_tf.pipeline._do", None)  # calling it would fail
    again = ("--aggregator=attention", "--real_samples=20")
    assert toy(finished, data_dir, *again) == 0
    printed = capsys.readouterr().out
    assert "Nothing to do" in printed and "student, mean of headers" in printed


def test_another_aggregator_repeats_only_what_depends_on_it(finished, data_dir, capsys):
    before = student_of(finished)
    assert toy(finished, data_dir, "--export_formats=") == 0
    printed = capsys.readouterr().out
    assert "-- fit aggregator" in printed and "-- distill" not in printed
    assert_same(student_of(finished), before)
    results = json.loads((finished / "results.json").read_text())
    assert results["aggregator"]["kind"] == "mean" and results["exports"] == []


def test_a_costly_step_is_not_mixed_with_other_options(finished, data_dir, capsys):
    assert toy(finished, data_dir, "--student_rounds=3") == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ") and error.count("\n") == 1
    assert "--student_rounds=2" in error and "--student_rounds=3" in error


def test_written_flags_repeat_the_run(finished, tmp_path, capsys):
    code = run_main(f"--flagfile={finished / 'run.flags'}", "--action=evaluate")
    assert code == 0 and "student" in capsys.readouterr().out


def test_a_request_that_failed_before_any_work_can_be_mended(
    finished, tmp_path, capsys, eagerly
):
    teachers = ",".join(str(finished / f"teachers/teacher_{i}.keras") for i in (0, 1))
    given = (f"--teachers={teachers}", "--evaluation_split=none", "--export_formats=")
    given += ("--student_width=0.5",)  # wider than its teachers
    wrong = toy(tmp_path, "/nowhere", *given, "--student_feature_weight=0.2")
    assert wrong == 2
    assert "Use --student_feature_weight=0" in capsys.readouterr().err
    assert toy(tmp_path, "/nowhere", *given) == 0


def refuse(*args, **kwargs):
    raise AssertionError("a data set was read")


def test_distilling_reads_no_data_set(
    finished, data_dir, tmp_path, monkeypatch, eagerly
):
    """And what is learned does not depend on whether accuracy is watched."""
    teachers = ",".join(str(finished / f"teachers/teacher_{i}.keras") for i in (0, 1))
    shared = ("--action=distill", f"--teachers={teachers}")
    assert toy(tmp_path / "watched", data_dir, *shared, "--evaluate_every=1") == 0
    monkeypatch.setattr(RealImages, "_read", refuse)
    monkeypatch.setattr("tensorflow_datasets.load", refuse)
    monkeypatch.setattr("tensorflow_datasets.builder", refuse)
    blind = ("--data_dir=/nowhere", "--evaluate_every=0")
    assert toy(tmp_path / "blind", data_dir, *shared, *blind) == 0
    assert_same(
        student_of(tmp_path / "watched"), student_of(tmp_path / "blind"), rtol=0
    )


def test_a_whole_run_needs_no_data_set(
    finished, tmp_path, monkeypatch, capsys, eagerly
):
    """Own teachers, no data: everything but the accuracies is there."""
    teachers = ",".join(str(finished / f"teachers/teacher_{i}.keras") for i in (0, 1))
    monkeypatch.setattr(RealImages, "_read", refuse)
    none = (f"--teachers={teachers}", "--evaluation_split=none")
    assert toy(tmp_path, "/nowhere", *none, "--export_formats=tflite_int8") == 0
    results = json.loads((tmp_path / "results.json").read_text())
    assert results["student"]["accuracy"] is None
    assert results["teachers"][0]["accuracy"] is None
    assert 0 <= results["student"]["agreement"] <= 1
    for entry in results["exports"]:
        assert entry["accuracy"] is None and 0 <= entry["agreement"] <= 1
    assert (tmp_path / "teachers/teacher_1.keras").is_symlink()
    assert "tflite_int8" in capsys.readouterr().out


@pytest.mark.parametrize("policy", ["mixed_bfloat16", "mixed_float16"])
def test_training_in_half_precision_leaves_float32_files(
    policy, finished, tmp_path, eagerly
):
    teachers = ",".join(str(finished / f"teachers/teacher_{i}.keras") for i in (0, 1))
    more = (
        f"--teachers={teachers}",
        "--evaluation_split=none",
        f"--dtype_policy={policy}",
    )
    assert toy(tmp_path, "/nowhere", *more, "--export_formats=tflite_int8") == 0
    student = keras.saving.load_model(tmp_path / "student.keras")
    assert {layer.compute_dtype for layer in student.layers} == {"float32"}
    assert (tmp_path / "export/student_int8.tflite").exists()
    columns = (tmp_path / "history.csv").read_text().splitlines()[0].split(",")
    assert ("student_skipped" in columns) == (policy == "mixed_float16")


def test_sigterm_saves_within_an_epoch_and_the_same_command_goes_on(
    finished, data_dir, tmp_path, capsys, eagerly
):
    """To the same weights: test_kills.py, distillation/test_checkpoints.py."""
    teachers = ",".join(str(finished / f"teachers/teacher_{i}.keras") for i in (0, 1))
    shared = ("--action=distill", f"--teachers={teachers}", "--evaluate_every=0")
    steps = []

    def terminate(self, batch, logs=None):
        steps.append(batch)
        if len(steps) == 3:
            signal.raise_signal(signal.SIGTERM)

    with pytest.MonkeyPatch.context() as patch:
        curves = "cdfkd_tf.distillation.callbacks.Curves.on_train_batch_end"
        patch.setattr(curves, terminate)
        assert toy(tmp_path, data_dir, *shared) == 130
    printed = capsys.readouterr()
    assert "Saved after 1 epochs and 1 steps." in printed.out
    assert printed.err.splitlines()[-1].startswith("error: Interrupted")
    assert not (tmp_path / "student.keras").exists()
    assert toy(tmp_path, data_dir, *shared) == 0
    assert "Going on after epoch 1 and 1 steps of 2." in capsys.readouterr().out
    assert (tmp_path / "student.keras").exists()
