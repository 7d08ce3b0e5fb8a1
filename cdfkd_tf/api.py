"""The same from Python: `cdfkd_tf.distill(teachers)` for notebooks and programs."""

import pathlib
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from cdfkd_tf import evaluation
from cdfkd_tf.config import RunConfig, check_names
from cdfkd_tf.distillation.fit_aggregator import AggregatorFit, fit_aggregator
from cdfkd_tf.errors import RequestError
from cdfkd_tf.export import run as export_run
from cdfkd_tf.networks.aggregators import build_aggregator, build_predictor
from cdfkd_tf.networks.loading import check_finite, load_classifier
from cdfkd_tf.pipeline.run import perform
from cdfkd_tf.pipeline.steps import Run, description_of
from cdfkd_tf.runtime.precision import global_state_restored
from cdfkd_tf.workdir import Workdir, read_history

Images = np.ndarray | tf.data.Dataset
Teacher = keras.Model | str | pathlib.Path
_FILES = (str, pathlib.Path)
_AT_ONCE = 256


class Distillation:
    """What `distill` made.

    Attributes:
        student: normalised images to `{"logits": (B, H, C), "features": (B, H, W)}`.
        generator: noise `(B, Z)` to normalised images; None with `method="kd"`.
        predictor: images in [0, 1] `(B, height, width, channels)` to probabilities
            `(B, C)`; changed by `fit_aggregator`.
        history: name -> its value after each epoch.
        config: every option of the run.
        workdir: the run's folder, as the command line leaves it.
    """

    def __init__(self, run: Run, temporary: tempfile.TemporaryDirectory | None):
        self.config, self.workdir = run.config, run.workdir.path
        self._run, self._temporary = run, temporary  # removed with this object
        self.student = run.network("student", "distill")
        self.generator = None
        if run.method.generator:
            self.generator = run.network("generator", "distill")
        self.predictor = run.network("predictor", "fit_aggregator")
        self.history = {
            name: [value for value in values if value is not None]
            for name, values in read_history(run.workdir.history).items()
        }

    def evaluate(self, x: Images, y: np.ndarray | None = None) -> dict[str, Any]:
        """Measures teachers, student and predictor on images with or without labels.

        Args:
            x: images in [0, 1], or whole numbers 0..255, `(n, height, width[, ch])`;
                or a dataset of batches of images, or of `(images, labels)`.
            y: labels `(n,)`; None: accuracies are None, agreement is measured.

        Returns:
            `teachers`, `teacher_ensemble`, `student`, `aggregator` as in results.json.

        Raises:
            RequestError: no images, or images or labels of another form.
        """
        spec, teachers = self._run.spec, self._run.teachers
        outputs, labels = evaluation.predict_all(
            teachers,
            self.student,
            self.predictor,
            spec,
            _batches(x, y, spec.image_shape),
        )
        return evaluation.compute_metrics(outputs, labels, teachers, self.student)

    def fit_aggregator(
        self,
        x: Images,
        y: np.ndarray | None = None,
        *,
        kind: str = "attention",
        epochs: int = 100,
        learning_rate: float = 0.01,
    ) -> AggregatorFit:
        """Learns from a few labelled images how to weigh the headers.

        Cross-validation over all of them judges what is learned; unless more classes
        are right, by more than the standard error, the mean of the headers stays. The
        predictor changes, the student does not.

        Args:
            x: as in `evaluate`; at least 2 images.
            y: labels `(n,)`, unless `x` is a dataset with labels.
            kind: `weights`, `attention`, `feature_attention`, or `mean` to go back.
            epochs: passes over the images.
            learning_rate: Adam's.

        Raises:
            RequestError: no labels, fewer than 2 images, unknown kind.
        """
        spec, seed = self._run.spec, self.config.seed
        outputs, labels = [], []
        for images, given in _batches(x, y, spec.image_shape):
            if given is not None:
                labels += [*evaluation.as_labels(given, len(images), spec.num_classes)]
                normalised = spec.normalise(images).astype("float32")
                outputs.append(self.student.predict_on_batch(normalised))
        if len(labels) < 2:
            raise RequestError(
                "fit_aggregator needs at least 2 images with labels: "
                "fit_aggregator(x, y)."
            )
        with global_state_restored():
            keras.utils.set_random_seed(seed)
            mask = self._run.teachers.mask
            aggregator = build_aggregator(kind, self.student, mask)
            fit = fit_aggregator(
                aggregator,
                {key: np.concatenate([o[key] for o in outputs]) for key in outputs[0]},
                np.array(labels),
                epochs=epochs,
                learning_rate=learning_rate,
                seed=seed,
            )
        predictor = build_predictor(self.student, aggregator, spec.mean, spec.std)
        self.predictor = self._run.networks["predictor"] = predictor
        return fit

    def export(
        self, folder: str | pathlib.Path, formats: Sequence[str] | None = None
    ) -> list[dict[str, Any]]:
        """Writes the predictor for devices and checks each file against Keras.

        Args:
            folder: created if missing.
            formats: of `--export_formats`; None: `config.export_formats`.

        Returns:
            `exports` as in results.json; agreement is on generated images.

        Raises:
            RequestError: an unknown format.
            RunError: a file that cannot be written or does not pass its check.
        """
        config = self.config
        if formats is not None:
            config = config.with_values({"export_formats": formats})
        return export_run.export(
            self.predictor,
            config.export_formats,
            pathlib.Path(folder),
            batches=self._run.evaluation_batches,
            calibration_pool=self._run.calibration_pool,
            description=description_of(self._run),
            int8_finetune_steps=config.int8_finetune_steps,
            seed=config.seed,
        )


