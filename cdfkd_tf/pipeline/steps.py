"""What each step of a run does, and the objects that the steps share."""

import functools
import os
import pathlib
import shutil
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import keras
import numpy as np
import tensorflow as tf

import cdfkd_tf
from cdfkd_tf import evaluation
from cdfkd_tf.config import RunConfig
from cdfkd_tf.data.images import RealImages
from cdfkd_tf.data.noise import watching_noise
from cdfkd_tf.data.transfer_set import kinds_of, mixture, read_unlabelled
from cdfkd_tf.distillation import build
from cdfkd_tf.distillation.fit_aggregator import choose_aggregator, student_outputs
from cdfkd_tf.distillation.image_source import Sampler
from cdfkd_tf.distillation.methods import IMAGES
from cdfkd_tf.distillation.run import distill, saving_options
from cdfkd_tf.distillation.schedule import with_student_size
from cdfkd_tf.distillation.train_teachers import train_classifier
from cdfkd_tf.errors import RequestError
from cdfkd_tf.export import run as export_run
from cdfkd_tf.export.costs import teacher_costs
from cdfkd_tf.export.model_card import write_model_card
from cdfkd_tf.networks.aggregators import (
    AGGREGATORS,
    aggregator_kind,
    build_aggregator,
    build_predictor,
)
from cdfkd_tf.networks.classifiers import build_classifier
from cdfkd_tf.networks.loading import load_classifier, load_network
from cdfkd_tf.networks.statistics import reestimate
from cdfkd_tf.runtime.files import replacing
from cdfkd_tf.runtime.multi_worker import WorkerGroup
from cdfkd_tf.runtime.precision import dtype_policy, make_deterministic, memory_advice
from cdfkd_tf.teachers.build import build_teachers, find_spec, teacher_files
from cdfkd_tf.teachers.class_names import map_of, told_classes, union_of
from cdfkd_tf.teachers.ensemble import TeacherEnsemble
from cdfkd_tf.teachers.reading import LabelledImages
from cdfkd_tf.workdir import Results, Workdir, read_results, write_json

# Offsets that keep the draws of one run apart.
_TEACHER_SEEDS = 1000  # per teacher
_PICTURE_SEED, _EVALUATION_SEED = 1, 3
_AGGREGATOR_SEED = 5
_GENERATED = 512  # images to measure on where there are no real ones
_FOR_READING = 256  # labelled images on which teachers are tried


