"""The same from Python: `cdfkd_tf.distill(teachers)` for notebooks and programs."""

import csv
import difflib
import pathlib
import tempfile
from collections.abc import Iterator, Sequence
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from cdfkd_tf.assembly import Assembly
from cdfkd_tf.config import RunConfig
from cdfkd_tf.distillation.fit_aggregator import AggregatorFit, fit_aggregator
from cdfkd_tf.distillation.run import distill as run_distillation
from cdfkd_tf.errors import RequestError
from cdfkd_tf.evaluation import ask, measure
from cdfkd_tf.export.run import export
from cdfkd_tf.networks.aggregators import build_aggregator, build_predictor
from cdfkd_tf.networks.loading import load_classifier
from cdfkd_tf.pipeline import options_behind, refuse_mixed_runs
from cdfkd_tf.runtime.precision import make_deterministic
from cdfkd_tf.steps import save_network
from cdfkd_tf.workdir import Workdir

Images = np.ndarray | tf.data.Dataset
Teacher = keras.Model | str | pathlib.Path
FILES = (str, pathlib.Path)
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
        workdir: folder with checkpoints, pictures and TensorBoard logs.
    """

    def __init__(self, assembly: Assembly, networks: dict[str, keras.Model]):
        self.config, self.workdir = assembly.config, assembly.workdir.path
        self._assembly, self.student = assembly, networks["student"]
        self.generator = networks.get("generator")
        self.history = _history(assembly.workdir.history)
        self.predictor = self._predictor("mean")[1]

    def evaluate(self, x: Images, y: np.ndarray | None = None) -> dict[str, Any]:
        """Measures teachers, student and predictor on images with or without labels.

        Args:
            x: images in [0, 1], or whole numbers 0..255, `(n, height, width[, ch])`;
                or a dataset of batches of images, or of `(images, labels)`.
            y: labels `(n,)`; None: accuracies are None, agreement is measured.

        Returns:
            `teachers`, `teacher_ensemble`, `student`, `aggregator` as in results.json.

        Raises:
            RequestError: images of another shape or range.
        """
        spec = self._assembly.spec
        batches = list(_batches(x, y, spec.image_shape))
        teachers = self._assembly.teachers
        answers, truth = ask(teachers, self.student, self.predictor, spec, batches)
        return measure(answers, truth, teachers, self.student)

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

        A fifth of them is held out to judge by; without a gain there the mean stays.
        The predictor changes, the student does not.

        Args:
            x: as in `evaluate`; at least 2 images.
            y: labels `(n,)`, unless `x` is a dataset with labels.
            kind: `weights`, `attention`, `feature_attention`, or `mean` to go back.
            epochs: passes over the images.
            learning_rate: Adam's.

        Raises:
            RequestError: no labels, fewer than 2 images, unknown kind.
        """
        batches = list(_batches(x, y, self._assembly.spec.image_shape))
        if not batches or batches[0][1] is None or sum(len(b[1]) for b in batches) < 2:
            raise RequestError(
                "fit_aggregator needs at least 2 images with labels: "
                "fit_aggregator(x, y)."
            )
        pixels, labels = (np.concatenate(parts) for parts in zip(*batches))
        mixed = np.random.default_rng(self.config.seed).permutation(len(labels))
        keras.utils.set_random_seed(self.config.seed)
        aggregator, predictor = self._predictor(kind)
        fit = fit_aggregator(
            aggregator,
            self.student,
            self._assembly.spec.normalise(pixels[mixed]).astype("float32"),
            labels[mixed],
            epochs=epochs,
            learning_rate=learning_rate,
            seed=self.config.seed,
        )
        self.predictor = predictor
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
        """
        return export(
            self.predictor,
            self.config.export_formats if formats is None else formats,
            pathlib.Path(folder),
            **self._assembly.export_arguments(),
        )

    def _predictor(self, kind: str) -> tuple[keras.Model, keras.Model]:
        aggregator, spec = build_aggregator(kind, self.student), self._assembly.spec
        predictor = build_predictor(self.student, aggregator, spec.mean, spec.std)
        return aggregator, predictor


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
        teachers: Keras models, or their files. Models are frozen (`trainable=False`).
        image_shape: `(height, width, channels)` of the student's images; None: of the
            first teacher's. Teachers of other sizes see them resized.
        workdir: where checkpoints, pictures and curves go, and from where an
            interrupted call goes on; None: a temporary folder.
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
    models = load_teachers(teachers)
    config = request_of(teachers, models, image_shape, workdir, options)
    make_deterministic(config.deterministic)
    folder = Workdir(config.workdir)
    refuse_mixed_runs("distill", config, folder)
    with folder.unchanged_if_refused("distill", anew=not config.resume):
        assembly = Assembly(config, folder, models)
        folder.note("distill", options_behind("distill", config), done=False)
        networks, _ = run_distillation(assembly, verbose, callbacks)
    for name, network in networks.items():
        save_network(network, getattr(folder, name))
    return Distillation(assembly, networks)


def load_teachers(teachers: Sequence[Teacher]) -> list[keras.Model]:
    """Files loaded, models as they are.

    Raises:
        RequestError: no teacher at all, or an unreadable file.
    """
    models = [load_classifier(t) if isinstance(t, FILES) else t for t in teachers]
    if not models:
        raise RequestError("At least one teacher is needed; got none.")
    return models


def request_of(
    teachers: Sequence[Teacher],
    models: Sequence[keras.Model],
    image_shape: tuple[int, int, int] | None,
    workdir: str | pathlib.Path | None,
    options: dict[str, Any],
) -> RunConfig:
    """The run that a call from Python describes.

    Args:
        teachers: as given; files keep their names.
        models: the same, loaded.
        image_shape: None: of the first one's images, where no data set tells.
        workdir: None: a temporary folder.
        options: fields of `RunConfig` by name.

    Raises:
        RequestError: an unknown option, or a value out of range.
    """
    known = RunConfig.__dataclass_fields__
    options = {"dataset": "none", **options}
    for name in options:
        if name not in known:
            near = difflib.get_close_matches(name, known, 1)
            hint = f"; did you mean {near[0]!r}?" if near else "."
            raise RequestError(f"There is no option {name!r}{hint}")
    if image_shape is None and options["dataset"] == "none":
        image_shape = _shape_of(models[0])
    values = {k: tuple(v) if isinstance(v, list) else v for k, v in options.items()}
    values["teachers"] = tuple(
        str(teacher) if isinstance(teacher, FILES) else f"teacher_{index}"
        for index, teacher in enumerate(teachers)
    )
    values["image_shape"] = tuple(image_shape or ())
    values["workdir"] = str(workdir or tempfile.mkdtemp(prefix="cdfkd_tf_"))
    return RunConfig(**values)


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
            yield _pixels(images, image_shape), labels
        return
    x = np.asarray(x)
    if y is not None and len(y) != len(x):
        raise RequestError(f"There are {len(x)} images and {len(y)} labels.")
    for start in range(0, len(x), _AT_ONCE):
        part = slice(start, start + _AT_ONCE)
        labels = None if y is None else np.asarray(y)[part]
        yield _pixels(x[part], image_shape), labels


def _pixels(images: np.ndarray, image_shape: tuple[int, ...]) -> np.ndarray:
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


def _history(file: pathlib.Path) -> dict[str, list[float]]:
    with file.open(newline="") as lines:
        rows = list(csv.DictReader(lines))
    return {
        name: [float(row[name]) for row in rows if row[name]]
        for name in (rows[0] if rows else ())
        if name != "epoch"
    }
