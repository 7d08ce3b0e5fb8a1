"""What stands in for accuracy where there is no label."""

import csv
import json

import keras
import numpy as np
import pytest
from cdfkd_tf.distillation.agreement import HeldOutAgreement, KeepBest
from cdfkd_tf.distillation.callbacks import HistoryTable, Inventor

from tests.conftest import latents, moved, tiny_distiller, values_of


@pytest.fixture(scope="module")
def distiller():
    return tiny_distiller()


def watch(distiller, file, epochs=16, **kwargs):
    return HeldOutAgreement(
        distiller.student,
        Inventor(
            distiller.generator,
            lambda images: distiller.teachers(images)["logits"][:, :1],
        ),
        latents(batch=32)[:, 0],
        epochs=epochs,
        file=file,
        **kwargs,
    )


def logged(callback, epoch):
    logs = {}
    callback.on_epoch_end(epoch, logs)
    return logs


def test_agreement_is_the_share_of_equal_classes(distiller, tmp_path):
    before = values_of(distiller.generator)
    logs = logged(watch(distiller, tmp_path / "images.npz"), 0)
    assert moved(before, values_of(distiller.generator)) == set()
    images = distiller.generator(latents(batch=32)[:, 0], training=True)
    teacher = np.asarray(distiller.teachers(images)["logits"])[:, 0].argmax(-1)
    student = np.asarray(distiller.student(images, training=False)["logits"])
    share = np.mean(student.mean(1).argmax(-1) == teacher)
    assert logs == {"agreement": share, "agreement_earlier": share}


def test_earlier_generators_are_remembered_across_processes(distiller, tmp_path):
    file = tmp_path / "images.npz"
    first = watch(distiller, file, epochs=16)  # every second epoch is remembered
    for epoch in range(5):
        logged(first, epoch)
    with np.load(file) as kept:
        assert kept["epochs"].tolist() == [2, 4]
        assert kept["images"].shape[:2] == (2, 32)
    resumed = watch(distiller, file, epochs=16, first_epoch=5)
    assert logged(resumed, 5) == logged(first, 5)
    assert watch(distiller, file, epochs=16, first_epoch=3)._earlier[-1][0] == 2
    assert watch(distiller, file, epochs=16)._earlier == []


def small_student():
    return keras.Sequential([keras.Input((2,)), keras.layers.Dense(1)])


def test_the_best_epoch_is_kept_and_put_back(tmp_path):
    student = small_student()
    keep = KeepBest(student, "agreement", tmp_path)
    for epoch, value in enumerate((0.2, 0.9, 0.9, 0.5)):
        student.set_weights([np.full((2, 1), epoch), np.zeros(1)])
        keep.on_epoch_end(epoch, {"agreement": value})
    keep.restore()
    np.testing.assert_array_equal(student.get_weights()[0], np.full((2, 1), 2))
    assert json.loads((tmp_path / "best.json").read_text()) == {
        "epoch": 3,
        "value": 0.9,
    }


def test_a_resumed_run_goes_on_with_the_best(tmp_path):
    student = small_student()
    KeepBest(student, "agreement", tmp_path).on_epoch_end(0, {"agreement": 0.8})
    resumed = KeepBest(student, "agreement", tmp_path, first_epoch=1)
    resumed.on_epoch_end(1, {"agreement": 0.7})
    assert resumed.best["epoch"] == 1
    assert KeepBest(student, "agreement", tmp_path).best["epoch"] == 0


def test_history_is_a_table_that_a_resumed_run_continues(tmp_path):
    file = tmp_path / "history.csv"
    table = HistoryTable(file)
    table.on_epoch_end(0, {"loss": 1.0})
    table.on_epoch_end(1, {"loss": 0.5, "val_accuracy": 0.25})
    table.on_epoch_end(2, {"loss": 9.0})
    resumed = HistoryTable(file, first_epoch=2)  # the third epoch was not kept
    resumed.on_epoch_end(2, {"loss": 0.1})
    rows = list(csv.DictReader(file.open()))
    assert [row["loss"] for row in rows] == ["1", "0.5", "0.1"]
    assert [row["val_accuracy"] for row in rows] == ["", "0.25", ""]