class Run:
    """The objects of one run in this process, each made once and on demand.

    Args:
        config: the request.
        models: the teachers, where they are in memory.
        callbacks: for the distillation, besides our own.
        verbose: as in `keras.Model.fit`; None: as the terminal is.
        workers: that share the distillation; None: this process alone.

    Attributes:
        workdir: the run's folder.
        results: what is measured.
        networks: `student`, `generator`, `predictor` as far as they are made here.

    Raises:
        RequestError: what can be refused before a step that takes time: a name that
            no table holds, a generator that cannot make the data set's images, a
            method without the data it needs.
    """

    def __init__(
        self,
        config: RunConfig,
        models: Sequence[keras.Model] | None = None,
        callbacks: Sequence[keras.callbacks.Callback] = (),
        verbose: int | str | None = None,
        workers: WorkerGroup | None = None,
    ):
        make_deterministic(config.deterministic)
        self.config, self.workdir, self.models = config, Workdir(config.workdir), models
        self.callbacks, self.workers = callbacks, workers
        self.verbose = (1 if sys.stdout.isatty() else 2) if verbose is None else verbose
        self.networks: dict[str, keras.Model] = {}
        self._sized: RunConfig | None = None
        self.method = build.build_method(config)
        if "real" in self.method.images and config.evaluation_split == "none":
            raise RequestError(
                f"--method={config.method} learns from real images, and "
                "--evaluation_split=none or --dataset=none reads none. Choose a method "
                "with a generator, or images to read."
            )
        self.told = None
        if config.teachers:
            flag, load = config.teacher_classes, lambda: self.loaded
            self.told = told_classes(flag, config.teachers, load)
        self.spec = find_spec(config, lambda: self.loaded, self.told)
        self.real_images = RealImages(
            self.spec, config.data_dir, config.evaluation_split
        )
        self.results = Results(
            self.workdir.results,
            {
                "dataset": config.dataset,
                "method": config.method,
                "images": "+".join(self.method.images),
                "learned_from": " and ".join(map(IMAGES.get, self.method.images)),
                "seed": config.seed,
                "versions": _versions(),
            },
            {"kind": config.aggregator, "labelled_samples": config.labelled_samples},
        )

    @functools.cached_property
    def can_measure(self) -> bool:
        """Whether there are real labelled images to measure on."""
        return self.config.evaluation_split != "none" and self.real_images.can_measure

    @functools.cached_property
    def class_names(self) -> list[str]:
        """One per class: as the data set has them if it may be read, else numbers."""
        known = self.spec.class_names
        if not known and self.can_measure:
            known = self.real_images.class_names
        union = union_of(self.told or ())
        if not known and len(union) == self.spec.num_classes:
            known = union
        return list(known) or [str(label) for label in range(self.spec.num_classes)]

    @property
    def reads_images(self) -> bool:
        """Whether distilling, the aggregator or measuring need real images."""
        config = self.config
        return bool(
            config.evaluation_split != "none"
            or config.labelled_samples
            or "real" in self.method.images
        )

    @functools.cached_property
    def loaded(self) -> Sequence[keras.Model] | None:
        """The given teachers, from their files if they are not in memory."""
        if self.models is not None or not self.config.teachers:
            return self.models
        files = teacher_files(self.config, self.workdir)
        return [load_classifier(file) for file in files]

    @functools.cached_property
    def teachers(self) -> TeacherEnsemble:
        """The frozen `TeacherEnsemble`.

        Raises:
            RequestError: if a file is no teacher for this data set.
        """
        config = self.config
        names = config.teachers or teacher_files(config, self.workdir)
        class_map = self.told and map_of(self.told, self.class_names)
        return build_teachers(
            config, self.spec, names, self.loaded, self._labelled_images, class_map
        )

    def _labelled_images(self) -> LabelledImages | None:
        """Real images to try teachers on, if such are read anyway."""
        config = self.config
        if config.evaluation_split == "none" or not config.evaluate_every:
            return None
        images = self.real_images.some_labelled(_FOR_READING, config.seed)
        return images and LabelledImages(*images)

    def release(self) -> None:
        """Gives teachers in memory back as they were before."""
        if "teachers" in self.__dict__:
            self.teachers.release()

    def sized(self, teachers: TeacherEnsemble) -> RunConfig:
        """The request with the student's width, where teachers decide it."""
        if self._sized is None:
            self._sized = with_student_size(self.config, self.spec, teachers)
        return self._sized

    def network(self, name: str, step: str) -> keras.Model:
        """`student`, `generator` or `predictor`, from memory or from its file.

        Args:
            name: of the network.
            step: that makes it.

        Raises:
            RequestError: if it is not there or cannot be read.
        """
        if name not in self.networks:
            path = getattr(self.workdir, name)
            if not path.is_file():
                raise RequestError(f"There is no {path}. Run --action={step} first.")
            try:
                self.networks[name] = load_network(path, "network")
            except RequestError as error:
                raise RequestError(
                    f"{error} Remove it and run --action={step} again."
                ) from error
        return self.networks[name]

    def keep(self, name: str, network: keras.Model) -> None:
        """Writes a network whole or not at all, and has it at hand."""
        self.networks[name] = network
        save_network(network, getattr(self.workdir, name))

    def take_statistics(self, student: keras.Model, images: np.ndarray) -> int:
        """Gives the student the BatchNormalization statistics of some images.

        Args:
            student: changed in place.
            images: `(n, height, width, channels)` in [0, 1].

        Returns:
            n.
        """
        normalised = self.spec.normalise(images).astype("float32")
        count = reestimate(student, normalised, self.config.batch_size)
        print(f"{count} BatchNormalizations by {len(images)} unlabelled images.")
        return len(images)

    def noise(self, count: int, seed: int) -> np.ndarray:
        """`(count, Z)` latents for looking, not for learning."""
        width = self.network("generator", "distill").input_shape[-1]
        return watching_noise(count, width, [self.config.seed, seed])

    def unlabelled_images(self, count: int, seed: int) -> np.ndarray:
        """All `unlabelled_batches`, `(count, height, width, channels)`."""
        return np.concatenate(list(self.unlabelled_batches(count, seed)))

    def unlabelled_batches(self, count: int, seed: int) -> Iterator[np.ndarray]:
        """Images in [0, 1] that need no labels: for calibrating, also for fitting.

        From where the method takes its own; of those by formula and from pictures,
        such that no training step saw.

        Args:
            count: how many.
            seed: of their noise or their choice; the run's seed counts too.

        Returns:
            Batches `(b, height, width, channels)`, float32, no larger than those of
            the training.

        Raises:
            RequestError: there are no such images.
        """
        config, size = self.config, self.config.batch_size
        if self.method.has_generator:
            if "sample" not in self.__dict__:
                self.sample = Sampler(self.network("generator", "distill"), size)
            for images in self.sample.batches(self.noise(count, seed)):
                images = self.spec.denormalise(images)
                yield np.clip(images, 0, 1).astype("float32")
            return
        if "real" in self.method.images:
            images = self.real_images.some_training_pixels(count, [config.seed, seed])
        else:
            kinds = kinds_of(self.method.images, config.transfer_images)
            kinds = kinds or kinds_of(["procedural"], "")
            shares = self.results.read()["quality"].get("kinds") or {}
            if set(shares) != set(kinds):  # of another version
                shares = dict.fromkeys(kinds, 1 / len(kinds))
            shape = self.spec.image_shape
            images = mixture(kinds, shares, count, shape, config.seed + seed)
        for start in range(0, len(images), size):
            part = images[start:][:size]
            yield part.astype("float32") / 255 if part.dtype == "uint8" else part

    def calibration_pool(self, count: int, seed: int) -> np.ndarray:
        """Images to calibrate integer files on, at least `count`.

        `unlabelled_batches`, and earlier generators' images if kept.

        Returns:
            `(n, height, width, channels)` in [0, 1], float32.
        """
        images = list(self.unlabelled_batches(count, seed))
        if self.method.generator and self.workdir.earlier_images.exists():
            with np.load(self.workdir.earlier_images, allow_pickle=False) as kept:
                for earlier in map(self.spec.denormalise, kept["images"]):
                    images.append(np.clip(earlier, 0, 1).astype("float32"))
        return np.concatenate(images)

    @functools.cached_property
    def evaluation_batches(
        self,
    ) -> Iterable[tuple[np.ndarray, np.ndarray | None]]:
        """Batches of images in [0, 1] to measure on, and of their labels.

        `(b, height, width, channels)` and `(b,)`, classes from 0 on.

        Can be iterated many times; batches are no larger than those of the training.
        Without real images, or with `--evaluation_split=none`, they are generated and
        the labels are None.
        """
        if self.can_measure:
            return self.real_images.evaluation_pixels(self.config.batch_size)
        return _Repeatable(
            lambda: self.unlabelled_batches(_GENERATED, _EVALUATION_SEED)
        )

    def aggregator_samples(self) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """Batches of normalised images and labels that the aggregator learns from.

        `(b, height, width, channels)` and `(b,)`, classes from 0 on. The few real
        ones; with `--labelled_samples=0` generated ones, labelled with the class that
        the teachers answer together.
        """
        config, size = self.config, self.config.batch_size
        if config.labelled_samples:
            images, labels = self.real_images.few_shot(
                config.labelled_samples, config.seed
            )
            for start in range(0, len(labels), size):
                yield images[start:][:size], labels[start:][:size]
            return
        for images in self.unlabelled_batches(_GENERATED, _AGGREGATOR_SEED):
            normalised = self.spec.normalise(images).astype("float32")
            means = self.teachers.combined(self.teachers.answers(normalised).logits)
            yield normalised, np.asarray(means).argmax(-1)

    def build_teacher(self, index: int) -> keras.Model:
        """A fresh teacher, its initial weights drawn from its own seed."""
        keras.utils.set_random_seed(self.teacher_seed(index))
        with dtype_policy(self.config.dtype_policy):
            return build_classifier(
                self.config.teacher_network,
                self.spec.image_shape,
                self.spec.num_classes,
                width=self.config.teacher_width,
            )

    def teacher_seed(self, index: int) -> int:
        """Seed of the teacher with this index."""
        return self.config.seed * _TEACHER_SEEDS + index


