"""Names become objects here: what a `RunConfig` asks for, built once and on demand."""

import dataclasses
import functools
import pathlib
from collections.abc import Iterable, Sequence

import keras
import numpy as np
import tensorflow as tf

from cdfkd_tf.config import RunConfig
from cdfkd_tf.data.images import RealImages
from cdfkd_tf.data.specs import DatasetSpec
from cdfkd_tf.distillation.methods import METHODS, Method, with_overrides
from cdfkd_tf.errors import RequestError, lookup
from cdfkd_tf.networks.backbones import BACKBONES
from cdfkd_tf.networks.classifiers import build_classifier
from cdfkd_tf.networks.external_backbones import find_backbone
from cdfkd_tf.networks.generators import build_generator
from cdfkd_tf.networks.loading import load_network
from cdfkd_tf.networks.students import build_student
from cdfkd_tf.runtime.precision import dtype_policy
from cdfkd_tf.teachers.build import build_teachers, find_spec, teacher_files
from cdfkd_tf.teachers.ensemble import TeacherEnsemble
from cdfkd_tf.workdir import Workdir

# Offsets that keep the draws of one run apart.
_TEACHER_SEEDS = 1000  # per teacher
SAMPLE_SEED = 1
CALIBRATION_SEED = 2
_EVALUATION_SEED = 3
HELD_OUT_SEED = 4
AGGREGATOR_SEED = 5
_SCALE_SEED = 6
_INVENTED = 512  # images to measure on where there are no real ones
_MEASURED_AT_ONCE = 256


