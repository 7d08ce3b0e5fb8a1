"""Sizes and lengths that follow from teachers and time."""

import json
import time
import types

import numpy as np
import pytest

from cdfkd_tf.config import RunConfig
from cdfkd_tf.data.specs import plain_spec
from cdfkd_tf.distillation import bank, schedule
from cdfkd_tf.distillation.build import build_student
from cdfkd_tf.distillation.methods import METHODS
from cdfkd_tf.distillation.optimizers import LearningRates
from cdfkd_tf.errors import RequestError
from cdfkd_tf.teachers.ensemble import TeacherEnsemble
from cdfkd_tf.workdir import Workdir
from tests import toys
from tests.rows import rows

SPEC = plain_spec("none", (16, 16, 1), 4)
OWN = {"teachers": "a.keras,b.keras", "dataset": "none", "image_shape": "16,16,1"}


def test_config_needs_no_data_set_where_there_are_teachers_or_a_folder():
    assert RunConfig(teachers="a.keras").dataset == "none"
    assert RunConfig(teachers="a.keras", image_folder="x").dataset == "folder"
    assert RunConfig().dataset == "cifar100"
    digits = RunConfig(teachers="a.keras", dataset="digits", image_shape="")
    assert digits.dataset == "digits"
    assert toys.parse(*digits.changed_flags()) == digits


def test_config_takes_what_the_method_brings_where_nothing_is_given():
    own = RunConfig(**OWN)
    assert (own.method, own.student, own.schedule) == ("cdfkd_plus", "auto", "cosine")
    paper = RunConfig()
    assert (paper.method, paper.student, paper.epochs) == ("cdfkd_mfs", "resnet18", 300)
    for name, row in METHODS.items():
        made = RunConfig(**OWN, method=name)
        assert {n: getattr(made, n) for n in row.recipe} == dict(row.recipe)
    given = RunConfig(**OWN, batch_size=8, epochs=2, student="lenet")
    assert (given.batch_size, given.epochs, given.student) == (8, 2, "lenet")
    assert given.student_width == 1


@pytest.mark.slow
def test_config_refuses_batches_of_one():
    with pytest.raises(RequestError, match="at least 2"):
        RunConfig(batch_size=1)


@rows("width", [24, 200])
def test_student_size_is_at_most_a_fifth_of_the_teachers(width):
    toys_width, toys.WIDTH = toys.WIDTH, width
    try:
        teachers = TeacherEnsemble([toys.classifier((16, 16, 1), depth=2)] * 2)
    finally:
        toys.WIDTH = toys_width
    config = schedule.with_student_size(RunConfig(**OWN), SPEC, teachers)
    size = build_student(config, SPEC, 2).count_params()
    total = 2 * teachers.teachers[0].num_parameters
    smallest = config.student_width == pytest.approx(0.25)
    assert size * 5 <= total or smallest
    assert config.student_width <= 1
    given = RunConfig(**OWN, student_width=0.5)
    assert schedule.with_student_size(given, SPEC, teachers) is given


def _values(distiller):
    return {
        f"{name} {index}": np.array(variable)
        for name, part in distiller.state.items()
        for index, variable in enumerate(part.variables)
    }


def test_seconds_per_iteration_moves_nothing():
    distiller = toys.distiller()
    before = _values(distiller)
    assert schedule.seconds_per_iteration(distiller) > 0
    for name, value in _values(distiller).items():
        np.testing.assert_array_equal(value, before[name], err_msg=name)
    assert all(float(metric.result()) == 0 for metric in distiller.trackers.values())


def test_fitted_steps_fill_the_minutes_and_are_remembered(tmp_path, monkeypatch):
    monkeypatch.setattr(schedule, "seconds_per_iteration", lambda distiller: 0.5)
    workdir, distiller = Workdir(tmp_path), toys.distiller(student_steps=2)
    config = RunConfig(**OWN, minutes=2, epochs=10)
    made = schedule.fitted(distiller, config, workdir, time.monotonic() - 20)
    # 100 seconds are left, a little of it for what is not an iteration.
    assert 0.9 * 200 <= made.epochs * made.steps_per_epoch <= 200
    monkeypatch.setattr(schedule, "seconds_per_iteration", lambda distiller: 50.0)
    again = schedule.fitted(distiller, config, workdir, time.monotonic())
    assert again == made
    note = json.loads((workdir.checkpoints / "schedule.json").read_text())
    assert note == {"epochs": 10, "steps_per_epoch": made.steps_per_epoch}


@rows("each, epochs", [(10, 10), (20, 5), (4, 20)])
def test_training_ends_in_time_whatever_an_epoch_takes(each, epochs, monkeypatch):
    now = [0.0]
    monkeypatch.setattr(schedule.time, "monotonic", lambda: now[0])
    rates = LearningRates({}, 10)
    keeper = schedule.KeepsToMinutes(100.0, 20, [rates])
    keeper.set_model(model := types.SimpleNamespace(stop_training=False))
    keeper.on_train_begin()
    for epoch in range(20):
        now[0] += each
        keeper.on_epoch_end(epoch)
        if model.stop_training:
            break
    assert epoch + 1 == rates.epochs == epochs and now[0] <= 100


@pytest.mark.slow
def test_fitted_leaves_a_given_length_alone(tmp_path):
    config = RunConfig(**OWN, epochs=3, steps_per_epoch=4)
    assert schedule.fitted(None, config, Workdir(tmp_path), 0.0) is config


@rows("seconds, updates", [(0.01, 8000), (60, 1000)])
def test_fitted_without_minutes_makes_a_usual_number_of_updates(
    seconds, updates, tmp_path, monkeypatch
):
    monkeypatch.setattr(schedule, "seconds_per_iteration", lambda distiller: seconds)
    distiller = toys.distiller(student_steps=2)
    made = schedule.fitted(distiller, RunConfig(**OWN), Workdir(tmp_path), 0.0)
    assert made.epochs * made.steps_per_epoch * 2 == pytest.approx(updates, rel=0.03)


def test_bank_size_leaves_most_of_the_minutes_for_learning():
    small = plain_spec("none", (28, 28, 1), 10)
    assert bank.automatic_size(small, 0) == 40_000
    assert bank.automatic_size(small, 1) == 8000
    large = plain_spec("none", (224, 224, 3), 10)
    assert 1000 < bank.automatic_size(large, 0) < 2000  # 256 MB


@rows("method", ["cdfkd_mfs", "cdfkd_plus"])
@rows("own", [{}, OWN])
def test_changed_flags_repeat_a_run_of_any_method(own, method):
    config = RunConfig(**own, method=method, student_learning_rate=0.2)
    assert toys.parse(*config.changed_flags()) == config
