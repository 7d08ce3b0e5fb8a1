"""The same from Python: `cdfkd_tf.distill(teachers)` for notebooks and programs."""

import contextlib
import functools
import os
import pathlib
import shutil
import tempfile
import weakref
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import keras
import numpy as np
import tensorflow as tf

from cdfkd_tf import evaluation
from cdfkd_tf.config import FIELDS, RunConfig, check_names, read_value
from cdfkd_tf.distillation.fit_aggregator import AggregatorFit, choose_aggregator
from cdfkd_tf.errors import RequestError, file_system_error
from cdfkd_tf.export import run as export_run
from cdfkd_tf.imported.torch_programs import from_torch, is_module
from cdfkd_tf.networks.aggregators import build_predictor
from cdfkd_tf.networks.black_box import Answer, BlackBoxClassifier
from cdfkd_tf.networks.loading import (
    SavedModelClassifier,
    check_finite,
    load_classifier,
)
from cdfkd_tf.pipeline.run import perform
from cdfkd_tf.pipeline.steps import Run, description_of, save_network
from cdfkd_tf.runtime.precision import global_state_restored
from cdfkd_tf.teachers.ensemble import TeacherEnsemble
from cdfkd_tf.workdir import Workdir, read_history

if TYPE_CHECKING:
    from cdfkd_tf.tuning.summary import Summary

