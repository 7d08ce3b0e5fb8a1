"""One distillation from its first epoch, or the one it stopped at, to its networks."""

import contextlib
from collections.abc import Iterator, Sequence

import keras
import tensorflow as tf

from cdfkd_tf.assembly import HELD_OUT_SEED, SAMPLE_SEED, Assembly
from cdfkd_tf.data.latents import latent_dataset
from cdfkd_tf.engine import build_distiller, networks_to_keep
from cdfkd_tf.errors import RunError
from cdfkd_tf.training.agreement import HeldOutAgreement, KeepBest
from cdfkd_tf.training.callbacks import (
    Curves,
    FirstStep,
    HistoryTable,
    InventedImages,
    Inventor,
    StopOnNaN,
)
from cdfkd_tf.training.checkpoints import TrainingState
from cdfkd_tf.training.distiller import Distiller
from cdfkd_tf.training.optimizers import LearningRates
from cdfkd_tf.training.safety import SkippedUpdates, is_scaled, what_failed
from cdfkd_tf.training.trouble import TroubleWatch

# Agreement through earlier generators: it follows true accuracy best, see
# experiments/README.md.
BEST_SIGNAL = "agreement_earlier"
_LOOKED_AT = 256  # invented images behind each histogram and each agreement


def distill(
    assembly: Assembly,
    verbose: int | str,
    more_callbacks: Sequence[keras.callbacks.Callback] = (),
) -> tuple[dict[str, keras.Model], dict[str, float]]:
    """Trains the student, and the generator if the method has one.

    Args:
        assembly: what the run is made of.
        verbose: as in `keras.Model.fit`.
        more_callbacks: called after our own, before the checkpoint.

    Returns:
        The networks to keep, `student` and perhaps `generator`; seconds: `distill`,
        earlier processes included, and `first_step`, from here to its end.
    """
    config, workdir = assembly.config, assembly.workdir
    first_step = FirstStep()
    distiller = build_distiller(assembly)
    state = TrainingState(distiller, workdir.checkpoints, config.checkpoint_every)
    first_epoch = state.restore()
    if first_epoch:
        print(f"Going on after epoch {first_epoch} of {config.epochs}.")
    data, steps_per_epoch = _lessons(assembly, first_epoch)
    watched = assembly.can_measure and config.evaluate_every
    best = None
    # In this order: agreement puts numbers into the logs that the others read.
    callbacks = [first_step, StopOnNaN(), _learning_rates(assembly, distiller)]
    if assembly.method.generator:
        agreement, invented = _watch_generator(assembly, distiller, first_epoch)
        best = KeepBest(
            distiller.student, BEST_SIGNAL, workdir.checkpoints / "best", first_epoch
        )
        callbacks += [agreement, *([best] if config.keep_best else []), invented]
    callbacks += [
        SkippedUpdates(
            distiller.state,
            {
                "student_optimizer": config.steps_per_epoch * config.student_rounds,
                "generator_optimizer": config.steps_per_epoch,
            },
        ),
        HistoryTable(workdir.history, first_epoch),
        Curves(
            workdir.logs,
            {name: it for name, it in distiller.state.items() if "optimizer" in name},
            config.steps_per_epoch * assembly.rounds * config.batch_size,
        ),
        *more_callbacks,
        state,
    ]
    if first_epoch < config.epochs:
        with named_failures(distiller):
            distiller.fit(
                data,
                initial_epoch=first_epoch,
                epochs=config.epochs,
                steps_per_epoch=steps_per_epoch,
                validation_data=assembly.images.evaluation() if watched else None,
                validation_freq=max(config.evaluate_every, 1),
                callbacks=callbacks,
                shuffle=False,
                verbose=verbose,
            )
    if best and config.keep_best:
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


def _lessons(assembly: Assembly, first_epoch: int):
    """What the engine iterates over, and how many elements make one epoch."""
    config = assembly.config
    if assembly.method.generator:
        latents = latent_dataset(
            config.batch_size,
            assembly.rounds,
            config.latent_size,
            seed=config.seed,
            first_step=first_epoch * config.steps_per_epoch,
        )
        return latents, config.steps_per_epoch
    # As many student updates as a method with a generator makes.
    updates = config.steps_per_epoch * config.student_rounds
    images, _ = assembly.images.training(
        config.batch_size, config.seed, first_batch=first_epoch * updates
    )
    return images, updates


def _learning_rates(assembly: Assembly, distiller: Distiller) -> LearningRates:
    config = assembly.config
    rates = [(distiller.optimizer, config.student_learning_rate, config.schedule)]
    if assembly.method.generator:
        schedule = config.generator_schedule or config.schedule
        opponent = distiller.generator_optimizer
        rates.append((opponent, config.generator_learning_rate, schedule))
    return LearningRates(rates, epochs=config.epochs, milestones=config.milestones)


def _watch_generator(assembly: Assembly, distiller, first_epoch: int):
    config, workdir = assembly.config, assembly.workdir
    invent = Inventor(
        distiller.generator, lambda images: assembly.teachers(images)["logits"]
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
