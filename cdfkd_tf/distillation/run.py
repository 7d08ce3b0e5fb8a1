"""One distillation from its first epoch, or the one it stopped at, to its networks."""

import contextlib
import time
from collections.abc import Iterator, Sequence
from typing import Any

import keras
import tensorflow as tf

from cdfkd_tf.config import RunConfig
from cdfkd_tf.data.specs import DatasetSpec
from cdfkd_tf.distillation import quality, schedule
from cdfkd_tf.distillation.build import networks_to_keep
from cdfkd_tf.distillation.checkpoints import TrainingState
from cdfkd_tf.distillation.distiller import Distiller
from cdfkd_tf.distillation.losses import TERMS
from cdfkd_tf.distillation.monitoring import (
    BEST_SIGNAL,
    GeneratedImagesMonitor,
    HistoryTable,
    KeepBest,
    TrainingFigures,
)
from cdfkd_tf.distillation.numerics import SkippedUpdates, is_scaled, what_failed
from cdfkd_tf.distillation.optimizers import LearningRates
from cdfkd_tf.errors import RunError
from cdfkd_tf.runtime.input_pipelines import shared_by_batch
from cdfkd_tf.runtime.multi_worker import WorkerGroup
from cdfkd_tf.runtime.precision import memory_advice
from cdfkd_tf.workdir import Workdir

_PROFILED = (3, 5)  # iterations, after those that trace and warm up


def distill(
    distiller: Distiller,
    config: RunConfig,
    spec: DatasetSpec,
    workdir: Workdir,
    *,
    evaluation: tf.data.Dataset | None = None,
    verbose: int | str = "auto",
    callbacks: Sequence[keras.callbacks.Callback] = (),
    workers: WorkerGroup | None = None,
    started: float | None = None,
) -> tuple[dict[str, keras.Model], dict[str, float], dict[str, Any]]:
    """Trains the student, and the generator if the method has one.

    Args:
        distiller: fresh; an interrupted run's state is put into it.
        config: the request.
        spec: of the images.
        workdir: where checkpoints, curves and pictures go.
        evaluation: normalised `(images, labels)` for accuracies; None: no accuracies.
        verbose: as in `keras.Model.fit`.
        callbacks: called after our own, before the checkpoint.
        workers: that train together, this one among them; only the chief writes.
        started: `time.monotonic()` at which `--minutes` began; None: now.

    Returns:
        The networks to keep, `student` and perhaps `generator`; seconds: `distill`,
        earlier processes included, and `first_step`, from here to its end; what was
        found by `quality.look`.

    Raises:
        RunError: a loss or a weight that is not finite, too little memory, a worker
            that is gone.
    """
    writes = workers is None or workers.cluster.is_chief
    started = time.monotonic() if started is None else started
    config = schedule.fitted(distiller, config, workdir, started)
    state = TrainingState(
        distiller.state,
        workdir.checkpoints,
        _steps_per_epoch(distiller, config),
        metrics=distiller.trackers,
        **saving_options(config),
        all_reduce=workers.all_reduce_sum if workers else int,
        writes=writes,
    )
    state.restore()
    within = f" and {state.step} steps" if state.step else ""
    if workers:
        workers.check_same("checkpoint", f"after epoch {state.epoch}{within}")
    if state.steps_done:
        print(f"Going on after epoch {state.epoch}{within} of {config.epochs}.")
    ours, best = [_learning_rates(distiller, config)], None
    if writes:
        watching, best = _watch(distiller, config, spec, workdir, state.epoch)
        ours += [*watching, *callbacks]
    epochs = config.epochs
    if config.minutes and not workers:  # hosts have clocks of their own
        epochs *= schedule.LONGER
        end = schedule.deadline(config.minutes, started - state.seconds)
        following = [
            one for one in ours if isinstance(one, LearningRates | TrainingFigures)
        ]
        ours.append(schedule.KeepsToMinutes(end, epochs, following))
    failures = workers.named_failures() if workers else contextlib.nullcontext()
    advice = memory_advice(
        f"a smaller --batch_size (now {config.batch_size})",
        *([] if config.recompute_teachers else ["--recompute_teachers"]),
        "--dtype_policy=mixed_bfloat16",
    )
    with advice, failures, named_failures(distiller):
        state.fit(
            distiller,
            lambda step: shared_by_batch(distiller.source.dataset(step)),
            epochs=epochs,
            validation_data=evaluation if config.evaluate_every else None,
            validation_freq=max(config.evaluate_every, 1),
            callbacks=ours,
            verbose=verbose,
        )
    if not writes:
        return {}, {}, {}
    if best:
        best.restore()
        print(f"Kept the student of epoch {best.best['epoch']} of {config.epochs}.")
    seconds = {"distill": round(state.seconds, 2)}
    if state.first_step is not None:
        seconds["first_step"] = round(state.first_step, 2)
    found = {}
    if "real" not in distiller.method.images:
        found = quality.look(distiller, config, spec)
        print(quality.describe(found), flush=True)
    return networks_to_keep(config, spec, distiller), seconds, found


