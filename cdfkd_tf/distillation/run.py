"""One distillation from its first epoch, or the one it stopped at, to its networks."""

import contextlib
import functools
from collections.abc import Iterator, Sequence
from typing import Any

import keras
import tensorflow as tf

from cdfkd_tf.assembly import HELD_OUT_SEED, SAMPLE_SEED, Assembly
from cdfkd_tf.config import RunConfig
from cdfkd_tf.data.noise import latent_dataset
from cdfkd_tf.distillation.agreement import HeldOutAgreement, KeepBest
from cdfkd_tf.distillation.build import build_distiller, networks_to_keep
from cdfkd_tf.distillation.callbacks import (
    Curves,
    FirstStep,
    HistoryTable,
    InventedImages,
    Inventor,
    Profile,
    StopOnNaN,
)
from cdfkd_tf.distillation.checkpoints import TrainingState, seed_states
from cdfkd_tf.distillation.distiller import Distiller
from cdfkd_tf.distillation.numerics import SkippedUpdates, is_scaled, what_failed
from cdfkd_tf.distillation.optimizers import LearningRates
from cdfkd_tf.distillation.trouble import TroubleWatch
from cdfkd_tf.errors import RunError
from cdfkd_tf.runtime.multi_worker import Hosts
from cdfkd_tf.runtime.precision import memory_advice

# Agreement through earlier generators: it follows true accuracy best, see
# experiments/README.md.
BEST_SIGNAL = "agreement_earlier"
_LOOKED_AT = 256  # invented images behind each histogram and each agreement


def distill(
    assembly: Assembly,
    verbose: int | str,
    more_callbacks: Sequence[keras.callbacks.Callback] = (),
    hosts: Hosts | None = None,
) -> tuple[dict[str, keras.Model], dict[str, float]]:
    """Trains the student, and the generator if the method has one.

    Args:
        assembly: what the run is made of.
        verbose: as in `keras.Model.fit`.
        more_callbacks: called after our own, before the checkpoint.
        hosts: that train together, this one among them; only the chief writes.

    Returns:
        The networks to keep, `student` and perhaps `generator`; seconds: `distill`,
        earlier processes included, and `first_step`, from here to its end.
    """
    config, first_step = assembly.config, FirstStep()
    writes = hosts is None or hosts.cluster.is_chief
    distiller = build_distiller(assembly, hosts and hosts.strategy)
    state = _training_state(assembly, distiller, hosts)
    state.restore()
    within = f" and {state.step} steps" if state.step else ""
    if hosts:
        hosts.check_same("checkpoint", f"after epoch {state.epoch}{within}")
    if state.steps_done:
        print(f"Going on after epoch {state.epoch}{within} of {config.epochs}.")
    watched = assembly.can_measure and config.evaluate_every
    callbacks = [first_step, StopOnNaN(), _learning_rates(assembly, distiller)]
    best = None
    if writes:
        callbacks += [Profile(assembly.workdir.logs)] if config.profile else []
        watching, best = _watch(assembly, distiller, state.epoch)
        callbacks += [*watching, *more_callbacks]
    failures = hosts.named_failures() if hosts else contextlib.nullcontext()
    advice = memory_advice(
        f"a smaller --batch_size (now {config.batch_size})",
        *([] if config.low_memory else ["--low_memory"]),
        "--dtype_policy=mixed_bfloat16",
    )
    with advice, failures, named_failures(distiller):
        state.fit(
            distiller,
            functools.partial(_lessons, assembly),
            epochs=config.epochs,
            validation_data=assembly.images.evaluation() if watched else None,
            validation_freq=max(config.evaluate_every, 1),
            callbacks=callbacks,
            verbose=verbose,
        )
    if not writes:
        return {}, {}
    if best:
        best.restore()
        print(f"Kept the student of epoch {best.best['epoch']} of {config.epochs}.")
    seconds = {"distill": round(state.seconds, 2)}
    if first_step.seconds is not None:
        seconds["first_step"] = round(first_step.seconds, 2)
    return networks_to_keep(assembly, distiller), seconds


@contextlib.contextmanager
def named_failures(distiller: Distiller) -> Iterator[None]:
    """A loss or a weight that is no number ends the run at its step.

    Raises:
        RunError: naming the term, or the weight, and the update.
    """
    try:
        yield
    except tf.errors.InvalidArgumentError as error:
        failed = what_failed(error, distiller.state)
        if not failed:
            raise
        updates = int(keras.ops.convert_to_numpy(distiller.optimizer.iterations))
        advice = (
            ", --dtype_policy=mixed_bfloat16" if is_scaled(distiller.optimizer) else ""
        )
        raise RunError(
            f"{failed} after {updates} updates of the student; the last checkpoint is "
            "intact. A smaller --student_learning_rate or --generator_learning_rate"
            f"{advice} or --clip_gradients=10 usually helps."
        ) from error