Images = np.ndarray | tf.data.Dataset
Model = keras.Model | str | pathlib.Path | Answer
Teacher = Model | tuple[Model, Sequence[str]]
_FILES = (str, os.PathLike)
_MODELS = (keras.Model, SavedModelClassifier, BlackBoxClassifier)
_KEYS = ("image", "images", "x"), ("label", "labels", "y")  # of a data set's dicts


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
        teachers: what was found out about each: `name`, `input` (pixel values),
            `input_evidence`, `output`, `classes` (how many), `batch_norms`.
    """

    def __init__(self, run: Run):
        self.config, self.workdir, self._run = run.config, run.workdir.path, run
        self.student = run.network("student", "distill")
        self.generator = None
        if run.method.has_generator:
            self.generator = run.network("generator", "distill")
        self.predictor = run.network("predictor", "fit_aggregator")
        self.history = {
            name: [value for value in values if value is not None]
            for name, values in read_history(run.workdir.history).items()
        }

    @functools.cached_property
    def teachers(self) -> list[dict[str, Any]]:
        """See the class."""
        with self._nothing_left_behind():
            return [
                {"name": teacher.name, **teacher.facts}
                | {"classes": teacher.num_classes}
                | {"batch_norms": teacher.num_batch_norms}
                for teacher in self._run.teachers.teachers
            ]

    @property
    def quality(self) -> dict[str, Any]:
        """What the images were, agreement on others, and whether the student is poor.

        As `quality` in results.json, see `distillation.quality.look`; empty with
        `method="kd"`.
        """
        return self._run.results.read().get("quality", {})

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
        spec = self._run.spec
        batches = _batches(x, y, spec.image_shape, self.config.batch_size)
        with self._nothing_left_behind():
            teachers = self._run.teachers
            outputs, labels = evaluation.predict_all(
                teachers, self.student, self.predictor, spec, batches
            )
            return evaluation.compute_metrics(outputs, labels, teachers, self.student)

    def take_statistics(self, x: Images) -> None:
        """Gives the student BatchNormalization statistics of unlabelled images.

        Its own are those of the images that it learned from. Student and predictor
        change, and what is exported from now on; an aggregator that was learned on the
        student as it was stays.

        Args:
            x: at least 2 images of the task, as in `evaluate`.

        Raises:
            RequestError: fewer images, or of another form.
        """
        shape, size = self._run.spec.image_shape, self.config.batch_size
        images = [images for images, _ in _batches(x, None, shape, size)]
        if sum(map(len, images)) < 2:
            raise RequestError("take_statistics needs at least 2 images.")
        with self._nothing_left_behind():
            images = np.concatenate(images)
            self._run.take_statistics(self.student, images)
            inner = [
                one for one in self.predictor.layers if isinstance(one, keras.Model)
            ]
            for network in inner:  # its student, unless that is the same object
                if network.name == self.student.name:
                    network.set_weights(self.student.get_weights())

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
        are right, by more than the standard error, what needs no labels stays. The
        predictor changes, the student does not.

        Args:
            x: as in `evaluate`; at least 2 images.
            y: labels `(n,)`, unless `x` is a dataset with labels.
            kind: of `--aggregator`: `best` tries all that learn, `auto` goes back.
            epochs: passes over the images.
            learning_rate: Adam's.

        Raises:
            RequestError: no labels, fewer than 2 images, unknown kind.
        """
        spec = self._run.spec
        config = self.config.with_values(
            {
                "aggregator": kind,
                "aggregator_epochs": epochs,
                "aggregator_learning_rate": learning_rate,
            }
        )
        outputs, labels = [], []
        for images, given in _batches(x, y, spec.image_shape, self.config.batch_size):
            if given is not None:
                labels += [*evaluation.as_labels(given, len(images), spec.num_classes)]
                normalised = spec.normalise(images).astype("float32")
                outputs.append(self.student.predict_on_batch(normalised))
        if len(labels) < 2:
            raise RequestError(
                "fit_aggregator needs at least 2 images with labels: "
                "fit_aggregator(x, y)."
            )
        with self._nothing_left_behind():
            keras.utils.set_random_seed(config.seed)
            rule = self._run.teachers.rule
            aggregator, (fit, *_) = choose_aggregator(
                config.aggregator,
                self.student,
                rule,
                {key: np.concatenate([o[key] for o in outputs]) for key in outputs[0]},
                np.array(labels),
                epochs=config.aggregator_epochs,
                learning_rate=config.aggregator_learning_rate,
                seed=config.seed,
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
        with self._nothing_left_behind():
            return export_run.export(
                self.predictor,
                config.export_formats,
                pathlib.Path(read_value(FIELDS["workdir"], folder)),
                batches=self._run.evaluation_batches,
                calibration_pool=self._run.calibration_pool,
                description=description_of(self._run),
                int8_finetune_steps=config.int8_finetune_steps,
                seed=config.seed,
            )

    @contextlib.contextmanager
    def _nothing_left_behind(self) -> Iterator[None]:
        """Seeds and the like, and the teachers, are afterwards as they were."""
        with global_state_restored():
            try:
                yield
            except OSError as error:
                raise file_system_error(error) from error.__cause__
            finally:
                self._run.release()


def distill(
    teachers: Teacher | Iterable[Teacher],
    *,
    image_shape: tuple[int, int, int] | None = None,
    workdir: str | pathlib.Path | None = None,
    callbacks: Sequence[keras.callbacks.Callback] = (),
    verbose: int | str = "auto",
    **options: Any,
) -> Distillation:
    """Distils several classifiers into one small network, without their data.

    Args:
        teachers: Keras models, files, functions from images to classes, or modules of
            PyTorch, `(module, example batch)`; models come back as they were. With
            different classes: pairs `(teacher, ["cat", "dog"])`; equal names are one
            class, and the student learns all.
        image_shape: `(height, width, channels)` of the student's images; None: of the
            first teacher's. Teachers of other sizes see them resized.
        workdir: the run's folder, from where an interrupted call goes on; None: a
            temporary one, removed with the result.
        callbacks: passed to Keras's `fit`; an epoch is `steps_per_epoch` iterations.
        verbose: as in Keras's `fit`.
        **options: fields of `cdfkd_tf.RunConfig`, the command line's flags by name:
            `student="wrn10_1"`, or a Keras model, whose weights the student starts
            from; `epochs=25`, `seed=1`; `dataset` is `none` if not given.

    Returns:
        The trained networks and what can be done with them.

    Raises:
        RequestError: (a `ValueError`) what does not fit together, in one sentence.
        RunError: (a `RuntimeError`) a loss that became NaN.
    """
    names, models, classes = _read_teachers(teachers)
    if callbacks is None or isinstance(callbacks, keras.callbacks.Callback):
        callbacks = [callbacks] if callbacks else []
    if not all(isinstance(one, keras.callbacks.Callback) for one in callbacks):
        raise RequestError(f"callbacks are of keras.callbacks; got {callbacks}.")
    with _folder(workdir) as (folder, keep_with):
        config = _request(names, image_shape, folder, options, classes)
        with global_state_restored(), Workdir(config.workdir).locked():
            run = perform(
                config,
                ("distill", "fit_aggregator"),
                models=models,
                callbacks=callbacks,
                verbose=verbose,
            )
            result = Distillation(run or Run(config, models, verbose=verbose))
        keep_with(result)
    return result


class TeacherModel(keras.Model):
    """Several teachers as one frozen Keras model, see `teacher_model`.

    Call arguments:
        images: in [0, 1], `(B, height, width, channels)`. Returns logits `(B, C)`.
    """

    def __init__(self, teachers: TeacherEnsemble, normalise: Callable):
        super().__init__(name="teachers", trainable=False)
        self._teachers, self._normalise, self.built = teachers, normalise, True

    def call(self, images):
        """See the class."""
        logits = self._teachers(self._normalise(images)).logits
        return self._teachers.combined(logits)


def teacher_model(
    teachers: Teacher | Iterable[Teacher],
    *,
    image_shape: tuple[int, int, int] | None = None,
    **options: Any,
) -> TeacherModel:
    """Makes one Keras model of several classifiers, for other training loops.

    Their pixel values, outputs and sizes are found out as in `distill`; it may be the
    teacher of a `keras.distillation.Distiller`. Models in memory stay frozen with it.

    Args:
        teachers: as in `distill`.
        image_shape: likewise.
        **options: those about teachers, as `teacher_input="0..255"`.

    Returns:
        Images in [0, 1] to one row of logits, by the rule `--ensemble`.

    Raises:
        RequestError: (a `ValueError`) what does not fit together, in one sentence.
    """
    names, models, classes = _read_teachers(teachers)
    with _folder(None) as (folder, keep_with), global_state_restored():
        request = _request(names, image_shape, folder, options, classes)
        run = Run(request, models)
        model = TeacherModel(run.teachers, run.spec.normalise)
        keep_with(model)
    return model


def search(
    teachers: Teacher | Iterable[Teacher],
    space: Any = "weights",
    *,
    image_shape: tuple[int, int, int] | None = None,
    workdir: str | pathlib.Path | None = None,
    **options: Any,
) -> "Summary":
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
            temporary folder, removed with the result.
        **options: as in `distill`; `max_trials=10`, `tuner="random"`, `"bayesian"` or
            `"hyperband"`.

    Returns:
        A `cdfkd_tf.tuning.summary.Summary`: the trials, best first; `best["options"]`
        go into `distill`.

    Raises:
        RequestError: (a `ValueError`) what does not fit together, in one sentence.
        RunError: (a `RuntimeError`) no trial finished.
    """
    import keras_tuner  # takes seconds

    from cdfkd_tf.tuning.run import search as run_search
    from cdfkd_tf.tuning.space import read_space

    if isinstance(space, _FILES):
        options["search_space"], space = str(space), None
    elif not isinstance(space, Mapping | keras_tuner.HyperModel):
        raise RequestError(
            "space is weights, schedule, student, a file, a table of options or a "
            f"HyperModel; got a {type(space).__name__}."
        )
    names, models, classes = _read_teachers(teachers)
    with _folder(workdir) as (folder, keep_with):
        for index, model in enumerate(models or ()):
            if (
                isinstance(model, BlackBoxClassifier)
                and not pathlib.Path(model.name).exists()
            ):
                raise RequestError(
                    f"{model.name} is a function: trials are processes of their own, "
                    "and need files of models. Save it, for example as ONNX."
                )
            if isinstance(model, keras.Model):
                names[index] = str(folder / "given" / f"teacher_{index}.keras")
                save_network(model, pathlib.Path(names[index]))
        config = _request(names, image_shape, folder, options, classes)
        if isinstance(space, Mapping):
            space = read_space(space, config, "space")
        result = run_search(config, perform, Run, space)
        keep_with(result)
    return result


@contextlib.contextmanager
def _folder(workdir: Any) -> Iterator[tuple[pathlib.Path, Callable[[Any], None]]]:
    """The run's folder, and what is to be called with the result.

    A temporary one is removed together with the result, or if there is none.

    Raises:
        RequestError: what the file system refuses within the block.
    """
    folder = tempfile.mkdtemp(prefix="cdfkd_tf_") if workdir is None else workdir
    remove = functools.partial(shutil.rmtree, folder, ignore_errors=True)
    temporary = workdir is None
    try:
        path = RunConfig(workdir=folder).workdir
        yield (
            pathlib.Path(path),
            lambda made: temporary and weakref.finalize(made, remove),
        )
    except BaseException as error:
        if temporary:
            remove()
        raise file_system_error(error) from error.__cause__


def _read_teachers(
    teachers: Any,
) -> tuple[list[str], list[Any] | None, list[list[str]]]:
    """Files' names, or what models are called; all models, or None of files alone;
    the names of their classes, if these come with them.

    Raises:
        RequestError: no teacher at all, something else, an unreadable file, or weights
            that are no numbers.
    """
    if isinstance(teachers, _FILES):
        given: list[Any] = list(read_value(FIELDS["teachers"], os.fspath(teachers)))
    elif isinstance(teachers, Iterable) and not isinstance(teachers, Mapping):
        given = list(teachers)
    else:
        given = [teachers]
    paired = [
        isinstance(teacher, tuple) and len(teacher) == 2 and _are_names(teacher[1])
        for teacher in given
    ]
    classes = [list(map(str, t[1])) for t, pair in zip(given, paired) if pair]
    given = [t[0] if pair else t for t, pair in zip(given, paired)]
    if any(paired) and not all(paired):
        raise RequestError(
            "Either all teachers come with the names of their classes, as "
            "[(model, ['cat', 'dog']), ...], or none."
        )
    for index, teacher in enumerate(given):
        if isinstance(teacher, tuple) and len(teacher) == 2 and is_module(teacher[0]):
            teacher = given[index] = from_torch(*teacher, name=f"teacher_{index}")
        if isinstance(teacher, keras.Model):
            check_finite(teacher, f"teacher_{index}")
        elif is_module(teacher):
            raise RequestError(
                f"teacher_{index} is a module of PyTorch: give it with a batch of "
                "images that it takes, (module, example)."
            )
        elif callable(teacher) and not isinstance(teacher, (*_MODELS, type)):
            told = ("0..1", "as functions are called")
            given[index] = BlackBoxClassifier(
                teacher, f"teacher_{index}", told_values=told
            )
        elif not isinstance(teacher, (*_MODELS, *_FILES)):
            is_class = isinstance(teacher, type)
            got = f"the class {teacher}" if is_class else f"a {type(teacher).__name__}"
            raise RequestError(
                "The teachers are Keras models, files of models, or functions from "
                f"images to classes; got {got}."
            )
    if not given:
        raise RequestError("At least one teacher is needed; got none.")
    names = [
        os.fspath(teacher) if isinstance(teacher, _FILES) else f"teacher_{index}"
        for index, teacher in enumerate(given)
    ]
    if all(isinstance(teacher, _FILES) for teacher in given):
        return names, None, classes
    models = [load_classifier(t) if isinstance(t, _FILES) else t for t in given]
    return names, models, classes


def _are_names(value: Any) -> bool:
    """Whether these are names of classes, and no batch of images."""
    return isinstance(value, list | tuple) and all(isinstance(n, str) for n in value)


def _request(
    names: Sequence[str],
    image_shape: Any,
    workdir: pathlib.Path,
    options: dict,
    classes: Sequence[Sequence[str]],
) -> RunConfig:
    """The run that a call from Python describes."""
    check_names(options)
    shape = () if image_shape is None else image_shape
    own = {"teachers": names, "image_shape": shape, "workdir": workdir}
    files = [workdir / "given" / f"classes_{i}.txt" for i in range(len(classes))]
    for file, known in zip(files, classes):
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text("".join(f"{name}\n" for name in known))
    if files:
        own["teacher_classes"] = ";".join(map(str, files))
    if isinstance(student := options.get("student"), keras.Model):
        file = workdir / "given" / "student.keras"  # read again by a resumed run
        save_network(student, file)
        own["student"] = file
    return RunConfig(**{"dataset": "none", **options, **own})


def _batches(
    x: Images, y: np.ndarray | None, image_shape: tuple[int, ...], size: int
) -> Iterator[tuple[np.ndarray, np.ndarray | None]]:
    """Images in [0, 1] and labels, batch by batch."""
    if isinstance(x, tf.data.Dataset):
        if y is not None:
            raise RequestError("A data set brings its labels; leave y out.")
        for element in x.as_numpy_iterator():
            images, labels = _pair(element)
            yield _as_images(images, image_shape), labels
        return
    x = _as_array(x)
    y = None if y is None else np.asarray(y)
    if x.ndim and y is not None and y.shape[:1] != (len(x),):
        raise RequestError(f"There are {len(x)} images and {y.size} labels.")
    for start in range(0, len(x) if x.ndim else 1, size):
        part = slice(start, start + size)
        images = _as_images(x[part] if x.ndim else x, image_shape)
        yield images, None if y is None else y[part]


def _pair(element: Any) -> tuple[Any, Any]:
    """Images and labels, or None, of one element of a data set."""
    if isinstance(element, dict):
        keys = [[k for k in element if k in known] for known in _KEYS]
        if len(keys[0]) == 1 and len(keys[1]) <= 1:
            return element[keys[0][0]], element[keys[1][0]] if keys[1] else None
        raise RequestError(
            "Elements of the data set are dicts with the keys "
            f"{', '.join(map(str, element))}; expected image and label, or pairs "
            "(images, labels)."
        )
    if isinstance(element, tuple):
        return (*element, None)[:2]
    return element, None


def _as_array(values: Any) -> np.ndarray:
    try:
        return np.asarray(values)
    except ValueError:  # rows of unlike lengths
        return np.asarray(None)


def _as_images(images: Any, image_shape: tuple[int, ...]) -> np.ndarray:
    images = _as_array(images)
    if images.dtype.kind not in "buif":
        raise RequestError(
            "Expected images as an array of numbers, or a tf.data.Dataset; got "
            f"values of type {images.dtype}."
        )
    if images.ndim == 3 and image_shape[-1] == 1:
        images = images[..., None]
    if images.shape[1:] != tuple(image_shape) or not images.ndim:
        raise RequestError(
            f"Expected a batch of images {tuple(image_shape)}; got {images.shape}."
        )
    whole = images.dtype.kind in "ui"
    images = images.astype("float32") / (255 if whole else 1)
    lowest, highest = (images.min(), images.max()) if images.size else (0, 0)
    if not (lowest >= -0.01 and highest <= 1.01):  # NaN, too
        raise RequestError(
            "Expected images in [0, 1], or whole numbers 0..255; got values from "
            f"{lowest:g} to {highest:g}."
        )
    return images