class Assembly:
    """Everything one run is made of.

    Args:
        config: the request.
        workdir: its folder.
        models: the teachers, where they are in memory; `config.teachers` then names
            them.

    Raises:
        RequestError: a name that no table holds, a generator that cannot make the
            data set's images, a method without the data it needs: found before any
            teacher is trained.
    """

    def __init__(
        self,
        config: RunConfig,
        workdir: Workdir,
        models: Sequence[keras.Model] | None = None,
    ):
        self.config, self.workdir, self._models = config, workdir, models
        self.spec: DatasetSpec = find_spec(config, models)
        self.images = RealImages(self.spec, config.data_dir, config.evaluation_split)
        self._backbone = find_backbone(config.student, self.spec, config.student_taps)
        if not config.teachers:
            lookup(BACKBONES, config.teacher, "network")
        if self.method.generator:
            self.build_generator()
        elif config.evaluation_split == "none":
            raise RequestError(
                f"--method={config.method} learns from real images, and "
                "--evaluation_split=none or --dataset=none reads none. Choose a method "
                "with a generator, or images to read."
            )

    @functools.cached_property
    def can_measure(self) -> bool:
        """Whether there are real labelled images to measure on."""
        return self.config.evaluation_split != "none" and self.images.can_measure

    @functools.cached_property
    def class_names(self) -> list[str]:
        """One per class: as the data set tells if it may be read, else numbers."""
        known = self.spec.class_names
        if not known and self.can_measure:
            known = self.images.class_names
        return list(known) or [str(label) for label in range(self.spec.num_classes)]

    @property
    def asked_terms(self) -> dict[str, float]:
        """Terms whose weights the request gives, as `student_feature`."""
        players = ("student", "generator")
        return {
            name.removesuffix("_weight"): value
            for name, value in vars(self.config).items()
            if name.startswith(players)
            and name.endswith("_weight")
            and value is not None
        }

    @functools.cached_property
    def method(self) -> Method:
        """The method's row with the weights of the command line."""
        method = with_overrides(METHODS[self.config.method], **self.asked_terms)
        if self.config.temperature != 1 and method.divergence != "kl":
            raise RequestError(
                f"--temperature={self.config.temperature} softens softmaxes, and "
                f"--method={self.config.method} compares logits. Leave it out."
            )
        return dataclasses.replace(method, temperature=self.config.temperature)

    @property
    def rounds(self) -> int:
        """Batches that one iteration takes: the student's, then the generator's."""
        return self.config.student_rounds + bool(self.method.generator)

    @functools.cached_property
    def evaluation_batches(self) -> Iterable[tuple[np.ndarray, np.ndarray | None]]:
        """Batches of images in [0, 1] to measure on, and of their labels.

        Can be gone through many times. Without real images, or with
        `--evaluation_split=none`, they are invented and the labels are None.
        """
        if self.can_measure:
            return self.images.evaluation_pixels(_MEASURED_AT_ONCE)
        pixels = self.unlabelled_pixels(_INVENTED, _EVALUATION_SEED)
        starts = range(0, _INVENTED, _MEASURED_AT_ONCE)
        return [(pixels[start:][:_MEASURED_AT_ONCE], None) for start in starts]

    def unlabelled_pixels(self, count: int, seed: int) -> np.ndarray:
        """Images in [0, 1] that need no labels: for calibrating, also for fitting.

        The trained generator's; where the method has none, real training images.

        Args:
            count: how many.
            seed: of their noise or their choice; the run's seed counts too.
        """
        if not self.method.generator:
            return self.images.some_training_pixels(count, [self.config.seed, seed])
        generator = self.load(self.workdir.generator, "distill")
        images = np.asarray(generator(self.noise(count, seed), training=True))
        return np.clip(self.spec.denormalise(images), 0, 1).astype("float32")

    def aggregator_samples(self) -> tuple[np.ndarray, np.ndarray]:
        """Normalised images and labels that the aggregator learns from.

        The few real ones; with `--real_samples=0` invented ones, labelled with the
        class of the teachers' mean.
        """
        config = self.config
        if config.real_samples:
            return self.images.few_shot(config.real_samples, config.seed)
        pixels = self.unlabelled_pixels(_INVENTED, AGGREGATOR_SEED)
        images = self.spec.normalise(pixels).astype("float32")
        batches = np.array_split(images, max(1, len(images) // _MEASURED_AT_ONCE))
        logits = [np.asarray(self.ask_ensemble(batch)) for batch in batches]
        return images, np.concatenate(logits).argmax(-1)

    def teacher_files(self) -> list[pathlib.Path]:
        """The teachers' files, given or trained; see `teaching.teacher_files`."""
        return teacher_files(self.config, self.workdir)

    @functools.cached_property
    def teachers(self) -> TeacherEnsemble:
        """The teachers, loaded, frozen, and on one scale if asked to.

        Raises:
            RequestError: if a file is no teacher for this data set.
        """
        names = self.config.teachers if self._models else self.teacher_files()
        teachers = build_teachers(self.config, self.spec, names, self._models)
        if self.config.calibrate_teachers:
            keras.utils.set_random_seed(self.config.seed)
            generator = self.build_generator()
            noise = self.noise(_MEASURED_AT_ONCE, _SCALE_SEED)
            teachers.calibrate(generator(noise, training=True))
        return teachers

    def ask_ensemble(self, images: tf.Tensor) -> tf.Tensor:
        """The teachers' mean logits `(B, C)` for normalised images."""
        return self.teachers.mean_logits(self.teachers(images).logits)

    def build_teacher(self, index: int) -> keras.Model:
        """A fresh teacher, its initial weights drawn from its own seed."""
        keras.utils.set_random_seed(self.teacher_seed(index))
        with dtype_policy(self.config.dtype_policy):
            return build_classifier(
                self.config.teacher,
                self.spec.image_shape,
                self.spec.num_classes,
                width=self.config.teacher_width,
            )

    def teacher_seed(self, index: int) -> int:
        """Seed of the teacher with this index."""
        return self.config.seed * _TEACHER_SEEDS + index

    def build_student(self) -> keras.Model:
        """A fresh student, its headers shared as method and request say."""
        config, spec, num_teachers = self.config, self.spec, len(self.teachers)
        sharing = config.student_headers or self.method.sharing
        return build_student(
            self._backbone,
            spec.image_shape,
            spec.num_classes,
            1 if sharing == "single" else num_teachers,
            sharing=sharing,
            width=config.student_width,
        )

    def build_generator(self) -> keras.Model:
        """A fresh generator."""
        config, spec = self.config, self.spec
        return build_generator(
            config.generator,
            spec.image_shape,
            config.latent_size,
            standardised=spec.standardised,
            width=config.generator_width,
        )

    def noise(self, count: int, seed: int) -> np.ndarray:
        """`(count, Z)` latents for looking, not for learning."""
        pair = [self.config.seed, seed]
        shape = (count, self.config.latent_size)
        # The stream of training noise counts from 0 on; this one stands apart.
        rng = np.random.default_rng([2**32 - 1, *pair])
        return rng.standard_normal(shape).astype("float32")

    def load(self, path: pathlib.Path, step: str) -> keras.Model:
        """A network that an earlier step left.

        Raises:
            RequestError: if it is not there or cannot be read.
        """
        if not path.is_file():
            raise RequestError(f"There is no {path}. Run --action={step} first.")
        try:
            return load_network(path, "network")
        except RequestError as error:
            raise RequestError(
                f"{error} Remove it and run --action={step} again."
            ) from error
