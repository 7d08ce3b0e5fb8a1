"""Whole runs through the command line, traced, of the smallest networks."""

import collections
import contextlib
import io
import json
import os
import shutil
import signal
import threading
import time

import keras
import numpy as np
import pytest
from PIL import Image

from cdfkd_tf.data.builders.image_folder import folder_spec
from cdfkd_tf.data.images import RealImages
from cdfkd_tf.distillation.build import build_method
from cdfkd_tf.distillation.methods import METHODS
from tests import toys
from tests.toys import CLASSES, SHAPE, WIDTH, run_main

WEIGHTS = 9 * WIDTH + WIDTH + 2 * WIDTH + WIDTH * CLASSES + CLASSES  # of a teacher
OPTIONS = ("--aggregator=attention", "--labelled_samples=8")  # of the finished run


def results_of(workdir):
    return json.loads((workdir / "results.json").read_text())


def weights_of(workdir, name="student"):
    return keras.saving.load_model(workdir / f"{name}.keras").get_weights()


def assert_same(ours, theirs):
    for a, b in zip(ours, theirs, strict=True):
        np.testing.assert_array_equal(a, b)


@pytest.fixture
def copied(finished, tmp_path):
    """A copy of the finished run."""
    shutil.copytree(finished, tmp_path / "run", symlinks=True)
    return tmp_path / "run"


# What a pipeline leaves.


def test_pipeline_leaves_the_promised_files(finished):
    for name in (
        "config.json",
        "run.flags",
        "teachers/teacher_0.keras",
        "teachers/teacher_1.keras",
        "checkpoints/ckpt-6.index",
        "student.keras",
        "generator.keras",
        "predictor.keras",
        "export/saved_model/saved_model.pb",
        "export/student_float32.tflite",
        "export/student_int8.tflite",
        "export/README.md",
        "samples/epoch_0002.png",
        "splits/test.txt",
        "splits/few_shot.txt",
        "history.csv",
        "results.json",
        "observations.json",
        "report.html",
    ):
        assert (finished / name).exists(), name
    assert any((finished / "logs").rglob("events*"))
    assert (finished / "teachers/teacher_1.keras").is_symlink()
    header = (finished / "history.csv").read_text().splitlines()[0].split(",")
    terms = ("student_header", "student_feature", "student_ensemble", "generator_bn")
    assert {"val_accuracy", "agreement", *terms} <= set(header)


def test_model_card_has_front_matter_and_the_measured_values(finished):
    results = results_of(finished)
    card = (finished / "export/README.md").read_text()
    _, front, body = card.split("---\n", 2)
    assert "license: other" in front and "image-classification" in front
    for entry in (*results["teachers"], results["teacher_ensemble"]):
        assert f"| {entry['accuracy']:.2%} | {entry['parameters']:,} |" in body
    assert f"{results['aggregator']['accuracy']:.2%}" in body
    assert "8 labelled real images" in body and "a generator made up" in body
    assert "data-free" not in front
    assert results["teachers"][0]["fingerprint"] in body
    for entry in results["exports"]:
        assert f"| {entry['format']} | {entry['bytes']:,} |" in body


def test_results_have_the_promised_form(finished):
    results = results_of(finished)
    assert results["format"] == 2
    about = (results["dataset"], results["method"], results["seed"])
    assert about == ("folder", "cdfkd_mfs", 0)
    assert [entry["parameters"] for entry in results["teachers"]] == [WEIGHTS] * 2
    assert results["teacher_ensemble"]["parameters"] == 2 * WEIGHTS
    assert len(results["student"]["header_accuracy"]) == 2
    assert results["aggregator"]["kind"] == "attention"
    assert results["aggregator"]["labelled_samples"] == 8
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
        assert entry["bytes"] > 1_000 and entry["latency_ms"] > 0
        assert entry["multiply_adds"] > 1_000 and entry["parameters"] > 100
        assert 0 <= entry["accuracy"] <= 1 and 0 <= entry["agreement"] <= 1
    for entry in results["teacher_costs"]:
        assert entry["multiply_adds"] == 64 * 9 * WIDTH + WIDTH * CLASSES
        assert entry["bytes"] > 4 * WEIGHTS and entry["latency_ms"] > 0
    assert set(results["seconds"]) >= {"train_teachers", "distill", "export"}
    assert set(results["versions"]) == {"cdfkd_tf", "tensorflow", "keras"}


