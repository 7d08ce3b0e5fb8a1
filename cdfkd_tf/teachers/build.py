"""Builds the teachers of a run from model files or from models in memory."""

import math
import pathlib
from collections.abc import Callable, Sequence

import keras
import numpy as np

from cdfkd_tf.config import OWN, RunConfig
from cdfkd_tf.data.builders.image_folder import folder_spec
from cdfkd_tf.data.specs import DatasetSpec, plain_spec, spec_of
from cdfkd_tf.errors import RequestError, reason
from cdfkd_tf.networks.black_box import BlackBoxClassifier
from cdfkd_tf.networks.loading import load_classifier
from cdfkd_tf.networks.pixel_ranges import NORMALISED
from cdfkd_tf.networks.preprocessing import RANGES
from cdfkd_tf.teachers.answers import one_number
from cdfkd_tf.teachers.class_map import ClassMap
from cdfkd_tf.teachers.class_names import union_of
from cdfkd_tf.teachers.ensemble import TeacherEnsemble
from cdfkd_tf.teachers.input_adapter import InputAdapter, channels_first
from cdfkd_tf.teachers.reading import LabelledImages, Reading
from cdfkd_tf.teachers.teacher import Teacher
from cdfkd_tf.workdir import Workdir


def find_spec(
    config: RunConfig,
    load: Callable[[], Sequence[keras.Model] | None],
    told: Sequence[Sequence[str]] | None = None,
) -> DatasetSpec:
    """What the networks must know about the images of this run.

    Images of an own folder, or of none, have the size that the teachers take unless
    `config.image_shape` gives another.

    Args:
        config: names the data set, the folder, or the form of images alone.
        load: the given teachers; called where they have to tell.
        told: names of the classes that they know, from `told_classes`.

    Raises:
        RequestError: unknown data set, unusable folder, impossible form, or teachers
            that do not tell it.
    """
    if config.dataset not in OWN:
        return spec_of(config.dataset)
    shape, size, channels = config.image_shape, None, 0
    if not shape and config.teachers:
        size, channels = _told_by(load())
        shape = (*size, channels or 3) if size else ()
    if config.dataset == "folder":
        return folder_spec(config.image_folder, shape, channels)
    if not shape:
        taken = getattr(load()[0], "input_shape", None) or "anything"
        raise RequestError(
            f"No teacher tells the size of its images; the first one takes {taken}. "
            "Give --image_shape=height,width,channels."
        )
    names = union_of(told) if told else ()
    classes = config.num_classes or len(names)
    if names and classes != len(names):
        raise RequestError(
            f"--num_classes={classes}, but the teachers know {len(names)} classes "
            f"together{_listed(names)}. Leave --num_classes out."
        )
    if not classes:
        classes = _classes_of(load()[0], config.teachers[0], shape)
    return plain_spec("none", shape, classes, class_names=names)


def _told_by(
    models: Sequence[keras.Model],
) -> tuple[tuple[int, int] | None, int]:
    """The first size of images that a teacher tells; the most channels, or 0."""
    size, channels = None, 0
    for model in models:
        shape = getattr(model, "input_shape", None)
        if not isinstance(shape, tuple) or len(shape) not in (3, 4):
            continue
        shape = shape[1:]
        if channels_first(shape):
            shape = (*shape[1:], shape[0])
        height, width, depth = (*shape, 1)[:3]
        if depth in (1, 3, None):
            channels = max(channels, depth or 0)
            if height and width:
                size = size or (height, width)
    return size, channels


def _classes_of(model: keras.Model, name: str, image_shape: tuple[int, ...]) -> int:
    """How many classes the first teacher's output tells, or its answer to one image."""
    shape, shapes = getattr(model, "output_shape", None), []
    if shape is None or isinstance(model, BlackBoxClassifier):
        own = (getattr(model, "input_shape", None) or (None, *image_shape))[1:]
        sides = [side or given for side, given in zip(own, image_shape)]
        try:
            answer = model(np.zeros((1, *sides), "float32"))
        except Exception as error:  # anybody's layers, with whatever they raise
            raise RequestError(
                f"Teacher {name} cannot be called with an image of {image_shape}: "
                f"{reason(error)}"
            ) from error
        shape = keras.tree.map_structure(lambda value: tuple(value.shape), answer)
    keras.tree.map_shape_structure(shapes.append, shape)
    rows = {each[-1] for each in shapes if len(each) > 1 and {*each[1:-1]} <= {1}}
    if len(rows) == 1 and None not in rows:
        (classes,) = rows
        if classes == 1:
            raise RequestError(one_number(name))
        return classes
    if not rows:
        raise RequestError(
            f"A teacher answers one row of numbers per image, one per class; {name} "
            f"answers {shape}. Save it up to such a layer."
        )
    raise RequestError(
        f"Teacher {name} does not tell how many classes it knows: it answers {shape}. "
        "Give --num_classes."
    )


def teacher_files(config: RunConfig, workdir: Workdir) -> list[pathlib.Path]:
    """The teachers' files, given or trained.

    Raises:
        RequestError: if one does not exist.
    """
    if config.teachers:
        files = [pathlib.Path(name) for name in config.teachers]
        hint = "Check --teachers."
    else:
        files = [workdir.teacher(index) for index in range(config.num_teachers)]
        hint = "Run --action=train_teachers first, or name files with --teachers."
    for file in files:
        if not file.exists():
            raise RequestError(f"There is no teacher file {file}. {hint}")
    return files


