"""What each step of a run does. `runs.py` decides which of them are needed."""

import os
import sys
import time

import keras
import numpy as np
import tensorflow as tf

import cdfkd_tf
from cdfkd_tf.assembly import (
    CALIBRATION_SEED,
    SAMPLE_SEED,
    Assembly,
    make_deterministic,
)
from cdfkd_tf.config import RunConfig
from cdfkd_tf.data.latents import latent_dataset
from cdfkd_tf.export import calibration_pixels, check_export, export_predictor
from cdfkd_tf.models.aggregation import build_aggregator, build_predictor
from cdfkd_tf.results import Results
from cdfkd_tf.training.aggregation import fit_aggregator
from cdfkd_tf.training.callbacks import Curves, FirstStep, InventedImages, StopOnNaN
from cdfkd_tf.training.checkpoints import TrainingState
from cdfkd_tf.training.classifier import train_classifier
from cdfkd_tf.training.optimizers import LearningRates
from cdfkd_tf.workdir import Workdir

_LOOKED_AT = 256  # invented images behind each histogram
_CALIBRATION = 512


class Steps:
    """The steps of one run, in one process.

    Args:
        config: the request.
        workdir: its folder.
    """

    def __init__(self, config: RunConfig, workdir: Workdir):
        make_deterministic(config)
        self.config, self.workdir = config, workdir
        self.assembly = Assembly(config, workdir)
        versions = {
            "cdfkd_tf": cdfkd_tf.__version__,
            "tensorflow": tf.__version__,
            "keras": keras.version(),
        }
        self.results = Results(workdir.results, config, versions)
        self.verbose = 1 if sys.stdout.isatty() else 2

    def train_teachers(self) -> None:
        """Trains the teachers that are missing, or links those that were given."""
        config, assembly = self.config, self.assembly
        if config.teachers:
            self._link_teachers()
            return
        for index in range(config.num_teachers):
            file = self.workdir.teacher(index)
            if file.exists():
                continue
            print(f"Teacher {index + 1} of {config.num_teachers}: {config.teacher}")
            model = assembly.build_teacher(index)
            images, steps = assembly.images.training(
                config.teacher_batch_size, assembly.teacher_seed(index)
            )
            train_classifier(
                model,
                images,
                steps_per_epoch=steps,
                epochs=config.teacher_epochs,
                learning_rate=config.teacher_learning_rate,
                milestones=config.teacher_milestones,
                verbose=self.verbose,
            )
            _save(model, file)

    def _link_teachers(self) -> None:
        self.assembly.teachers  # noqa: B018  (loads, and so checks, every file)
        self.workdir.teachers.mkdir(parents=True, exist_ok=True)
        for index, file in enumerate(self.assembly.teacher_files()):
            link = self.workdir.teacher(index)
            if link.is_symlink():
                link.unlink()
            if not link.exists():
                os.symlink(file.resolve(), link)

    def distill(self) -> None:
        """Trains student and generator against the teachers, without any image."""
        config, assembly, workdir = self.config, self.assembly, self.workdir
        first_step = FirstStep()
        distiller = assembly.build_distiller()
        spec, teachers = assembly.spec, assembly.teachers
        rates = LearningRates(
            [
                (distiller.optimizer, config.student_learning_rate),
                (distiller.generator_optimizer, config.generator_learning_rate),
            ],
            schedule=config.schedule,
            epochs=config.epochs,
            milestones=config.milestones,
        )
        state = TrainingState(distiller, workdir.checkpoints, config.checkpoint_every)
        first_epoch = state.restore()
        if first_epoch:
            print(f"Going on after epoch {first_epoch} of {config.epochs}.")
        invented = InventedImages(
            distiller.generator,
            lambda images: keras.ops.mean(teachers(images)["logits"], axis=1),
            assembly.noise(_LOOKED_AT, SAMPLE_SEED),
            spec.denormalise,
            workdir.samples,
            workdir.logs,
        )
        optimizers = {
            "student": distiller.optimizer,
            "generator": distiller.generator_optimizer,
        }
        rounds = config.student_rounds + 1
        images_per_epoch = config.steps_per_epoch * rounds * config.batch_size
        curves = Curves(workdir.logs, optimizers, images_per_epoch)
        latents = latent_dataset(
            config.batch_size,
            rounds,
            config.latent_size,
            seed=config.seed,
            first_step=first_epoch * config.steps_per_epoch,
        )
        every = 0 if config.evaluation_split == "none" else config.evaluate_every
        if first_epoch < config.epochs:
            distiller.fit(
                latents,
                initial_epoch=first_epoch,
                epochs=config.epochs,
                steps_per_epoch=config.steps_per_epoch,
                validation_data=assembly.images.evaluation() if every else None,
                validation_freq=max(every, 1),
                callbacks=[first_step, StopOnNaN(), rates, curves, invented, state],
                shuffle=False,
                verbose=self.verbose,
            )
        student, generator = assembly.players_to_keep(distiller)
        _save(student, workdir.student)
        _save(generator, workdir.generator)
        seconds = {"distill": round(state.seconds, 2)}
        if first_step.seconds is not None:
            seconds["first_step"] = round(first_step.seconds, 2)
        self.results.record("seconds", seconds)

    def fit_aggregator(self) -> None:
        """Learns how to weigh the headers, if asked to, and builds the predictor."""
        config, assembly, workdir = self.config, self.assembly, self.workdir
        student = assembly.load(workdir.student, "distill")
        keras.utils.set_random_seed(config.seed)
        aggregator = build_aggregator(config.aggregator, student)
        entry = {"kind": config.aggregator, "real_samples": 0, "learned": False}
        if config.aggregator != "mean":
            fit = fit_aggregator(
                aggregator,
                student,
                *assembly.images.few_shot(config.real_samples, config.seed),
                epochs=config.aggregator_epochs,
                learning_rate=config.aggregator_learning_rate,
                seed=config.seed,
            )
            entry.update(real_samples=config.real_samples, learned=fit.learned)
            print(
                f"Aggregator {config.aggregator}: {fit.accuracy:.1%} of "
                f"{fit.held_out} held-out samples, the mean {fit.mean_accuracy:.1%}; "
                + (f"epoch {fit.epoch} chosen." if fit.learned else "the mean stays.")
            )
        _save(aggregator, workdir.aggregator)
        spec = assembly.spec
        predictor = build_predictor(student, aggregator, spec.mean, spec.std)
        _save(predictor, workdir.predictor)
        self.results.record("aggregator", entry)

    def evaluate(self) -> None:
        """Measures teachers, student and predictor on the evaluation split."""
        assembly, workdir = self.assembly, self.workdir
        student = assembly.load(workdir.student, "distill")
        predictor = assembly.load(workdir.predictor, "fit_aggregator")
        pixels, labels = assembly.evaluation_pixels
        images = assembly.spec.normalise(pixels).astype("float32")

        def share(logits, truth=labels):
            return None if truth is None else float(np.mean(logits.argmax(-1) == truth))

        entries, teacher_logits = [], []
        for file, teacher in zip(assembly.teacher_files(), assembly.teachers.teachers):
            logits = teacher.model.predict(images, batch_size=256, verbose=0)
            teacher_logits.append(logits)
            entries.append(
                {
                    "file": str(file),
                    "parameters": _parameters(teacher.model),
                    "accuracy": share(logits),
                }
            )
        ensemble = np.mean(teacher_logits, axis=0)
        headers = student.predict(images, batch_size=256, verbose=0)["logits"]
        mean = headers.mean(axis=1)
        self.results.record("teachers", entries)
        self.results.record(
            "teacher_ensemble",
            {
                "parameters": sum(entry["parameters"] for entry in entries),
                "accuracy": share(ensemble),
            },
        )
        self.results.record(
            "student",
            {
                "parameters": _parameters(student),
                "accuracy": share(mean),
                "header_accuracy": [
                    share(headers[:, header]) for header in range(headers.shape[1])
                ],
                "agreement": share(mean, ensemble.argmax(-1)),
            },
        )
        probabilities = predictor.predict(pixels, batch_size=256, verbose=0)
        self.results.record(
            "aggregator",
            {"accuracy": share(probabilities), "mean_accuracy": share(mean)},
        )

    def export(self) -> None:
        """Writes the predictor in every format asked for, and checks each file."""
        assembly, workdir = self.assembly, self.workdir
        predictor = assembly.load(workdir.predictor, "fit_aggregator")
        entries = []
        if self.config.export_formats:
            invented = assembly.invented_pixels(_CALIBRATION, CALIBRATION_SEED)
            files = export_predictor(
                predictor,
                self.config.export_formats,
                workdir.export,
                calibration_pixels(invented),
            )
            pixels, labels = assembly.evaluation_pixels
            entries = [
                check_export(name, path, predictor, pixels, labels)
                for name, path in files.items()
            ]
        self.results.record("exports", entries)

    def run(self, step: str) -> None:
        """Runs one step and notes how long it took."""
        print(f"-- {step.replace('_', ' ')}", flush=True)
        start = time.monotonic()
        self.results.begin(step)
        getattr(self, step)()
        if step in ("train_teachers", "fit_aggregator", "export"):
            # Distilling counts for itself: time before an interruption, too.
            seconds = round(time.monotonic() - start, 2)
            self.results.record("seconds", {step: seconds})


def _parameters(model: keras.Model) -> int:
    """Trainable parameters as papers count them, also of frozen networks."""
    statistics = ("moving_mean", "moving_variance")
    counted = [w.shape for w in model.weights if w.name not in statistics]
    return int(sum(np.prod(shape) for shape in counted))


def _save(model: keras.Model, path) -> None:
    """Saves under another name first: a file that is there is complete."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name("." + path.name)
    model.save(temporary)
    os.replace(temporary, path)