def test_results_are_those_of_the_networks_alone(finished, toy_files):
    """Measured with plain Keras on the same images."""
    images = RealImages(folder_spec(str(toy_files.images), SHAPE))
    pixels, labels = map(np.concatenate, zip(*images.evaluation_pixels(16)))
    results = results_of(finished)
    predictor = keras.saving.load_model(finished / "predictor.keras")
    predicted = predictor.predict(pixels, verbose=0).argmax(-1)
    assert results["aggregator"]["accuracy"] == pytest.approx(
        np.mean(predicted == labels)
    )
    normalised = images.spec.normalise(pixels).astype("float32")
    for entry, file in zip(results["teachers"], toy_files.teachers, strict=True):
        predicted = np.asarray(keras.saving.load_model(file)(normalised)).argmax(-1)
        assert entry["accuracy"] == pytest.approx(np.mean(predicted == labels))


def test_splits_can_be_audited(finished):
    def lines(name):
        return (finished / f"splits/{name}.txt").read_text().splitlines()

    assert len(lines("test")) == 6 * CLASSES and len(lines("few_shot")) == 8
    classes = collections.Counter(line.split("\t")[1] for line in lines("few_shot"))
    assert classes == dict.fromkeys(toys.CLASS_NAMES, 2)


# The same command, and others, again.


def test_finished_run_is_not_repeated(copied, toy_files, capsys):
    files = {p: p.stat().st_mtime_ns for p in copied.rglob("*.keras") if p.is_file()}
    again = (*toy_files.with_data, *OPTIONS, "--report", f"--workdir={copied}")
    assert run_main(*again) == 0
    printed = capsys.readouterr().out
    assert "Nothing to do" in printed and "student, mean of headers" in printed
    assert "-- " not in printed
    assert files == {path: path.stat().st_mtime_ns for path in files}


def test_another_aggregator_repeats_only_what_depends_on_it(copied, toy_files, capsys):
    before = weights_of(copied)
    more = (f"--workdir={copied}", "--export_formats=")
    assert run_main(*toy_files.with_data, *more) == 0
    printed = capsys.readouterr().out
    assert "-- fit aggregator" in printed and "-- distill" not in printed
    assert_same(weights_of(copied), before)
    results = results_of(copied)
    assert results["aggregator"]["kind"] == "mean" and results["exports"] == []


def test_written_flags_repeat_the_run(copied, finished, capsys):
    flags = (f"--flagfile={finished / 'run.flags'}", f"--workdir={copied}")
    assert run_main(*flags, "--action=evaluate") == 0
    assert "student" in capsys.readouterr().out
    ours, theirs = results_of(copied), results_of(finished)
    assert ours["student"] == theirs["student"]
    assert ours["teachers"] == theirs["teachers"]


# With and without data.


@pytest.mark.slow
def test_student_does_not_depend_on_watching_its_accuracy(
    toy_files, finished, tmp_path
):
    more = ("--evaluate_every=0", "--action=distill", f"--workdir={tmp_path}")
    assert run_main(*toy_files.with_data, *OPTIONS, *more) == 0
    assert_same(weights_of(tmp_path), weights_of(finished))
    assert_same(weights_of(tmp_path, "generator"), weights_of(finished, "generator"))
    header = (tmp_path / "history.csv").read_text().splitlines()[0]
    assert "val_accuracy" not in header and "agreement" in header


def test_distilling_reads_no_data_set(tmp_path, toy_files):
    """One that is not there could not be read."""
    teacher, student = tmp_path / "teacher.keras", tmp_path / "student.keras"
    shape = (32, 32, 3)
    toys.classifier(shape, 10, seed=0).save(teacher)
    image = keras.Input(shape)
    maps = keras.layers.Conv2D(4, 3, strides=8, padding="same")(image)
    keras.Model(image, keras.layers.BatchNormalization()(maps)).save(student)
    flags = (*toys.NETWORKS, "--dataset=cifar10", f"--data_dir={tmp_path / 'none'}")
    flags += (f"--teachers={teacher}", f"--student={student}", "--epochs=1")
    # Looks wrong and is right: one teacher's header may climb all levels, too.
    flags += ("--method=dfad", "--student_headers=multi_level", "--evaluate_every=0")
    assert run_main(*flags, "--action=distill", f"--workdir={tmp_path / 'run'}") == 0
    assert not (tmp_path / "none").exists()


