"""The options that say what is distilled: data, teachers, method."""

import dataclasses
import types
import typing
from typing import Any

from cdfkd_tf.errors import RequestError

ACTIONS = (
    "pipeline",
    "train_teachers",
    "distill",
    "fit_aggregator",
    "evaluate",
    "export",
    "predict",
    "search",
    "report",
)


def option(
    group: str, default: Any, help: str, choices: tuple[str, ...] | None = None
) -> Any:
    """A field of `RunConfig` with what the command line shows of it."""
    metadata = {"group": group, "help": help, "choices": choices}
    return dataclasses.field(default=default, metadata=metadata)


def value_type(field: dataclasses.Field) -> type:
    """`float` for `float | None`, `tuple` for `tuple[int, ...]`, and so on."""
    kind = field.type
    if isinstance(kind, types.UnionType):
        kind = typing.get_args(kind)[0]
    return typing.get_origin(kind) or kind


def read_value(field: dataclasses.Field, text: str) -> Any:
    """The value that `text` stands for, in the field's type.

    Raises:
        RequestError: naming the flag and what it takes.
    """
    kind = value_type(field)
    if kind is bool:
        if text.lower() not in ("true", "false"):
            raise RequestError(f"--{field.name} must be true or false; got {text!r}.")
        return text.lower() == "true"
    item_type, words = kind, {int: "a whole number", float: "a number"}
    if kind is tuple:
        item_type = typing.get_args(field.type)[0]
        words = {int: "a comma list of whole numbers"}
    try:
        if kind is tuple:
            return tuple(item_type(item) for item in text.split(",") if text)
        return item_type(text)
    except ValueError:
        raise RequestError(
            f"--{field.name} must be {words[item_type]}; got {text!r}."
        ) from None


@dataclasses.dataclass(frozen=True)
class Subject:
    """The first half of `RunConfig`: what is distilled, from whom, by which method."""

    action: str = option(
        "what",
        "pipeline",
        "What to do; pipeline does every step that the workdir does not hold yet.",
        ACTIONS,
    )
    workdir: str = option("what", "runs/default", "Folder of this run.")
    seed: int = option("what", 0, "Seed of every random draw.")

    dataset: str = option(
        "data",
        "cifar100",
        "Data set the teachers know.",
        (
            "digits",
            "mnist",
            "cifar10",
            "cifar100",
            "caltech101",
            "mini_imagenet",
            "folder",
            "none",
        ),
    )
    data_dir: str = option("data", "", "TFDS folder; empty: the TFDS default.")
    image_folder: str = option(
        "data",
        "",
        "With --dataset=folder: holds train/<class>/*.png and test/<class>/*.png (or "
        ".jpg); either may be missing.",
    )
    image_shape: tuple[int, ...] = option(
        "data",
        (),
        "height,width,channels. Needed with --dataset=none; with folder, images are "
        "resized to it (empty: as the first one).",
    )
    num_classes: int = option(
        "data", 0, "With --dataset=none; 0: as many as the first teacher answers."
    )
    evaluation_split: str = option(
        "data",
        "test",
        "Images to measure on. validation: a fifth of the training images, kept from "
        "the teachers; use it to choose settings. none: no real image is read; only "
        "agreement is measured, on invented images.",
        ("test", "validation", "none"),
    )

    teachers: tuple[str, ...] = option(
        "teachers",
        (),
        "Comma list of .keras files or SavedModel folders; empty: WORKDIR/teachers, "
        "trained if missing.",
    )
    teacher_input: tuple[str, ...] = option(
        "teachers",
        ("auto",),
        "Pixel values that given teachers expect: normalised (as the data set), 0..1, "
        "0..255 or -1..1; one for all or one each. auto: read off the model.",
    )
    teacher_output: str = option(
        "teachers",
        "auto",
        "What given teachers answer; auto: asked and seen, one by one.",
        ("auto", "logits", "probabilities"),
    )
    teacher_features: tuple[str, ...] = option(
        "teachers",
        (),
        "Layers whose outputs are the features, one for all or one each; empty: what "
        "enters the last Dense layer.",
    )
    calibrate_teachers: bool = option(
        "teachers",
        False,
        "Bring the teachers' logits to one scale, measured on generated images.",
    )
    teacher: str = option("teachers", "resnet34", "Architecture to train.")
    teacher_width: float = option("teachers", 1.0, "Factor on the teacher's channels.")
    num_teachers: int = option("teachers", 3, "How many teachers to train.")
    teacher_epochs: int = option("teachers", 200, "Passes over the training images.")
    teacher_batch_size: int = option("teachers", 128, "Images per update.")
    teacher_learning_rate: float = option("teachers", 0.1, "SGD learning rate.")
    teacher_milestones: tuple[int, ...] = option(
        "teachers", (80, 120), "Epochs at which the learning rate drops to a tenth."
    )

    method: str = option(
        "method",
        "cdfkd_mfs",
        "Row of the comparison table.",
        ("cdfkd_mfs", "cdfkd", "dfed", "dfad", "dfq", "kd"),
    )
    student: str = option(
        "method",
        "resnet18",
        "Backbone of the student: a built-in one, a .keras file, or a name of "
        "keras.applications (MobileNetV3Small ...).",
    )
    student_taps: tuple[str, ...] = option(
        "method",
        (),
        "Layers of such a file or application that the headers read, finest first; "
        "empty: one at each change of resolution.",
    )
    student_headers: str = option(
        "method",
        "",
        "How the student's headers share layers; empty: the method's way.",
        ("", "single", "split", "multi_level"),
    )
    student_width: float = option("method", 1.0, "Factor on the student's channels.")
    generator: str = option("method", "dafl", "Network that invents images.")
    generator_width: float = option(
        "method", 1.0, "Factor on the generator's channels."
    )
    latent_size: int = option("method", 256, "Width of the generator's input noise.")
    student_rounds: int = option(
        "method", 5, "Student updates before each generator update."
    )
    project_features: bool = option(
        "method",
        False,
        "Learn a linear map from the student's features to teachers' of other widths, "
        "for the feature term; not part of what is kept.",
    )
    temperature: float = option(
        "method", 1.0, "Of the softmaxes in cdfkd, dfq and kd; losses times its square."
    )
    teacher_dtype_policy: str = option(
        "method",
        "auto",
        "Arithmetic of the frozen teachers; auto: as --dtype_policy.",
        ("auto", "float32", "mixed_bfloat16", "mixed_float16"),
    )
    student_header_weight: float | None = option(
        "weights", None, "Student: each header against its teacher."
    )
    student_feature_weight: float | None = option(
        "weights", None, "Student: pooled features, header against teacher."
    )
    student_ensemble_weight: float | None = option(
        "weights", None, "Student: mean header against mean teacher."
    )
    generator_header_weight: float | None = option(
        "weights", None, "Generator: headers against teachers; negative attacks."
    )
    generator_ensemble_weight: float | None = option(
        "weights", None, "Generator: means against each other; negative attacks."
    )
    generator_bn_weight: float | None = option(
        "weights", None, "Generator: BatchNorm statistics of the teachers."
    )
    generator_confidence_weight: float | None = option(
        "weights", None, "Generator: entropy of each prediction."
    )
    generator_balance_weight: float | None = option(
        "weights", None, "Generator: negative entropy of the mean prediction."
    )
