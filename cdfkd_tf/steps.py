"""What each step of a run does. `runs.py` decides which of them are needed."""

import collections
import os
import sys
import time

import keras
import numpy as np
import tensorflow as tf

import cdfkd_tf
from cdfkd_tf.assembly import Assembly, make_deterministic
from cdfkd_tf.config import RunConfig
from cdfkd_tf.distillation import distill
from cdfkd_tf.export.step import cost_of_teachers, export_run
from cdfkd_tf.files import replacing
from cdfkd_tf.models.aggregation import build_aggregator, build_predictor
from cdfkd_tf.report.observations import observe
from cdfkd_tf.results import Results
from cdfkd_tf.training.aggregation import fit_aggregator
from cdfkd_tf.training.classifier import train_classifier
from cdfkd_tf.workdir import Workdir


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
            assembly.images.write_splits(self.workdir.splits)
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
        networks, seconds = distill(self.assembly, self.verbose)
        for name, network in networks.items():
            _save(network, getattr(self.workdir, name))
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
        teachers = [teacher.model for teacher in assembly.teachers.teachers]
        if self.config.evaluation_split != "none":
            assembly.images.write_splits(workdir.splits)
        answers, truth = self._ask(teachers, student, predictor)

        def share(name, against=truth):
            if against is None:
                return None
            return float(np.mean(answers[name].argmax(-1) == against))

        entries = [
            {
                "file": str(file),
                "parameters": _parameters(model),
                "accuracy": share(("teacher", index)),
            }
            for index, (file, model) in enumerate(
                zip(assembly.teacher_files(), teachers)
            )
        ]
        self.results.record("teachers", entries)
        self.results.record(
            "teacher_ensemble",
            {
                "parameters": sum(entry["parameters"] for entry in entries),
                "accuracy": share("ensemble"),
            },
        )
        num_headers = student.output["logits"].shape[1]
        self.results.record(
            "student",
            {
                "parameters": _parameters(student),
                "accuracy": share("student"),
                "header_accuracy": [
                    share(("header", header)) for header in range(num_headers)
                ],
                "agreement": share("student", answers["ensemble"].argmax(-1)),
            },
        )
        self.results.record(
            "aggregator",
            {"accuracy": share("predictor"), "mean_accuracy": share("student")},
        )
        observe(assembly, predictor, answers, truth)

    def _ask(self, teachers, student, predictor):
        """Everybody's logits on the evaluation images, by name, and the labels."""
        answers, labels = collections.defaultdict(list), []
        for pixels, truth in self.assembly.evaluation_batches:
            images = self.assembly.spec.normalise(pixels).astype("float32")
            said = [model.predict_on_batch(images) for model in teachers]
            headers = student.predict_on_batch(images)["logits"]
            for index, logits in enumerate(said):
                answers["teacher", index].append(logits)
            for header in range(headers.shape[1]):
                answers["header", header].append(headers[:, header])
            answers["ensemble"].append(np.mean(said, axis=0))
            answers["student"].append(headers.mean(axis=1))
            answers["predictor"].append(predictor.predict_on_batch(pixels))
            labels.append(truth)
        joined = {name: np.concatenate(parts) for name, parts in answers.items()}
        return joined, None if labels[0] is None else np.concatenate(labels)

    def export(self) -> None:
        """Writes the predictor in every format asked for, and checks each file."""
        entries = export_run(self.config, self.assembly, self.workdir)
        self.results.record("exports", entries)
        costs = cost_of_teachers(self.assembly) if entries else []
        self.results.record("teacher_costs", costs)

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
    with replacing(path) as temporary:
        model.save(temporary)