@contextlib.contextmanager
def named_failures(distiller: Distiller) -> Iterator[None]:
    """Ends a run whose loss or weight is not finite with the reason.

    Raises:
        RunError: naming the term, or the weight, and the update.
    """
    try:
        yield
    except tf.errors.InvalidArgumentError as error:
        failed = what_failed(error, distiller.state)
        if not failed:
            raise
        updates = {
            name.removesuffix("_optimizer"): int(part.iterations.numpy())
            for name, part in distiller.state.items()
            if isinstance(part, keras.optimizers.Optimizer)
        }
        term = failed.split()[0].partition("_")[2]
        of_teachers = term in TERMS and TERMS[term].roles == ("generator",)
        role = "generator" if of_teachers and "generator" in updates else "student"
        learned = updates[role]
        half = is_scaled(distiller.optimizer)
        wider = ", --dtype_policy=mixed_bfloat16" if half else ""
        advice = (
            "A smaller --student_learning_rate or --generator_learning_rate"
            f"{wider} or --clip_gradients=10 usually helps."
        )
        if not learned:
            advice = (
                "Nothing that it depends on had learned by then: a teacher's outputs "
                f"for generated images overflow. Check --teacher_input{wider}."
            )
        raise RunError(
            f"{failed} after {updates['student']} updates of the student; the last "
            f"checkpoint is intact. {advice}"
        ) from error


def saving_options(config: RunConfig) -> dict[str, Any]:
    """How often and how many, for `TrainingState`."""
    return {
        "every": config.checkpoint_every,
        "minutes": config.checkpoint_minutes,
        "keep": config.keep_checkpoints,
    }


def _steps_per_epoch(distiller: Distiller, config: RunConfig) -> int:
    """Iterations per epoch: as many student steps whatever one iteration makes."""
    per_iteration = distiller.source.student_steps
    return config.steps_per_epoch * max(1, config.student_steps // per_iteration)


def _learning_rates(distiller: Distiller, config: RunConfig) -> LearningRates:
    rates = {
        "student_optimizer": (config.student_learning_rate, config.schedule),
        "generator_optimizer": (
            config.generator_learning_rate,
            config.generator_schedule or config.schedule,
        ),
    }
    optimizers = {
        name: (distiller.state[name], *rates[name])
        for name in rates.keys() & distiller.state.keys()
    }
    return LearningRates(optimizers, config.epochs, config.milestones)


def _watch(
    distiller: Distiller,
    config: RunConfig,
    spec: DatasetSpec,
    workdir: Workdir,
    first_epoch: int,
) -> tuple[list[keras.callbacks.Callback], KeepBest | None]:
    """What writes something at each epoch; and the keeper of the best, if any."""
    callbacks, best = [], None
    # In this order: agreement puts numbers into the logs that the others read.
    if "real" not in distiller.method.images:
        callbacks.append(
            GeneratedImagesMonitor(
                distiller,
                spec,
                workdir,
                epochs=config.epochs,
                batch_size=config.batch_size,
                first_epoch=first_epoch,
            )
        )
        if config.keep_best:
            folder = workdir.checkpoints / "best"
            best = KeepBest(distiller.student, BEST_SIGNAL, folder, first_epoch)
            callbacks.append(best)
    iterations = _steps_per_epoch(distiller, config)
    student_steps = distiller.source.student_steps
    updates = {
        "student_optimizer": iterations * student_steps,
        "generator_optimizer": iterations,
    }
    callbacks += [
        SkippedUpdates(distiller.state, updates),
        HistoryTable(workdir.history, first_epoch),
        TrainingFigures(
            config.epochs,
            config.batch_size * student_steps,
            {n: part for n, part in distiller.state.items() if n in updates},
        ),
        keras.callbacks.TensorBoard(
            str(workdir.logs),
            write_graph=False,
            profile_batch=_PROFILED if config.profile else 0,
        ),
    ]
    return callbacks, best