def _train_teachers(run: Run) -> None:
    """Trains the teachers that are missing, or links those that were given."""
    config, workdir = run.config, run.workdir
    if config.teachers:
        _link_teachers(run)
        return
    for index in range(config.num_teachers):
        file = workdir.teacher(index)
        if file.exists():
            continue
        run.real_images.write_splits(workdir.splits)
        print(f"Teacher {index + 1} of {config.num_teachers}: {config.teacher_network}")
        model = run.build_teacher(index)
        images = functools.partial(
            run.real_images.training,
            config.teacher_batch_size,
            run.teacher_seed(index),
        )
        with memory_advice(
            f"a smaller --teacher_batch_size ({config.teacher_batch_size})"
        ):
            train_classifier(
                model,
                lambda first_step, images=images: images(first_step)[0],
                steps_per_epoch=images()[1],
                epochs=config.teacher_epochs,
                learning_rate=config.teacher_learning_rate,
                milestones=config.teacher_milestones,
                checkpoints=workdir.teacher_checkpoints(index),
                saving=saving_options(config),
                verbose=run.verbose,
            )
        save_network(model, file)
        shutil.rmtree(workdir.teacher_checkpoints(index), ignore_errors=True)


def _link_teachers(run: Run) -> None:

    if run.models:
        return
    run.workdir.teachers.mkdir(parents=True, exist_ok=True)
    for index, file in enumerate(teacher_files(run.config, run.workdir)):
        link = run.workdir.teacher(index).with_suffix(file.suffix)
        if link.is_symlink():
            link.unlink()
        if not link.exists():
            os.symlink(file.resolve(), link)