def build_teachers(
    config: RunConfig,
    spec: DatasetSpec,
    names: Sequence[str | pathlib.Path],
    models: Sequence[keras.Model] | None = None,
    labelled: Callable[[], LabelledImages | None] = lambda: None,
    class_map: ClassMap | None = None,
) -> TeacherEnsemble:
    """All teachers of a run, frozen, each behind an adapter to what it expects.

    Args:
        config: says what the teachers expect and answer.
        spec: of the images.
        names: files to load, or what to call the models.
        models: the teachers, where they are in memory; `release` of the ensemble
            gives them back as they were.
        labelled: gives real images, normalised `(n, height, width, channels)`, to find
            out on which pixel values teachers expect; called only if that is asked for.
        class_map: which classes they know; None: all those of `spec`.

    Raises:
        RequestError: if one cannot be read or does not fit the data set.
    """
    inputs = _one_each(config.teacher_input, len(names), "teacher_input")
    layers = _one_each(config.teacher_features or ("",), len(names), "teacher_features")
    if not config.teachers:
        inputs = (NORMALISED,) * len(names)  # trained here
    images = labelled() if "auto" in inputs else None
    teachers: list[Teacher] = []
    expected = [spec.num_classes] * len(names)
    if class_map:
        expected = list(map(len, class_map.columns))
    try:
        for index, name in enumerate(names):
            model = models[index] if models else load_classifier(name)
            unknown = inputs[index] == "auto"
            told = getattr(model, "told_values", None) if unknown else None
            values = RANGES[0] if unknown else inputs[index]
            values = told[0] if told else values
            teacher = Teacher(
                model,
                InputAdapter(spec, values, _image_shape(model, name, spec)),
                output=config.teacher_output if config.teachers else "logits",
                feature_layer=layers[index],
                name=str(name),
                num_classes=expected[index],
            )
            teachers.append(teacher)
            _check(teacher, spec, expected[index])
            if told:
                teacher.reading = Reading(*told)
            elif unknown:
                teacher.find_reading(images)
            teacher.check_repetition()
    except Exception:
        for teacher in teachers:
            teacher.release()
        raise
    try:
        return TeacherEnsemble(
            teachers,
            class_map,
            rule=config.ensemble,
            counts=_counts(config.teacher_counts, teachers),
        )
    except Exception:
        for teacher in teachers:
            teacher.release()
        raise


def _counts(text: str, teachers: Sequence[Teacher]) -> list[list[float]] | None:
    """What `--teacher_counts` says, for each teacher one number per class."""
    if not text:
        return None
    counts = []
    for item in text.split(";"):
        file = pathlib.Path(item.strip())
        try:
            lines = file.read_text().split() if file.is_file() else item.split(",")
            numbers = [float(line.rsplit(",", 1)[-1]) for line in lines if line.strip()]
        except (OSError, ValueError):
            numbers = []
        if not numbers or not all(0 <= number < math.inf for number in numbers):
            raise RequestError(
                f"--teacher_counts takes numbers of images, as 12,0,3;4,5,6, or files "
                f"with a number in each line, one for each teacher; got {item!r}."
            )
        counts.append(numbers)
    expected = [teacher.num_classes for teacher in teachers]
    if list(map(len, counts)) != expected:
        raise RequestError(
            f"--teacher_counts must give one number for each class of each teacher, "
            f"{expected}; got {list(map(len, counts))}."
        )
    return counts


def _one_each(values: tuple[str, ...], count: int, flag: str) -> tuple[str, ...]:
    if len(values) not in (1, count):
        raise RequestError(
            f"--{flag} takes one value, or one for each of the {count} teachers; got "
            f"{len(values)}."
        )
    return values * count if len(values) == 1 else values


def _image_shape(model, name, spec: DatasetSpec) -> tuple[int | None, ...]:
    """What one image must measure, without the batch axis."""
    shape = getattr(model, "input_shape", None)
    if shape is None:  # a subclassed model takes what it is given
        return spec.image_shape
    if not isinstance(shape, tuple) or not all(
        side is None or isinstance(side, int) for side in shape
    ):
        raise RequestError(
            f"Teacher {name} has several inputs; expected one batch of images."
        )
    shape = shape[1:]
    plain = len(shape) == 2 and None not in shape
    colours = len(shape) == 3 and shape[2] in (None, 1, 3)
    flat = shape == (math.prod(spec.image_shape),)
    if not (plain or colours or flat or channels_first(shape)):
        raise RequestError(
            f"Teacher {name} takes {shape}; expected images (height, width, channels) "
            f"with 1 or 3 channels, or all their pixels in a row, as --dataset="
            f"{spec.name}'s {spec.image_shape}."
        )
    return shape


def _check(teacher: Teacher, spec: DatasetSpec, expected: int) -> None:
    if teacher.num_classes != expected != spec.num_classes:
        raise RequestError(
            f"Teacher {teacher.name} answers {teacher.num_classes} classes; "
            f"{expected} are named. Check --teacher_classes."
        )
    if teacher.num_classes != expected:
        raise RequestError(
            f"Teacher {teacher.name} answers {teacher.num_classes} classes; "
            f"--dataset={spec.name} has {spec.num_classes}{_listed(spec.class_names)}. "
            "All teachers and the data set must know the same classes, or "
            "--teacher_classes must name what each knows."
        )


def _listed(names: Sequence[str]) -> str:
    more = ", ..." if len(names) > 20 else ""
    return f" ({', '.join(names[:20])}{more})" if names else ""