@pytest.fixture(scope="module")
def third_party(tmp_path_factory, toy_files):
    """Three makes of teachers, no data: a whole pipeline, and what it warned of."""
    folder = tmp_path_factory.mktemp("third_party")
    toys.classifier(seed=0).save(folder / "a.keras")
    toys.probabilities_of_bytes().save(folder / "b.keras")
    toys.nested((16, 16, 1)).export(folder / "c", verbose=False)
    files = ",".join(str(folder / name) for name in ("a.keras", "b.keras", "c"))
    workdir = folder / "run"
    flags = (*toy_files.without_data, f"--teachers={files}", "--teacher_input=auto")
    flags += (f"--workdir={workdir}",)
    # A wrong request first: nothing of it stays in the way of the right one.
    assert run_main(*flags, "--student_loss=colour=1") == 2
    right = ("--aggregator=weights", "--report")
    with contextlib.redirect_stderr(io.StringIO()) as printed:
        assert run_main(*flags, *right, "--export_formats=tflite_int8") == 0
    return workdir, printed.getvalue().splitlines()


def test_third_party_teachers_make_a_student_without_any_image(third_party):
    workdir, printed = third_party
    results = results_of(workdir)
    assert results["dataset"] == "none" and len(results["teachers"]) == 3
    assert results["student"]["accuracy"] is None
    assert results["teachers"][0]["accuracy"] is None
    assert 0 <= results["student"]["agreement"] <= 1
    (entry,) = results["exports"]
    assert entry["accuracy"] is None and 0 <= entry["agreement"] <= 1
    assert (workdir / "report.html").exists()
    names = sorted(path.name for path in (workdir / "teachers").iterdir())
    assert names == ["teacher_0.keras", "teacher_1.keras", "teacher_2"]
    # The network has learned nothing: it is poor, int8 may say of it what it likes.
    of_poor = ("agrees with", "student is poor")
    (warning,) = (line for line in printed if not any(w in line for w in of_poor))
    assert "warning: The student learns without the feature term" in warning


def test_aggregator_learns_from_generated_images_alone(third_party):
    workdir, _ = third_party
    aggregator = results_of(workdir)["aggregator"]
    assert aggregator["kind"] == "weights" and aggregator["labelled_samples"] == 0
    assert not (workdir / "splits").exists()


# Methods and arithmetic.


@pytest.mark.parametrize(
    "method",
    [
        # The other runs here have generators; cdfkd_plus is tested in test_api.py.
        pytest.param(name, marks=() if name == "kd" else pytest.mark.slow)
        for name in METHODS
    ],
)
def test_method_flag_alone_makes_each_rival(method, toy_files, tmp_path):
    """A student of the package's own, whose headers can be shared in any way."""
    flags = [f for f in toy_files.with_data if not f.startswith("--student_headers")]
    flags += ["--student=wrn10_1", "--student_width=0.25", "--epochs=1"]
    flags += [f"--method={method}", *OPTIONS, f"--workdir={tmp_path}"]
    if method == "patches":
        Image.fromarray(np.eye(40, dtype="uint8") * 255).save(tmp_path / "any.png")
        flags.append(f"--transfer_images={tmp_path}")
    row = build_method(toys.parse(*flags))
    if "synthesis_steps" in row.recipe:
        flags += ["--synthesis_steps=3", "--bank_size=16"]
    assert run_main(*flags, "--export_formats=tflite_int8") == 0
    results = results_of(tmp_path)
    assert [entry["format"] for entry in results["exports"]] == ["tflite_int8"]
    assert results["method"] == method and 0 <= results["student"]["accuracy"] <= 1
    headers = 1 if row.sharing == "single" else 2
    assert len(results["student"]["header_accuracy"]) == headers
    kind = "mean" if headers == 1 else "attention"  # one header: nothing to weigh
    assert results["aggregator"]["kind"] == kind
    assert (tmp_path / "generator.keras").exists() == row.has_generator
    header = (tmp_path / "history.csv").read_text().splitlines()[0]
    terms = {f"student_{term}" for term in row.student if term != "feature"}
    terms |= {f"generator_{term}" for term in row.generator}
    assert terms <= set(header.split(","))