def saving_options(config: RunConfig) -> dict[str, Any]:
    """How often and how many, for `TrainingState`."""
    return {
        "every": config.checkpoint_every,
        "minutes": config.checkpoint_minutes,
        "keep": config.keep_checkpoints,
    }


def _training_state(
    assembly: Assembly, distiller: Distiller, hosts: Hosts | None
) -> TrainingState:
    config, steps = assembly.config, assembly.config.steps_per_epoch
    if not assembly.method.generator:
        # As many student updates as a method with a generator makes.
        steps *= config.student_rounds
    return TrainingState(
        {**distiller.state, "seeds": seed_states(distiller.student)},
        assembly.workdir.checkpoints,
        steps,
        metrics=distiller.trackers,
        **saving_options(config),
        agree=hosts.agree if hosts else int,
        writes=hosts is None or hosts.cluster.is_chief,
    )


def _lessons(assembly: Assembly, first_step: int) -> tf.data.Dataset:
    """What the engine iterates over, from a step of the run on.

    Of each element, which holds a whole batch, every host takes its own part.
    """
    config, options = assembly.config, tf.data.Options()
    sharing = tf.data.experimental.AutoShardPolicy.DATA
    options.experimental_distribute.auto_shard_policy = sharing
    if assembly.method.generator:
        lessons = latent_dataset(
            config.batch_size,
            assembly.rounds,
            config.latent_size,
            seed=config.seed,
            first_step=first_step,
        )
    else:
        lessons, _ = assembly.images.training(
            config.batch_size, config.seed, first_batch=first_step
        )
    return lessons.with_options(options)


def _learning_rates(assembly: Assembly, distiller: Distiller) -> LearningRates:
    config = assembly.config
    rates = [(distiller.optimizer, config.student_learning_rate, config.schedule)]
    if assembly.method.generator:
        schedule = config.generator_schedule or config.schedule
        opponent = distiller.generator_optimizer
        rates.append((opponent, config.generator_learning_rate, schedule))
    return LearningRates(rates, epochs=config.epochs, milestones=config.milestones)


def _watch(
    assembly: Assembly, distiller: Distiller, first_epoch: int
) -> tuple[list[keras.callbacks.Callback], KeepBest | None]:
    """What writes something down at each epoch; and the keeper of the best, if any."""
    config, workdir = assembly.config, assembly.workdir
    callbacks, best = [], None
    # In this order: agreement puts numbers into the logs that the others read.
    if assembly.method.generator:
        agreement, invented = _watch_generator(assembly, distiller, first_epoch)
        if config.keep_best:
            folder = workdir.checkpoints / "best"
            best = KeepBest(distiller.student, BEST_SIGNAL, folder, first_epoch)
        callbacks += [agreement, *([best] if best else []), invented]
    optimizers = {
        name: it for name, it in distiller.state.items() if "optimizer" in name
    }
    rounds = assembly.rounds if assembly.method.generator else 1
    updates = {
        "student_optimizer": config.steps_per_epoch * config.student_rounds,
        "generator_optimizer": config.steps_per_epoch,
    }
    callbacks += [
        SkippedUpdates(distiller.state, updates),
        HistoryTable(workdir.history, first_epoch),
        Curves(workdir.logs, optimizers, config.batch_size * rounds),
    ]
    return callbacks, best


def _watch_generator(assembly: Assembly, distiller, first_epoch: int):
    config, workdir = assembly.config, assembly.workdir
    invent = Inventor(
        distiller.generator, lambda images: assembly.teachers(images).logits
    )
    agreement = HeldOutAgreement(
        distiller.student,
        invent,
        assembly.noise(_LOOKED_AT, HELD_OUT_SEED),
        epochs=config.epochs,
        file=workdir.checkpoints / "earlier_images.npz",
        first_epoch=first_epoch,
    )
    invented = InventedImages(
        invent,
        assembly.noise(_LOOKED_AT, SAMPLE_SEED),
        assembly.spec.denormalise,
        workdir.samples,
        workdir.logs,
        TroubleWatch([teacher.name for teacher in assembly.teachers.teachers]),
    )
    return agreement, invented
