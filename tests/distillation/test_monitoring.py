"""What is watched while a student learns is there, and watching changes nothing."""

import csv
import json
import warnings
from types import SimpleNamespace

import keras
import numpy as np
import pytest
from PIL import Image
from tensorboard.backend.event_processing import event_accumulator

from cdfkd_tf.data.specs import plain_spec
from cdfkd_tf.distillation.monitoring import (
    CollapseWarnings,
    GeneratedImagesMonitor,
    HistoryTable,
    KeepBest,
    TrainingFigures,
    effective_classes,
    tile,
)
from cdfkd_tf.errors import DistillationWarning
from cdfkd_tf.workdir import Workdir
from tests import toys
from tests.rows import rows
from tests.toys import moved, values_of

# What stands in for accuracy where there is no label.


@pytest.fixture(scope="module")
def engine():
    return toys.distiller()


def watch(engine, folder, epochs=16, first_epoch=0):
    spec = plain_spec("toy", toys.SHAPE, toys.CLASSES)
    return GeneratedImagesMonitor(
        engine,
        spec,
        Workdir(folder),
        epochs=epochs,
        batch_size=8,
        first_epoch=first_epoch,
    )


def logged(callback, epoch):
    logs = {}
    callback.on_epoch_end(epoch, logs)
    return logs


def started(callback):
    callback.on_train_begin()
    return callback


def test_agreement_is_the_share_of_equal_classes(engine, tmp_path):
    before = values_of(engine.source.generator)
    logs = logged(started(watch(engine, tmp_path)), 0)
    assert moved(before, values_of(engine.source.generator)) == set()
    images = np.concatenate(list(engine.source.observe()))
    teachers = np.asarray(engine.teachers(images).logits).mean(1).argmax(-1)
    student = np.asarray(engine.student(images, training=False)["logits"])
    share = np.mean(student.mean(1).argmax(-1) == teachers)
    assert logs == {"agreement": share, "agreement_earlier": share}


@pytest.mark.slow
def test_agreement_earlier_is_remembered_across_processes(engine, tmp_path):
    file = Workdir(tmp_path).earlier_images
    first = started(watch(engine, tmp_path))  # of 16 epochs every second one is kept
    for epoch in range(5):
        logged(first, epoch)
    with np.load(file) as kept:
        assert kept["epochs"].tolist() == [2, 4]
        assert kept["images"].shape[:2] == (2, 64)
    content = file.read_bytes()
    expected = logged(first, 5)  # remembers epoch 6, too
    file.write_bytes(content)
    assert logged(started(watch(engine, tmp_path, first_epoch=5)), 5) == expected
    # A run that goes on from an earlier epoch forgets the later ones.
    logged(started(watch(engine, tmp_path, first_epoch=3)), 3)
    with np.load(file) as kept:
        assert kept["epochs"].tolist() == [2, 4]
    logged(started(watch(engine, tmp_path)), 1)  # one that starts again, all
    with np.load(file) as kept:
        assert kept["epochs"].tolist() == [2]


def test_pictures_and_curves_are_written(engine, tmp_path):
    figures = TrainingFigures(1, 16, {"student": engine.optimizer})
    board = keras.callbacks.TensorBoard(str(tmp_path / "logs"), write_graph=False)
    history = engine.fit(
        engine.source.dataset(0),
        epochs=2,
        steps_per_epoch=2,
        callbacks=[watch(engine, tmp_path), figures, board],
        verbose=0,
    ).history
    pictures = sorted(file.name for file in (tmp_path / "samples").iterdir())
    assert pictures == ["epoch_0001.png", "epoch_0002.png"]
    assert Image.open(tmp_path / "samples" / pictures[0]).width >= 256
    assert (
        len(history["images_per_second"]) == 2 and history["images_per_second"][0] > 0
    )
    assert history["student_learning_rate"] == pytest.approx([0.02, 0.02])
    events = {}
    for file in filter(lambda path: path.is_file(), (tmp_path / "logs").rglob("*")):
        log = event_accumulator.EventAccumulator(str(file)).Reload()
        for tag in log.Tags()["tensors"]:
            events[tag] = log.Tensors(tag)
    names = {name.removeprefix("epoch_") for name in events}
    assert {"student_header", "generator_bn", "student_learning_rate"} <= names
    assert {"generated_images", "generated_class", "generated_classes"} <= set(events)
    last = events["epoch_generator_bn"][-1].tensor_proto
    value = np.frombuffer(last.tensor_content, "float32") or last.float_val
    np.testing.assert_allclose(value, history["generator_bn"][-1], rtol=1e-6)


