"""What a run takes if nothing is said: the student's size, the number of updates."""

import json
import math
import os
import time
from collections.abc import Sequence
from typing import Any

import keras
import tensorflow as tf

from cdfkd_tf.config import RunConfig
from cdfkd_tf.data.specs import DatasetSpec
from cdfkd_tf.distillation.build import build_student
from cdfkd_tf.distillation.distiller import Distiller
from cdfkd_tf.distillation.image_source import restoring
from cdfkd_tf.networks.backbones import AUTOMATIC_BACKBONE
from cdfkd_tf.runtime.files import replacing
from cdfkd_tf.runtime.input_pipelines import untuned
from cdfkd_tf.teachers.ensemble import TeacherEnsemble
from cdfkd_tf.workdir import Workdir

_SHARE = 5  # the student is at most a fifth of its teachers
_UPDATES = 8000  # of the student, where neither minutes nor epochs are given
_LONGEST = 30.0  # minutes that these may take; then there are fewer, but
_FEWEST = 1000
_TIMED = 3  # iterations, after the one that traces; of slow ones fewer
_TIMED_SECONDS = 5.0
_RECENT = 5  # ends of epochs between which speed is measured
LONGER = 2  # times the planned epochs there may be, if the machine gets faster
# Of the time to come: ends of epochs, the student's way to disk.
_RESERVE = 0.06
_ENDING = 6.0  # seconds, at least, for what follows the last epoch


def with_student_size(
    config: RunConfig, spec: DatasetSpec, teachers: TeacherEnsemble
) -> RunConfig:
    """The request with a width of the student, where it leaves it to the teachers.

    The largest with which the student has at most a fifth of the teachers' weights;
    up to 1 for 20 classes and twice as wide for ten times as many.

    Args:
        config: the request; with a `student_width` it comes back as it is.
        spec: of the images.
        teachers: whose weights are counted.
    """
    if config.student_width:
        return config
    most = max(1.0, 1 + math.log10(spec.num_classes / 20))
    widths = [most * step / 8 for step in range(8, 1, -1)]
    known = [teacher.num_parameters for teacher in teachers.teachers]
    for width in widths:
        sized = config.with_values({"student_width": width})
        size = build_student(sized, spec, len(teachers)).count_params()
        if not all(known) or size * _SHARE <= sum(known):
            break
    print(
        f"Student: {AUTOMATIC_BACKBONE}, {size:,} weights; the teachers have "
        f"{sum(known):,}."
    )
    return sized


def deadline(minutes: float, started: float) -> float:
    """When training has to end for all to be done within some minutes.

    Args:
        minutes: of the whole distillation.
        started: `time.monotonic()` when it began.
    """
    return started + minutes * 60 - max(_ENDING, minutes * 60 * _RESERVE / 3)


def fitted(
    distiller: Distiller, config: RunConfig, workdir: Workdir, started: float
) -> RunConfig:
    """The request with as many iterations as there is time for.

    Measured on a few iterations, after which everything is as it was. A run that goes
    on keeps the number that it began with.

    Args:
        distiller: fresh.
        config: with `minutes`, or without `steps_per_epoch`; else it comes back as it
            is.
        workdir: of the run.
        started: `time.monotonic()` when the distillation began.
    """
    if config.steps_per_epoch and not config.minutes:
        return config
    note = workdir.checkpoints / "schedule.json"
    if note.exists():
        return config.with_values(json.loads(note.read_text()))
    seconds = seconds_per_iteration(distiller)
    student_steps = distiller.source.student_steps
    wanted = math.ceil(_UPDATES / student_steps)
    if config.minutes:
        left = config.minutes * 60 - (time.monotonic() - started)
        total = max(1, int(left * (1 - _RESERVE) / seconds))
    else:
        total = min(wanted, int(_LONGEST * 60 / seconds))
        total = max(total, math.ceil(_FEWEST / student_steps))
    epochs = min(config.epochs, total)
    values = {"epochs": epochs, "steps_per_epoch": max(1, round(total / epochs))}
    updates = epochs * values["steps_per_epoch"] * student_steps
    gpus = len(tf.config.list_physical_devices("GPU"))
    machine = f"{gpus} GPU" if gpus else f"{os.cpu_count()} cores"
    print(
        f"{updates} updates of the student on {machine}, about "
        f"{updates / student_steps * seconds / 60:.1f} minutes."
    )
    note.parent.mkdir(parents=True, exist_ok=True)
    with replacing(note) as temporary:
        temporary.write_text(json.dumps(values))
    return config.with_values(values)


class KeepsToMinutes(keras.callbacks.Callback):
    """Ends the training in time, however fast the machine turns out to be.

    After each epoch the length of the run is set anew, to what the last epochs leave
    time for; learning rates, which follow from it, reach their end with it.

    Args:
        deadline: `time.monotonic()` at which training is to be over.
        most: epochs.
        followers: what has the attribute `epochs`, the length of the run.
    """

    def __init__(self, deadline: float, most: int, followers: Sequence[Any]):
        super().__init__()
        self._deadline, self._most, self._followers = deadline, most, followers
        self._ends: list[float] = []

    def on_train_begin(self, logs=None):
        self._ends.append(time.monotonic())

    def on_epoch_end(self, epoch, logs=None):
        self._ends.append(time.monotonic())
        recent = self._ends[-_RECENT:]
        each = (recent[-1] - recent[0]) / (len(recent) - 1)
        left = round(max(0.0, self._deadline - recent[-1]) / max(each, 1e-6))
        for follower in self._followers:
            follower.epochs = min(epoch + 1 + left, self._most)
        if not left:
            self.model.stop_training = True


def seconds_per_iteration(distiller: Distiller) -> float:
    """How long an iteration takes, once it is traced; nothing is moved by it."""
    strategy = distiller.distribute_strategy
    dataset = untuned(distiller.source.dataset(0))
    if strategy.num_replicas_in_sync > 1:
        dataset = strategy.experimental_distribute_dataset(dataset)
    elements, step = iter(dataset), distiller.make_train_function()
    with restoring(_variables(distiller.state)):
        step(elements)
        begun, seconds, count = time.monotonic(), 0.0, 0
        while count < _TIMED and seconds < _TIMED_SECONDS:
            step(elements)
            count, seconds = count + 1, time.monotonic() - begun
    for metric in distiller.metrics:
        metric.reset_state()
    return seconds / count


def _variables(state: dict[str, Any]) -> list[keras.Variable]:
    return [variable for part in state.values() for variable in part.variables]