def _distill(run: Run) -> None:
    """Trains the student, and the generator if there is one, against the teachers."""
    started, workers = time.monotonic(), run.workers
    config, rule = run.sized(run.teachers), run.teachers.rule
    if len(run.teachers) > 1:
        print(f"Teachers' answers become one by {rule}.")
        print(rule.table(), end="")
    strategy = workers.strategy if workers else None
    distiller = build.build_distiller(
        config, run.spec, run.teachers, run.real_images, strategy
    )
    watched = run.can_measure and config.evaluate_every
    networks, seconds, quality = distill(
        distiller,
        config,
        run.spec,
        run.workdir,
        evaluation=run.real_images.evaluation(config.batch_size) if watched else None,
        verbose=run.verbose,
        callbacks=run.callbacks,
        workers=workers,
        started=started,
    )
    if workers and not workers.cluster.is_chief:
        return
    if config.bn_images:
        images = read_unlabelled(config.bn_images, run.spec.image_shape)
        quality["bn_images"] = run.take_statistics(networks["student"], images)
    for name, network in networks.items():
        run.keep(name, network)
    run.results.record("seconds", seconds)
    run.results.record("quality", quality)


def _fit_aggregator(run: Run) -> None:
    """Learns how to weigh the headers, if asked to, and builds the predictor."""
    config, spec, student = run.config, run.spec, run.network("student", "distill")
    keras.utils.set_random_seed(config.seed)
    rule = run.teachers.rule
    kind = aggregator_kind(config.aggregator, student, rule)
    entry = {"kind": kind, "labelled_samples": 0, "learned": False}
    if kind in AGGREGATORS and not AGGREGATORS[kind].learned:
        aggregator = build_aggregator(kind, student, rule)
    else:
        if config.labelled_samples:
            run.real_images.write_few_shot(
                run.workdir.splits, config.labelled_samples, config.seed
            )
        aggregator, (fit, *others) = choose_aggregator(
            kind,
            student,
            rule,
            *student_outputs(student, run.aggregator_samples()),
            epochs=config.aggregator_epochs,
            learning_rate=config.aggregator_learning_rate,
            seed=config.seed,
        )
        entry.update(
            kind=fit.kind,
            labelled_samples=config.labelled_samples,
            learned=fit.learned,
            cross_validated_accuracy=fit.accuracy,
            cross_validated_mean_accuracy=fit.mean_accuracy,
            standard_error=fit.standard_error,
        )
        for each in (fit, *others):
            print(f"Aggregator {each}")
    run.keep("predictor", build_predictor(student, aggregator, spec.mean, spec.std))
    run.results.record("aggregator", entry)