@pytest.mark.slow
@rows("channels", [1, 3])
def test_tile_shows_each_image_once(channels):
    images = np.random.default_rng(0).uniform(size=(10, 8, 8, channels))
    picture = np.asarray(tile(images)).reshape(-1, tile(images).width, channels)
    scale = 512 // (8 * 9)
    assert picture.shape == (2 * 9 * scale, 8 * 9 * scale, channels)
    second = picture[::scale][:8, ::scale][:, 9 : 9 + 8]
    np.testing.assert_array_equal(second, np.rint(images[1] * 255))


# The best epoch, and the table of all.


def small_student():
    return keras.Sequential([keras.Input((2,)), keras.layers.Dense(1)])


def test_keep_best_puts_the_best_epoch_back(tmp_path):
    student = small_student()
    keep = KeepBest(student, "agreement", tmp_path)
    for epoch, value in enumerate((0.2, 0.9, 0.9, 0.5)):
        student.set_weights([np.full((2, 1), epoch), np.zeros(1)])
        keep.on_epoch_end(epoch, {"agreement": value})
    keep.restore()
    np.testing.assert_array_equal(student.get_weights()[0], np.full((2, 1), 2))
    note = json.loads((tmp_path / "best.json").read_text())
    assert note == {"epoch": 3, "value": 0.9}
    assert len(list(tmp_path.glob("*.weights.h5"))) == 1


@pytest.mark.slow
def test_keep_best_of_a_resumed_run_goes_on_with_the_best(tmp_path):
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


# Warnings come once, when the trouble lasts, with what to do.

RNG = np.random.default_rng(0)
TEACHERS = [
    SimpleNamespace(name=name, reading=SimpleNamespace(values=values, guessed=guessed))
    for name, values, guessed in [("a", "0..255", False), ("b", "0..1", True)]
]


def healthy(n=400, teachers=2, classes=10):
    truth = RNG.integers(classes, size=n)
    logits = RNG.normal(size=(n, teachers, classes))
    logits[np.arange(n), :, truth] += 5
    return logits


def collapsed():
    logits = healthy()
    logits[:, :, 7] += 50
    return logits


def warned(epochs, patience=5, teachers=TEACHERS):
    """Messages, and how many had come after each epoch."""
    watch = CollapseWarnings(teachers, patience)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        counts = []
        for logits in epochs:
            watch.update(logits, logits.mean(1).argmax(-1))
            counts.append(len(caught))
    assert all(issubclass(item.category, DistillationWarning) for item in caught)
    return [str(item.message) for item in caught], counts


def test_collapse_warnings_leave_healthy_runs_alone():
    assert warned([healthy()] * 8)[0] == []


@pytest.mark.slow
def test_collapse_warnings_name_a_uniform_teacher_once_after_it_lasted():
    logits = healthy()
    logits[:, 1] = 1e-3 * logits[:, 1]
    messages, counts = warned([logits] * 8)
    assert len(messages) == 1 and "Teacher b gives all classes the same" in messages[0]
    assert "reading of teacher b, 0..1, is a guess: try another" in messages[0]
    assert "--teacher_input" in messages[0]
    assert counts == [0, 0, 0, 0, 1, 1, 1, 1]


def test_collapse_warnings_name_teachers_with_other_class_orders():
    logits = healthy()
    logits[:, 1] = np.roll(logits[:, 1], 3, axis=-1)
    (message,), _ = warned([logits] * 8)
    assert "Teachers a and b pick the same class on 0%" in message
    assert "the same classes" in message and "same order" in message


def test_collapse_warnings_of_modes_give_a_remedy():
    messages, _ = warned([collapsed()] * 8)
    assert len(messages) == 1
    assert "about 1.0 of 10 classes" in messages[0]
    assert "--generator_loss=balance=1" in messages[0]
    assert (
        "teacher b, 0..1, is a guess" in messages[0] and "teacher a" not in messages[0]
    )
    (message,), _ = warned([collapsed()] * 8, teachers=TEACHERS[:1] * 2)
    assert "guess" not in message


@pytest.mark.slow
def test_collapse_warnings_do_not_tell_what_passes():
    epochs = [collapsed(), collapsed(), healthy(), collapsed(), collapsed()]
    assert warned(epochs, patience=3)[0] == []


def test_effective_classes_is_the_exponential_of_the_entropy():
    for shares, classes in [([1, 0], 1), ([0.5, 0.5], 2), ([0.25] * 4, 4)]:
        assert effective_classes(np.array(shares)) == pytest.approx(classes)
