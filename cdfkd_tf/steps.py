"""What each step of a run does. `pipeline.py` decides which of them are needed."""

import functools
import os
import pathlib
import shutil
import sys
import time
from collections.abc import Sequence

import keras
import tensorflow as tf

import cdfkd_tf
from cdfkd_tf.assembly import Assembly
from cdfkd_tf.config import RunConfig
from cdfkd_tf.distillation.fit_aggregator import fit_aggregator
from cdfkd_tf.distillation.run import distill, saving_options
from cdfkd_tf.distillation.train_teachers import train_classifier
from cdfkd_tf.errors import RequestError
from cdfkd_tf.evaluation import ask, measure
from cdfkd_tf.export.costs import teacher_costs
from cdfkd_tf.export.run import export
from cdfkd_tf.networks.aggregators import build_aggregator, build_predictor
from cdfkd_tf.report.observations import observe
from cdfkd_tf.results import Results
from cdfkd_tf.runtime.files import replacing
from cdfkd_tf.runtime.multi_worker import Hosts
from cdfkd_tf.runtime.precision import make_deterministic, memory_advice
from cdfkd_tf.workdir import Workdir


class Steps:
    """The steps of one run, in one process.

    Args:
        config: the request.
        workdir: its folder.
        callbacks: for the distillation, besides our own.
        hosts: that share the distillation; None: this process alone.
    """

    def __init__(
        self,
        config: RunConfig,
        workdir: Workdir,
        callbacks: Sequence[keras.callbacks.Callback] = (),
        hosts: Hosts | None = None,
    ):
        make_deterministic(config.deterministic)
        self._hosts = hosts
        self.config, self.workdir, self._callbacks = config, workdir, callbacks
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
            assembly.images.write_splits(self.workdir.splits)
            print(f"Teacher {index + 1} of {config.num_teachers}: {config.teacher}")
            model = assembly.build_teacher(index)
            images = functools.partial(
                assembly.images.training,
                config.teacher_batch_size,
                assembly.teacher_seed(index),
            )
            advice = f"a smaller --teacher_batch_size ({config.teacher_batch_size})"
            with memory_advice(advice):
                train_classifier(
                    model,
                    lambda first_step, images=images: images(first_step)[0],
                    steps_per_epoch=images()[1],
                    epochs=config.teacher_epochs,
                    learning_rate=config.teacher_learning_rate,
                    milestones=config.teacher_milestones,
                    checkpoints=self.workdir.teacher_checkpoints(index),
                    saving=saving_options(config),
                    verbose=self.verbose,
                )
            save_network(model, file)
            shutil.rmtree(self.workdir.teacher_checkpoints(index), ignore_errors=True)

    def _link_teachers(self) -> None:
        for teacher in self.assembly.teachers.teachers:  # loads, and so checks, all
            print(f"Teacher {teacher}")
        self.workdir.teachers.mkdir(parents=True, exist_ok=True)
        for index, file in enumerate(self.assembly.teacher_files()):
            link = self.workdir.teacher(index).with_suffix(file.suffix)
            if link.is_symlink():
                link.unlink()
            if not link.exists():
                os.symlink(file.resolve(), link)

    def distill(self) -> None:
        """Trains student and generator against the teachers, without any image."""
        networks, seconds = distill(
            self.assembly, self.verbose, self._callbacks, self._hosts
        )
        for name, network in networks.items():
            save_network(network, getattr(self.workdir, name))
        self.results.record("seconds", seconds)

    def fit_aggregator(self) -> None:
        """Learns how to weigh the headers, if asked to, and builds the predictor."""
        config, assembly, workdir = self.config, self.assembly, self.workdir
        student = assembly.load(workdir.student, "distill")
        keras.utils.set_random_seed(config.seed)
        # One header leaves nothing to weigh.
        several = student.output["logits"].shape[1] > 1
        kind = config.aggregator if several else "mean"
        aggregator = build_aggregator(kind, student)
        entry = {"kind": kind, "real_samples": 0, "learned": False}
        if kind != "mean":
            if config.real_samples:
                assembly.images.write_few_shot(
                    workdir.splits, config.real_samples, config.seed
                )
            fit = fit_aggregator(
                aggregator,
                student,
                *assembly.aggregator_samples(),
                epochs=config.aggregator_epochs,
                learning_rate=config.aggregator_learning_rate,
                seed=config.seed,
            )
            entry.update(real_samples=config.real_samples, learned=fit.learned)
            print(
                f"Aggregator {kind}: {fit.accuracy:.1%} of "
                f"{fit.held_out} held-out samples, the mean {fit.mean_accuracy:.1%}; "
                + (f"epoch {fit.epoch} chosen." if fit.learned else "the mean stays.")
            )
        save_network(aggregator, workdir.aggregator)
        spec = assembly.spec
        predictor = build_predictor(student, aggregator, spec.mean, spec.std)
        save_network(predictor, workdir.predictor)
        self.results.record("aggregator", entry)

    def evaluate(self) -> None:
        """Measures teachers, student and predictor on the evaluation split."""
        assembly, workdir = self.assembly, self.workdir
        student = assembly.load(workdir.student, "distill")
        predictor = assembly.load(workdir.predictor, "fit_aggregator")
        if assembly.can_measure:
            assembly.images.write_splits(workdir.splits)
        answers, truth = ask(
            assembly.teachers,
            student,
            predictor,
            assembly.spec,
            assembly.evaluation_batches,
        )
        measured = measure(answers, truth, assembly.teachers, student)
        for key, value in measured.items():
            self.results.record(key, value)
        observe(assembly, predictor, answers, truth)

    def export(self) -> None:
        """Writes the predictor in every format asked for, and checks each file."""
        predictor = self.assembly.load(self.workdir.predictor, "fit_aggregator")
        entries = export(
            predictor,
            self.config.export_formats,
            self.workdir.export,
            **self.assembly.export_arguments(),
        )
        self.results.record("exports", entries)
        self.results.record("teacher_costs", self._teacher_costs() if entries else [])

    def _teacher_costs(self) -> list:
        try:
            return teacher_costs(self.assembly.teachers.teachers)
        except RequestError:  # exported elsewhere, without the teachers
            return []

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


def save_network(model: keras.Model, path: pathlib.Path) -> None:
    """Writes a network whole or not at all."""
    with replacing(path) as temporary:
        model.save(temporary)