def _evaluate(run: Run) -> None:
    """Measures teachers, student and predictor on real or generated images."""
    student = run.network("student", "distill")
    predictor = run.network("predictor", "fit_aggregator")
    if run.can_measure:
        run.real_images.write_splits(run.workdir.splits)
    outputs, labels = evaluation.predict_all(
        run.teachers, student, predictor, run.spec, run.evaluation_batches
    )
    measured = evaluation.compute_metrics(outputs, labels, run.teachers, student)
    known = run.workdir.networks()
    knows = run.teachers.class_map.columns
    for entry, columns in zip(measured["teachers"], knows):
        own = os.path.relpath(entry["file"], run.workdir.path)
        entry["classes"] = [run.class_names[c] for c in columns]
        entry["fingerprint"] = known.get(entry["file"]) or known.get(own)
    evaluation.warn_of_unknown_classes(outputs, labels, run.teachers, run.class_names)
    for key, value in measured.items():
        run.results.record(key, value)
    generated = None
    if "real" not in run.method.images:
        generated = run.unlabelled_batches(_GENERATED, _PICTURE_SEED)
    observed = evaluation.observe(
        predictor,
        outputs,
        labels,
        class_names=run.class_names,
        batches=run.evaluation_batches,
        generated=generated,
    )
    write_json(run.workdir.observations, observed)


def _export(run: Run) -> None:
    """Writes the predictor in every format asked for, and checks each file."""
    config, predictor = run.config, run.network("predictor", "fit_aggregator")
    description = description_of(run)
    entries = export_run.export(
        predictor,
        config.export_formats,
        run.workdir.export,
        batches=run.evaluation_batches,
        calibration_pool=run.calibration_pool,
        description=description,
        int8_finetune_steps=config.int8_finetune_steps,
        seed=config.seed,
    )
    run.results.record("exports", entries)
    if entries:
        results = read_results(run.workdir.results)
        write_model_card(run.workdir.export, description, results)
    costs = []
    if entries:
        try:
            costs = teacher_costs(run.teachers.teachers)
        except RequestError:  # exported elsewhere, without the teachers
            costs = []
    run.results.record("teacher_costs", costs)


def description_of(run: Run) -> dict[str, Any]:
    """What every exported file of a run carries about itself."""
    config, spec = run.config, run.spec
    return export_run.describe(
        spec, run.class_names, method=config.method, student=config.student
    )


class _Repeatable:
    """Batches that are made anew each time they are gone through, without labels."""

    def __init__(self, batches: Callable[[], Iterator[np.ndarray]]):
        self._batches = batches

    def __iter__(self) -> Iterator[tuple[np.ndarray, None]]:
        return ((images, None) for images in self._batches())


DO: dict[str, Callable[[Run], None]] = {
    "train_teachers": _train_teachers,
    "distill": _distill,
    "fit_aggregator": _fit_aggregator,
    "evaluate": _evaluate,
    "export": _export,
}


def save_network(model: keras.Model, path: pathlib.Path) -> None:
    """Writes a network whole or not at all."""
    with replacing(path) as temporary:
        model.save(temporary)


def _versions() -> dict[str, str]:

    return {
        "cdfkd_tf": cdfkd_tf.__version__,
        "tensorflow": tf.__version__,
        "keras": keras.version(),
    }
