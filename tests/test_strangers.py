"""Strangers' teachers and images through the command line."""

import json
import re

import keras
import numpy as np
import pytest

from tests import toys
from tests.toys import run_main

TINY = (
    "--student=wrn10_1",
    "--student_width=0.25",
    "--generator_width=0.125",
    "--latent_size=8",
    "--student_rounds=2",
    "--epochs=1",
    "--steps_per_epoch=2",
    "--batch_size=8",
    "--milestones=1",
)


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    place = tmp_path_factory.mktemp("strangers")
    keras.utils.set_random_seed(0)
    toys.classifier(classes=3).save(place / "a.keras")
    toys.probabilities_of_bytes((8, 8, 3), classes=3).save(place / "b.keras")
    toys.nested((16, 16, 1), classes=3).export(place / "c", verbose=False)
    toys.classifier(classes=5).save(place / "five.keras")
    toys.classifier((8, 8, 2), classes=3).save(place / "two_channels.keras")
    plain = toys.classifier(classes=3, norm=keras.layers.LayerNormalization)
    plain.save(place / "without_bn.keras")
    (place / "empty.keras").touch()
    toys.image_folder(place / "images")
    return place


def run(place, teachers, *more):
    files = ",".join(str(place / name) for name in teachers.split(","))
    return run_main(f"--teachers={files}", *TINY, *more)


@pytest.fixture(scope="module")
def finished(place):
    """Three makes of teachers and an own folder, through the whole pipeline."""
    code = run(
        place,
        "a.keras,b.keras,c",
        "--dataset=folder",
        f"--image_folder={place / 'images'}",
        "--image_shape=8,8,1",
        "--aggregator=weights",
        "--real_samples=6",
        "--aggregator_epochs=2",
        "--export_formats=tflite_int8",
        f"--workdir={place / 'run'}",
    )
    assert code == 0
    return place / "run"


def test_strangers_teachers_make_a_student(finished):
    results = json.loads((finished / "results.json").read_text())
    assert len(results["teachers"]) == 3
    assert all(entry["accuracy"] is not None for entry in results["teachers"])
    assert results["student"]["agreement"] is not None
    assert {entry["format"] for entry in results["exports"]} >= {"tflite_int8"}
    assert (finished / "splits/test.txt").read_text().count("\t") == 18


def test_links_name_what_was_given(finished):
    assert sorted(path.name for path in (finished / "teachers").iterdir()) == [
        "teacher_0.keras",
        "teacher_1.keras",
        "teacher_2",
    ]


def test_accuracies_are_those_of_the_teachers_alone(finished, place):
    """Measured with plain Keras on the same images, each in its own way."""
    from cdfkd_tf.data.builders.image_folder import folder_spec
    from cdfkd_tf.data.images import RealImages

    images = RealImages(folder_spec(str(place / "images"), (8, 8, 1)))
    pixels, labels = next(iter(images.evaluation_pixels(100)))
    grey = keras.models.load_model(place / "a.keras")
    colour = keras.models.load_model(place / "b.keras")
    said = (grey(pixels), colour(np.repeat(pixels, 3, -1) * 255))
    results = json.loads((finished / "results.json").read_text())
    for entry, answer in zip(results["teachers"], said):
        share = np.mean(np.asarray(answer).argmax(-1) == labels)
        assert entry["accuracy"] == pytest.approx(share)


def test_without_any_image(place, tmp_path, capsys, eagerly):
    more = ("--dataset=none", "--image_shape=8,8,1", f"--workdir={tmp_path}")
    more += ("--export_formats=", "--noreport")
    code = run(place, "a.keras,b.keras", *more, "--calibrate_teachers")
    assert code == 0
    results = json.loads((tmp_path / "results.json").read_text())
    assert results["dataset"] == "none"
    assert results["student"]["accuracy"] is None
    assert 0 <= results["student"]["agreement"] <= 1
    warnings = [
        line
        for line in capsys.readouterr().err.splitlines()
        # Of a network that has learned nothing, int8 may say what it likes.
        if line.startswith("warning:") and "agrees with Keras" not in line
    ]
    assert len(warnings) == 1 and "without the feature term" in warnings[0]


BN_ONLY = ("--generator_header_weight=0", "--student_feature_weight=0")
NONE = ("--dataset=none", "--image_shape=8,8,1")


@pytest.mark.parametrize(
    "teachers, more, message",
    [
        ("a.keras,five.keras", NONE, "five.keras answers 5 classes; .* has 3"),
        ("a.keras", (*NONE, "--num_classes=4"), "a.keras answers 3 classes; .* has 4"),
        ("two_channels.keras", NONE, "two_channels.keras takes .*8, 8, 2"),
        ("empty.keras,a.keras", (*NONE, "--num_classes=3"), "empty.keras is empty"),
        ("images", NONE, "images is a folder: expected a .keras file"),
        ("absent.keras", NONE, "no teacher file .*absent.keras"),
        ("a.keras", ("--dataset=none",), "needs --image_shape"),
        ("without_bn.keras", (*NONE, *BN_ONLY), "no teacher has any"),
        ("a.keras", (*NONE, "--real_samples=5"), "no real images"),
        ("a.keras", (*NONE, "--teacher_input=0..9"), "--teacher_input knows auto"),
        ("a.keras", (*NONE, "--teacher_input=0..1,0..1"), "one for each of the 1"),
        ("a.keras", ("--dataset=digits", "--num_classes=3"), "--num_classes belongs"),
        ("a.keras", ("--dataset=digits", "--image_shape=8,8,1"), "--image_shape belon"),
        ("a.keras", ("--dataset=digits", "--image_folder=x"), "--image_folder belongs"),
        ("a.keras", ("--dataset=folder", "--image_folder=x"), "no folder 'x'"),
        ("a.keras", ("--dataset=none", "--image_shape=8,8"), "height,width,channels"),
        ("a.keras", ("--dataset=none", "--image_shape=9,8,1"), "multiples of 4"),
    ],
)
def test_wrong_requests_are_one_line(place, tmp_path, capsys, teachers, more, message):
    assert run(place, teachers, f"--workdir={tmp_path}", *more) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("error: ")
    assert re.search(message, line), line