def distill(
    teachers: Sequence[Teacher],
    *,
    image_shape: tuple[int, int, int] | None = None,
    workdir: str | pathlib.Path | None = None,
    callbacks: Sequence[keras.callbacks.Callback] = (),
    verbose: int | str = "auto",
    **options: Any,
) -> Distillation:
    """Distils several classifiers into one small network, without their data.

    Args:
        teachers: Keras models, or their files; models come back as they were.
        image_shape: `(height, width, channels)` of the student's images; None: of the
            first teacher's. Teachers of other sizes see them resized.
        workdir: the run's folder, from where an interrupted call goes on; None: a
            temporary one, removed with the result.
        callbacks: passed to Keras's `fit`; an epoch is `steps_per_epoch` iterations.
        verbose: as in Keras's `fit`.
        **options: fields of `cdfkd_tf.RunConfig`, the command line's flags by name:
            `student="wrn10_1"`, `epochs=25`, `seed=1`; `dataset` is `none` if not
            given.

    Returns:
        The trained networks and what can be done with them.

    Raises:
        RequestError: (a `ValueError`) what does not fit together, in one sentence.
        RunError: (a `RuntimeError`) a loss that became NaN.
    """
    models, temporary = load_teachers(teachers), None
    if workdir is None:
        temporary = tempfile.TemporaryDirectory(prefix="cdfkd_tf_")
        workdir = temporary.name
    config = request_of(teachers, models, image_shape, workdir, options)
    folder = Workdir(config.workdir)
    with global_state_restored(), folder.locked():
        run = perform(
            config,
            ("distill", "fit_aggregator"),
            models=models,
            callbacks=callbacks,
            verbose=verbose,
        )
        return Distillation(run or Run(config, models, verbose=verbose), temporary)


def search(
    teachers: Sequence[Teacher],
    space: Any = "weights",
    *,
    image_shape: tuple[int, int, int] | None = None,
    workdir: str | pathlib.Path | None = None,
    **options: Any,
):
    """Looks for settings with which several classifiers are distilled best.

    Every trial is a run like `distill`'s. It is judged by accuracy on held-out real
    samples (`labelled_samples`, with a data set), else by agreement with the teachers
    on generated images.

    Args:
        teachers: Keras models, which are saved into the workdir, or their files.
        space: `weights`, `schedule`, `student`; a file; a table such as
            `{"student_learning_rate": "0.01..0.2 log", "student_width": [0.25, 0.5]}`;
            or a `keras_tuner.HyperModel` whose `build(hp)` returns a table of options.
        image_shape: as in `distill`.
        workdir: where the search goes on from, if it was interrupted; None: a
            temporary folder, which stays.
        **options: as in `distill`; `max_trials=10`, `tuner="random"`, `"bayesian"` or
            `"hyperband"`.

    Returns:
        A `cdfkd_tf.tuning.summary.Summary`: the trials, best first; `best["options"]`
        go into `distill`.

    Raises:
        RequestError: (a `ValueError`) what does not fit together, in one sentence.
        RunError: (a `RuntimeError`) no trial finished.
    """
    from cdfkd_tf.tuning.run import search as run_search  # Keras Tuner takes seconds
    from cdfkd_tf.tuning.space import read_space

    if isinstance(space, _FILES):
        options["search_space"], space = str(space), None
    models = load_teachers(teachers)
    workdir = pathlib.Path(workdir or tempfile.mkdtemp(prefix="cdfkd_tf_"))
    files = []
    for index, (teacher, model) in enumerate(zip(teachers, models)):
        file = workdir / "given" / f"teacher_{index}.keras"
        if not isinstance(teacher, _FILES):
            file.parent.mkdir(parents=True, exist_ok=True)
            model.save(file)
        files.append(str(teacher) if isinstance(teacher, _FILES) else str(file))
    config = request_of(files, models, image_shape, workdir, options)
    if isinstance(space, Mapping):
        space = read_space(space, config, "space")
    return run_search(config, perform, Run, space)