@pytest.mark.slow
@pytest.mark.parametrize(
    "policy",
    ["mixed_float16", pytest.param("mixed_bfloat16", marks=pytest.mark.slow)],
)
def test_training_in_half_precision_leaves_float32_files(policy, toy_files, tmp_path):
    flags = (*toy_files.without_data, f"--dtype_policy={policy}", "--epochs=1")
    flags += ("--action=distill", "--profile", f"--workdir={tmp_path}")
    assert run_main(*flags) == 0
    assert len(list((tmp_path / "logs").rglob("*.xplane.pb"))) == 1
    student = keras.saving.load_model(tmp_path / "student.keras")
    assert {layer.compute_dtype for layer in student.layers} == {"float32"}
    columns = (tmp_path / "history.csv").read_text().splitlines()[0].split(",")
    assert ("student_skipped" in columns) == (policy == "mixed_float16")


@pytest.mark.slow
def test_attention_term_distils_maps_by_a_flag(toy_files, tmp_path):
    """Of a student of the package's own, whose first maps are as large as theirs."""
    flags = [f for f in toy_files.without_data if not f.startswith("--student=")]
    flags += ["--student=wrn10_1", "--student_width=0.25", "--epochs=1"]
    flags += ["--student_loss=attention=10,feature=0", "--generator_loss=attention=-1"]
    assert run_main(*flags, "--action=distill", f"--workdir={tmp_path}") == 0
    header, row = (tmp_path / "history.csv").read_text().splitlines()
    values = dict(zip(header.split(","), row.split(",")))
    assert float(values["student_attention"]) > 0
    assert float(values["generator_attention"]) > 0
    assert "student_feature" not in values
    keras.saving.load_model(tmp_path / "student.keras")


# Interruptions.


@pytest.mark.slow
def test_sigterm_saves_within_an_epoch_and_the_same_command_goes_on(
    toy_files, tmp_path, capsys
):
    """To the same weights: test_kills.py, distillation/test_checkpoints.py."""
    more = ("--action=distill", "--steps_per_epoch=300", "--keep_best")
    flags = (*toy_files.without_data, *more, f"--workdir={tmp_path}")

    def terminate():
        while not (tmp_path / "history.csv").exists():  # after the first epoch
            time.sleep(0.01)
        os.kill(os.getpid(), signal.SIGTERM)

    thread = threading.Thread(target=terminate, daemon=True)
    thread.start()
    assert run_main(*flags) == 130
    thread.join()
    printed = capsys.readouterr()
    assert "Saved after 1 epochs and " in printed.out
    assert printed.err.splitlines()[-1].startswith("error: Interrupted")
    assert not (tmp_path / "student.keras").exists()
    assert run_main(*flags) == 0
    printed = capsys.readouterr().out
    assert "Going on after epoch 1" in printed and " of 2." in printed
    assert (tmp_path / "student.keras").exists()
    rows = (tmp_path / "history.csv").read_text().splitlines()
    assert len(rows) == 3
    # The best epoch is kept, as the history tells it.
    column = rows[0].split(",").index("agreement_earlier")
    values = [float(row.split(",")[column]) for row in rows[1:]]
    best = json.loads((tmp_path / "checkpoints/best/best.json").read_text())
    assert best["value"] == pytest.approx(max(values), rel=1e-5)
    assert best["epoch"] == (2 if values[1] >= values[0] else 1)
    assert f"Kept the student of epoch {best['epoch']} of 2." in printed


# Own teachers from a data set.


def first_weight(file):
    return keras.saving.load_model(file, compile=False).get_weights()[0]


def test_train_teachers_trains_what_is_missing(data_dir, tmp_path, capsys):
    flags = (*toys.NETWORKS, "--dataset=digits", f"--data_dir={data_dir}")
    flags += ("--teacher_network=lenet", "--teacher_width=0.25", "--num_teachers=2")
    flags += ("--teacher_epochs=1", "--student=lenet", f"--workdir={tmp_path}")
    flags += ("--action=train_teachers", "--student_loss=feature=0")
    flags += ("--generator_loss=bn=0",)
    assert run_main(*flags) == 0
    files = [tmp_path / f"teachers/teacher_{index}.keras" for index in (0, 1)]
    one, two = (first_weight(file) for file in files)
    assert not np.array_equal(one, two)  # each from its own seed
    assert not list((tmp_path / "teachers").glob("checkpoints_*"))
    assert len((tmp_path / "splits/train.txt").read_text().splitlines()) > 200
    files[1].unlink()
    (tmp_path / "progress.json").unlink()
    capsys.readouterr()
    before = files[0].stat().st_mtime_ns
    assert run_main(*flags) == 0
    assert files[0].stat().st_mtime_ns == before
    assert "Teacher 2 of 2" in capsys.readouterr().out
    np.testing.assert_array_equal(first_weight(files[1]), two)