def load_teachers(teachers: Sequence[Teacher]) -> list[keras.Model]:
    """Files loaded, models as they are.

    Raises:
        RequestError: not a list, no teacher at all, an unreadable file, or weights
            that are no numbers.
    """
    if isinstance(teachers, (*_FILES, keras.Model)):
        raise RequestError(
            "The teachers are a list of models or files; got one "
            f"{type(teachers).__name__}. Write [teacher]."
        )
    models = []
    for index, teacher in enumerate(teachers):
        if isinstance(teacher, _FILES):
            teacher = load_classifier(teacher)
        else:
            check_finite(teacher, f"teacher_{index}")
        models.append(teacher)
    if not models:
        raise RequestError("At least one teacher is needed; got none.")
    return models


def request_of(
    teachers: Sequence[Teacher],
    models: Sequence[keras.Model],
    image_shape: tuple[int, int, int] | None,
    workdir: str | pathlib.Path,
    options: dict[str, Any],
) -> RunConfig:
    """The run that a call from Python describes.

    Args:
        teachers: as given; files keep their names.
        models: the same, loaded.
        image_shape: None: of the first one's images, where no data set tells.
        workdir: the run's folder.
        options: fields of `RunConfig` by name.

    Raises:
        RequestError: an unknown option, or a value out of range.
    """
    options = {"dataset": "none", **options}
    check_names(options)
    if image_shape is None and options["dataset"] == "none":
        image_shape = _shape_of(models[0])
    names = [
        str(teacher) if isinstance(teacher, _FILES) else f"teacher_{index}"
        for index, teacher in enumerate(teachers)
    ]
    own = {"teachers": names, "image_shape": image_shape or (), "workdir": workdir}
    return RunConfig(**options | own)


def _shape_of(model: keras.Model) -> tuple[int, ...]:
    shape = tuple(getattr(model, "input_shape", None) or ())[1:]
    if len(shape) == 2:
        shape = (*shape, 1)
    if len(shape) != 3 or None in shape:
        raise RequestError(
            "The first teacher does not tell the size of its images. Give "
            "image_shape=(height, width, channels)."
        )
    return shape


def _batches(
    x: Images, y: np.ndarray | None, image_shape: tuple[int, ...]
) -> Iterator[tuple[np.ndarray, np.ndarray | None]]:
    """Images in [0, 1] and labels, batch by batch."""
    if isinstance(x, tf.data.Dataset):
        for element in x.as_numpy_iterator():
            images, labels = element if isinstance(element, tuple) else (element, None)
            yield _as_images(images, image_shape), labels
        return
    x = np.asarray(x)
    if y is not None and len(y) != len(x):
        raise RequestError(f"There are {len(x)} images and {len(y)} labels.")
    for start in range(0, len(x), _AT_ONCE):
        part = slice(start, start + _AT_ONCE)
        labels = None if y is None else np.asarray(y)[part]
        yield _as_images(x[part], image_shape), labels


def _as_images(images: np.ndarray, image_shape: tuple[int, ...]) -> np.ndarray:
    if images.ndim == 3 and image_shape[-1] == 1:
        images = images[..., None]
    if images.shape[1:] != tuple(image_shape):
        raise RequestError(
            f"Expected a batch of images {tuple(image_shape)}; got {images.shape}."
        )
    whole = np.issubdtype(images.dtype, np.integer)
    images = images.astype("float32") / (255 if whole else 1)
    if images.min() < -0.01 or images.max() > 1.01:
        raise RequestError(
            "Expected images in [0, 1], or whole numbers 0..255; got values from "
            f"{images.min():g} to {images.max():g}."
        )
    return images
