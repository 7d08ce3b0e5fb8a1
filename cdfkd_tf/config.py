"""Every option of a run: one row each, and the frozen values of one run.

A row holds type, default, help, choices, range and the step whose result the option
affects. Flags, checks, `--help`, what a finished step depends on and what a search may
vary follow from the rows. What is None by default comes with the method; what differs
for another data set stands in a flagfile.
"""

import dataclasses
import functools
import glob
import importlib
import math
import operator
import os
import re
import types
import typing
from collections.abc import Iterable, Mapping
from typing import Any

from cdfkd_tf.errors import RequestError
from cdfkd_tf.recipes import shipped

# The steps of a run, in their order.
STEPS = ("train_teachers", "distill", "fit_aggregator", "evaluate", "export")
ACTIONS = ("pipeline", *STEPS, "predict", "search", "report")
OWN = ("folder", "none")  # of --dataset: the user's own images, or none
# Group of options -> the first step whose result they change; "" for none.
GROUPS = {
    "what": "",
    "data": "train_teachers",
    "teachers": "train_teachers",
    "training": "train_teachers",
    "method": "distill",
    "schedule": "distill",
    "aggregator": "fit_aggregator",
    "running": "",
    "export": "export",
    "predict": "",
    "search": "",
}
_SEARCHED = ("teachers", "training", "method", "schedule", "aggregator")
_LARGEST, _LARGEST_WHOLE, _SMALLEST = 1e30, 10**9, 1e-30  # safely float32 and int32

# Names of version 0.1.0 -> what to write instead.
RENAMED = {
    "teacher": "teacher_network",
    "student_rounds": "student_steps",
    "student_taps": "student_feature_layers",
    "low_memory": "recompute_teachers",
    "real_samples": "labelled_samples",
    **{
        f"{weight}_weight": f"{weight.replace('_', '_loss=')}=WEIGHT"
        for weight in (
            *("student_header", "student_feature", "student_ensemble"),
            *("generator_header", "generator_ensemble"),
            *("generator_bn", "generator_balance"),
        )
    },
    "generator_confidence_weight": "generator_loss=entropy=WEIGHT",
}
# Options of version 0.1.0 that have no successor -> why.
REMOVED = {
    "calibrate_teachers": "it measured the teachers' scale on images of an untrained "
    "generator, which made their mean worse. Leave it out",
}


def option(
    group: str,
    default: Any,
    help: str,
    choices: tuple[str, ...] = (),
    *,
    at_least: float | None = None,
    at_most: float | None = None,
    positive: bool = False,
    affects: str | None = None,
    searched: bool | None = None,
    path: bool = False,
    separator: str = ",",
    check: str = "",
) -> Any:
    """One row: a field of `RunConfig` and all that is known of it.

    Args:
        group: a key of `GROUPS`.
        default: its value where nothing is said.
        help: one line for `--help`.
        choices: allowed values, of each item if the option is a list; `module:TABLE`
            stands for the keys of that table.
        at_least: smallest value.
        at_most: largest value; None: what 32 bits hold.
        positive: whether only values above 0 are allowed.
        affects: first step whose result it changes, "" for none; None: the group's.
        searched: whether a search may vary it; None: as its group.
        path: whether it names files, for which `~` and wildcards may stand.
        separator: between the items of a list, a regular expression.
        check: `module:function` that takes what is no choice, or refuses it.
    """
    row = locals() | {
        "affects": GROUPS[group] if affects is None else affects,
        "searched": group in _SEARCHED if searched is None else searched,
    }
    if isinstance(default, dict):
        return dataclasses.field(default_factory=lambda: dict(default), metadata=row)
    return dataclasses.field(default=default, metadata=row)


_what, _data, _teachers, _training, _method, _schedule, *_others = (
    functools.partial(option, group) for group in GROUPS
)
_aggregator, _running, _export, _predict, _search = _others
_DTYPE_POLICIES = ("float32", "mixed_bfloat16", "mixed_float16")
_YES_NO = ("auto", "true", "false")
_SCHEDULES = ("steps", "cosine", "constant")


@dataclasses.dataclass(frozen=True)
class RunConfig:
    """One run, completely. Derive variants with `with_values`.

    Text is read as on the command line; lists become tuples.

    Raises:
        RequestError: if a value is outside its range; the message names the flag.
    """

    action: str = _what(
        "pipeline", "What to do; pipeline: all steps not done.", ACTIONS
    )
    workdir: str = _what("runs/default", "Folder of this run.", path=True)
    seed: int = _what(
        0,
        "Seed of every random draw.",
        at_least=0,
        at_most=4_000_000,  # seeds of teachers are thousands of it, in 32 bits
        affects="train_teachers",
    )

    dataset: str = _data(
        "",
        "Data set of the teachers; empty: folder with --image_folder, none with "
        "--teachers, else cifar100.",
        ("", "data.specs:SPECS", *OWN),
    )
    data_dir: str = _data(
        "", "TFDS folder; empty: the TFDS default.", affects="", path=True
    )
    image_folder: str = _data(
        "",
        "With --dataset=folder: holds train/<class>/* and test/<class>/*, or one.",
        path=True,
    )
    image_shape: tuple[int, ...] = _data(
        (),
        "height,width,channels of the student's images, with --dataset=folder or none; "
        "empty: as the teachers take them, else as the first image.",
    )
    num_classes: int = _data(
        0, "With --dataset=none; 0: the first teacher's.", at_least=0
    )
    evaluation_split: str = _data(
        "test",
        "Images to measure on. validation: a fifth of the training images, kept from "
        "the teachers, to choose settings by. none: only agreement is measured, on "
        "generated images.",
        ("test", "validation", "none"),
    )

    teachers: tuple[str, ...] = _teachers(
        (),
        "Comma list of files (.keras, .h5, .onnx, .pt2 ...) or SavedModel folders; "
        "empty: WORKDIR/teachers, trained if missing.",
        searched=False,
        path=True,
    )
    teacher_input: tuple[str, ...] = _teachers(
        ("auto",),
        "Pixel values that given teachers expect, one for all or one each: 0..1, "
        "0..255, -1..1, normalised (as the data set), imagenet (its mean and "
        "deviation), caffe (BGR less its mean), mean=M;std=S (of pixels in [0, 1], one "
        "number or one per channel). auto: read from the model, or measured.",
        ("auto", "normalised"),
        check="networks.pixel_ranges:pixel_values",
        # Not before a number or "std=": these go on with mean and deviation.
        separator=r",(?!\s*(?:std=|[-+]?\d*\.?\d+(?:e[-+]?\d+)?\s*(?:[,;/]|$)))",
        searched=False,
    )
    teacher_output: str = _teachers(
        "auto",
        "What given teachers return; auto: found out for each by one call.",
        ("auto", "logits", "probabilities"),
    )
    teacher_features: tuple[str, ...] = _teachers(
        (),
        "Layers whose outputs are the features, one for all or one each; empty: what "
        "enters the last Dense layer.",
    )
    teacher_classes: str = _teachers(
        "",
        "Classes that given teachers know, in the order of their columns: cat,dog;"
        "dog,owl or one file each, a name per line. Equal names are one class, and the "
        "student learns all. Empty: as told in the model file, MODEL.classes.txt or "
        "classes.txt beside it; else all know the same.",
        searched=False,
    )
    teacher_counts: str = _teachers(
        "",
        "How many images of each of its classes each teacher learned from, if known: "
        "12,0,3;4,5,6 or one file each, a count per line.",
        affects="distill",
        searched=False,
    )
    ensemble: str = _teachers(
        "auto",
        "How the teachers' answers become one: mean (of logits), probabilities (their "
        "mean), competence (weighted by what each knows, told from its weights), "
        "counts (by --teacher_counts). auto: mean if they know the same, or where it "
        "is the method's.",
        ("auto", "teachers.rules:RULES"),
        affects="distill",
    )
    teacher_network: str = _training("resnet34", "Architecture to train.")
    teacher_width: float = _training(
        1.0, "Factor on the teacher's channels.", positive=True, at_most=64
    )
    num_teachers: int = _training(3, "How many teachers to train.", at_least=1)
    teacher_epochs: int = _training(200, "Passes over the training images.", at_least=1)
    teacher_batch_size: int = _training(128, "Images per update.", at_least=1)
    teacher_learning_rate: float = _training(0.1, "SGD learning rate.", positive=True)
    teacher_milestones: tuple[int, ...] = _training(
        (80, 120), "Epochs at which the learning rate drops to a tenth."
    )

    method: str = _method(
        "",
        "Losses and images; empty: cdfkd_plus with --teachers, cdfkd_mfs without.",
        ("", "distillation.methods:METHODS"),
    )
    student: str = _method(
        "",
        "Backbone of the student: a built-in one, a .keras file, a name of "
        "keras.applications (MobileNetV3Small ...), or auto: compact, of a width for "
        "these teachers; empty: the method's.",
        path=True,
    )
    student_feature_layers: tuple[str, ...] = _method(
        (),
        "Layers of such a file or application that the headers read, finest first; "
        "empty: one at each change of resolution.",
    )
    student_headers: str = _method(
        "",
        "How headers share layers: single, shared, split or multi_level; empty: by "
        "method.",
    )
    student_width: float | None = _method(
        None,
        "Factor on the student's channels; empty: 1, or with --student=auto: so that "
        "it has at most a fifth of the teachers' weights.",
        positive=True,
        at_most=64,
    )
    generator: str = _method("dafl", "Network that generates images.")
    generator_width: float = _method(
        1.0, "Factor on the generator's channels.", positive=True, at_most=64
    )
    latent_size: int = _method(256, "Width of the generator's input noise.", at_least=1)
    conditional_generator: bool = _method(
        False, "The generator is asked for a class with each image."
    )
    generator_mean: float = _method(
        0.0,
        "Decay of a running mean of the generator's weights, which makes every other "
        "image for the student; 0: none.",
        at_least=0,
        at_most=0.999999,
    )
    adversarial_on: str = _method(
        "",
        "Generated images that count in what the generator and the student disagree "
        "about: all, those where they agree or disagree on the class; empty: the "
        "method's.",
        ("", "all", "agree", "disagree"),
    )
    student_steps: int | None = _method(
        None, "Student steps before each generator step.", at_least=1
    )
    student_loss: Mapping[str, float] = _method(
        {},
        "Weights of the student's loss terms, as header=1,feature=0.2,ensemble=5; a "
        "term not named keeps the method's weight.",
    )
    generator_loss: Mapping[str, float] = _method(
        {}, "As header=-1,bn=0.1 for the generator; negative weights are adversarial."
    )
    project_features: bool = _method(
        False,
        "For the feature term: learn a linear map to teachers' features of other "
        "widths; not part of what is kept.",
    )
    images: tuple[str, ...] = _method(
        (),
        "Where the images come from, as generated or procedural,pictures; empty: the "
        "method's way.",
        ("distillation.methods:IMAGES",),
    )
    transfer_images: str = _method(
        "",
        "Folder of any pictures to cut images from, or builtin: scikit-image's "
        "photographs. No data of the task, but not no data.",
        path=True,
    )
    synthesis_steps: int | None = _method(
        None,
        "Gradient steps that fit one batch of images, where the method or "
        "--images=inverted does so; empty: the method's, or 200.",
        at_least=1,
    )
    bank_size: int | None = _method(
        None,
        "Images kept with the teachers' answers, of generated ones the newest; empty: "
        "256 MB, at most 40,000, or 8,000 for each of --minutes; with generated images "
        "alone: none.",
        at_least=2,
    )
    bn_images: str = _method(
        "",
        "Folder of unlabelled pictures of the task (2 or more), of which the student's "
        "BatchNormalizations take their statistics at the end.",
        path=True,
        searched=False,
    )
    temperature: float | None = _method(
        None,
        "Of the softmaxes in methods that compare them; empty: the method's.",
        positive=True,
    )
    teacher_dtype_policy: str = _method(
        "auto",
        "Arithmetic of the frozen teachers; auto: as --dtype_policy.",
        ("auto", *_DTYPE_POLICIES),
    )

    minutes: float | None = _schedule(
        None,
        "Minutes that the distillation may take: --steps_per_epoch is fitted to them.",
        positive=True,
    )
    epochs: int | None = _schedule(None, "Epochs of the distillation.", at_least=1)
    steps_per_epoch: int | None = _schedule(
        None,
        "Iterations per epoch: student steps, then one generator step; with kd: as "
        "many student steps.",
        at_least=1,
    )
    evaluate_every: int = _schedule(
        1,
        "Epochs between accuracies; 0 reads no data set at all.",
        at_least=0,
        affects="",
        searched=False,
    )
    batch_size: int | None = _schedule(
        None,
        "Images per update.",
        at_least=2,  # BatchNorm statistics of one image are no statistics
    )
    student_learning_rate: float | None = _schedule(
        None, "SGD, momentum 0.9.", positive=True
    )
    nesterov: bool = _schedule(False, "Nesterov momentum for the student.")
    generator_learning_rate: float | None = _schedule(None, "Adam.", positive=True)
    generator_beta1: float = _schedule(
        0.9, "Adam's decay of the gradient.", at_least=0, at_most=0.999999
    )
    schedule: str = _schedule(
        "",
        "Learning rates: a tenth at each milestone (steps), a half cosine to 0, or "
        "constant; empty: the method's.",
        ("", *_SCHEDULES),
    )
    generator_schedule: str = _schedule(
        "", "The same for the generator alone; empty: as --schedule.", ("", *_SCHEDULES)
    )
    milestones: tuple[int, ...] = _schedule(
        (100, 200), "Epochs at which the rates drop to a tenth."
    )
    clip_gradients: float = _schedule(
        0.0, "Largest norm of a gradient; 0: any.", at_least=0
    )
    keep_best: bool = _schedule(
        False, "Keep the epoch that agreed best with the teachers, not the last one."
    )

    aggregator: str = _aggregator(
        "auto",
        "How headers become one prediction: mean, competence (by the teachers' rule), "
        "or learned from labelled images; best tries all of these. auto: competence "
        "where the teachers' rule is not mean.",
        ("auto", "networks.aggregators:AGGREGATORS", "best"),
    )
    labelled_samples: int = _aggregator(
        0,
        "Labelled real training images the aggregator may use; 0: it learns from "
        "generated ones, towards the teachers' answers.",
        at_least=0,
        searched=False,
    )
    aggregator_epochs: int = _aggregator(100, "Passes over them.", at_least=1)
    aggregator_learning_rate: float = _aggregator(0.01, "Adam.", positive=True)

    strategy: str = _running(
        "auto",
        "Devices that share a batch; mirrored: all GPUs of this machine (without any, "
        "all logical CPUs); multi_worker: those of all processes in TF_CONFIG; auto: "
        "mirrored where there are several GPUs.",
        ("auto", "one_device", "mirrored", "multi_worker"),
    )
    worker_timeout: float = _running(
        300.0, "Seconds that multi_worker waits for the other processes.", positive=True
    )
    dtype_policy: str = _running(
        "float32",
        "Arithmetic of the networks; losses, norms and statistics are always float32.",
        _DTYPE_POLICIES,
        affects="train_teachers",
        searched=True,
    )
    recompute_teachers: bool = _running(
        False,
        "Recompute teachers one by one in the backward pass of the generator step: "
        "less memory, one more forward pass.",
    )
    fused_kernels: bool = _running(
        True, "TensorFlow's fused kernels where Keras composes many operations."
    )
    jit_compile: str = _running(
        "auto",
        "Compile each update with XLA; auto: on one GPU, where nothing asks for the "
        "same bits.",
        _YES_NO,
    )
    deterministic: str = _running(
        "auto", "Same seed, same bits; auto: where it is free, on CPUs.", _YES_NO
    )
    resume: bool = _running(
        True, "Go on where this workdir stopped; --noresume starts again."
    )
    checkpoint_every: int = _running(
        1, "Epochs between checkpoints; 0 keeps none.", at_least=0
    )
    checkpoint_minutes: float = _running(
        10.0, "Minutes between those within an epoch; 0: when interrupted.", at_least=0
    )
    keep_checkpoints: int = _running(
        2, "How many of the last checkpoints stay on disk.", at_least=1
    )
    report: bool = _running(True, "Write report.html at the end of the pipeline.")
    profile: bool = _running(
        False, "Write a TensorBoard profile of three iterations to WORKDIR/logs."
    )
    debug: bool = _running(False, "Show the traceback of an error.")

    export_formats: tuple[str, ...] = _export(
        ("saved_model", "tflite_float32", "tflite_int8"),
        "Comma list of formats to write; empty: none.",
        ("export.format:FORMATS",),
    )
    int8_finetune_steps: int = _export(
        0,
        "Updates of the int8 file's weights under simulated rounding, on generated "
        "images; 0: calibration alone.",
        at_least=0,
    )

    predict_input: str = _predict("", "Image file or folder to classify.", path=True)
    predict_model: str = _predict(
        "", "Exported file or folder; empty: the smallest of WORKDIR.", path=True
    )
    predict_output: str = _predict(
        "", "CSV file; empty: WORKDIR/predictions.csv.", path=True
    )
    show_header_weights: bool = _predict(
        False, "Also how much each header counts for each image."
    )

    max_trials: int = _search(
        10, "Runs to try; 0, with hyperband: as many as it plans.", at_least=0
    )
    tuner: str = _search(
        "random",
        "How settings are chosen; hyperband gives few epochs to many.",
        ("random", "bayesian", "hyperband"),
    )
    search_space: str = _search(
        "weights",
        "What to vary: weights, schedule, student, or a file of lines such as "
        "`student_learning_rate = 0.01..0.2 log` and `student_width = 0.25 | 0.5`.",
        path=True,
    )

    def __post_init__(self):
        for field in FIELDS.values():
            value = read_value(field, getattr(self, field.name))
            if field.metadata["path"] and isinstance(value, tuple):
                value = tuple(existing(field.name, value, several=True))
            elif field.metadata["path"]:
                (value,) = existing(field.name, [value])
            object.__setattr__(self, field.name, value)
            _check_value(field, value)
        self._complete()
        if self.dataset == "none":  # nothing there to measure on
            object.__setattr__(self, "evaluation_split", "none")
        _check_combinations(self)

    def _complete(self) -> None:
        """Puts the method's own values where none are given."""
        methods = _by_name("distillation.methods:METHODS")
        if not self.dataset:
            own = "folder" if self.image_folder else "none" if self.teachers else ""
            object.__setattr__(self, "dataset", own or "cifar100")
        if not self.method:
            usual = "cdfkd_plus" if self.teachers else "cdfkd_mfs"
            object.__setattr__(self, "method", usual)
        for name, value in methods[self.method].recipe.items():
            if getattr(self, name) in (None, "", FIELDS[name].default):
                object.__setattr__(self, name, value)
        if self.student != "auto" and self.student_width is None:
            object.__setattr__(self, "student_width", 1.0)

    def with_values(self, values: Mapping[str, Any]) -> "RunConfig":
        """A variant with some options replaced.

        Args:
            values: option -> value; `generator_loss.bn` names one entry of a table.

        Raises:
            RequestError: an unknown option, or a value out of range.
        """
        changed: dict[str, Any] = {}
        for name, value in values.items():
            name, _, entry = name.partition(".")
            check_names([name])
            if entry:
                value = {**changed.get(name, getattr(self, name)), entry: value}
            changed[name] = value
        return dataclasses.replace(self, **changed)

    def options_behind(self, step: str) -> dict[str, Any]:
        """The options that the result of a step depends on, earlier steps' included.

        Args:
            step: one of `STEPS`.
        """
        steps, values = STEPS[: STEPS.index(step) + 1], self.option_dict()
        if step in STEPS[:2] and values["evaluation_split"] == "none":
            # The teachers' images are the same whether any are measured on or not.
            values["evaluation_split"] = "test"
        return {
            n: v for n, v in values.items() if FIELDS[n].metadata["affects"] in steps
        }

    def option_dict(self) -> dict[str, Any]:
        """Names and values, as JSON can hold them."""
        return {
            name: list(value) if isinstance(value, tuple) else value
            for name, value in vars(self).items()
        }

    def flag_lines(self) -> str:
        """The text of a flagfile that repeats this run."""
        return "".join(f"--{n}={text_of(value)}\n" for n, value in vars(self).items())

    def changed_flags(self) -> list[str]:
        """`--name=value` of each option that differs from its default."""
        # What is usual comes with the method, and which one is usual with teachers.
        usual = RunConfig(method=self.method).flag_lines().splitlines()
        unsaid = RunConfig(teachers=self.teachers, image_folder=self.image_folder)
        named = {n for n in ("method", "dataset") if vars(self)[n] != vars(unsaid)[n]}
        return [
            line
            for line, default in zip(self.flag_lines().splitlines(), usual)
            if line != default or line[2:].split("=")[0] in named
        ]


FIELDS = {field.name: field for field in dataclasses.fields(RunConfig)}


def names_in(group: str) -> list[str]:
    """The options of one group, in their order."""
    return [name for name, f in FIELDS.items() if f.metadata["group"] == group]


def check_names(names: Iterable[str]) -> None:
    """Refuses names that are no options.

    Raises:
        RequestError: with the new name of a renamed one, why one was removed, or the
            nearest.
    """
    for name in names:
        if name not in FIELDS:
            raise RequestError(f"There is no option {name!r}{hint_for(name)}")


def hint_for(name: str) -> str:
    """How to go on after an unknown option: its new name, the nearest, or a stop.

    Of one that was removed, why.
    """
    import difflib

    if name in RENAMED:
        return f": it is called --{RENAMED[name]} since version 0.2.0."
    if name in REMOVED:
        return f" since version 0.2.0: {REMOVED[name]}."
    near = difflib.get_close_matches(name, FIELDS, 1)
    return f"; did you mean {near[0]!r}?" if near else "."


def value_type(field: dataclasses.Field) -> type:
    """`tuple` for `tuple[int, ...]`, `dict` for a table, `int` for `int | None`."""
    if isinstance(field.type, types.UnionType):
        return typing.get_args(field.type)[0]
    origin = typing.get_origin(field.type) or field.type
    return dict if origin is Mapping else origin


def choices_of(field: dataclasses.Field) -> tuple[str, ...]:
    """The allowed values of an option, its tables' keys among them; empty: any."""
    found: list[str] = []
    for choice in field.metadata["choices"]:
        found += _by_name(choice) if ":" in choice else [choice]
    return tuple(found)


def _by_name(name: str) -> Any:
    """`module:attribute` of a module that stands above this one."""
    module, _, attribute = name.partition(":")
    return getattr(importlib.import_module(f"cdfkd_tf.{module}"), attribute)


def text_of(value: Any) -> str:
    """A value as the command line takes it; nothing for None."""
    if value is None:
        return ""
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, Mapping):
        return ",".join(f"{name}={weight:g}" for name, weight in value.items())
    if isinstance(value, tuple):
        return ",".join(map(str, value))
    return str(value)


_WORDS = {
    int: "a whole number",
    float: "a number",
    bool: "true or false",
    str: "text",
    tuple: "a comma list",
    dict: "a list such as header=1,bn=0.1",
}


def read_value(field: dataclasses.Field, value: Any) -> Any:
    """A value in the option's type: from text, as flags give it, or from Python.

    Raises:
        RequestError: naming the flag and what it takes.
    """
    kind, words = value_type(field), _WORDS[value_type(field)]
    got = f"{type(value).__name__} {value!r}"
    if field.default is None and value in (None, ""):
        return None
    try:
        if isinstance(value, str):
            got = repr(value)
            return _from_text(field, value)
        if kind is dict and isinstance(value, Mapping):
            return {str(name): float(weight) for name, weight in value.items()}
        if kind is tuple and hasattr(value, "tolist"):
            value = value.tolist()
        if kind is tuple and isinstance(value, list | tuple):
            convert = operator.index if _item_type(field) is int else os.fspath
            return tuple(map(convert, value))
        if kind is bool and _is_bool(value):
            return bool(value)
        if kind is int and not _is_bool(value):
            return operator.index(value)
        if kind is float and not _is_bool(value):
            return float(value)
        if kind is str:
            return os.fspath(value)
    except (TypeError, ValueError, KeyError):
        pass
    if kind is tuple and not isinstance(value, int) and _item_type(field) is int:
        words += " of whole numbers"
    raise RequestError(f"--{field.name} must be {words}; got {got}.") from None


def _is_bool(value: Any) -> bool:
    """Python's or NumPy's."""
    return isinstance(value, bool) or str(getattr(value, "dtype", "")) == "bool"


def _from_text(field: dataclasses.Field, text: str) -> Any:
    kind = value_type(field)
    if kind is bool:
        return {"true": True, "false": False}[text.lower()]
    if kind is dict:
        pairs = (item.split("=") for item in text.split(",") if item.strip())
        return {name.strip(): float(value) for name, value in pairs}
    if kind is tuple:
        items = re.sub(field.metadata["separator"], "\n", text).split("\n")
        return tuple(_item_type(field)(s.strip()) for s in items if s.strip())
    return kind(text)


def existing(flag: str, paths: Iterable[str], *, several: bool = False) -> list[str]:
    """Paths with `~` and the wildcards * and ? replaced by what they stand for.

    Also `experiments/*` of the package, where it is not in this folder.

    Args:
        flag: what messages call them by.
        paths: as given; one without wildcards need not exist.
        several: whether one may stand for many.

    Returns:
        Paths in the order given, those of a wildcard sorted.

    Raises:
        RequestError: wildcards that fit nothing or, unless `several` may be, too much.
    """
    found = []
    for path in map(shipped, map(os.path.expanduser, paths)):
        matches = [path]
        if {"*", "?"} & set(path) and not os.path.exists(path):
            matches = sorted(glob.glob(path))
        if not matches or (len(matches) > 1 and not several):
            raise RequestError(
                f"--{flag}={path} matches {', '.join(matches[:5]) or 'nothing'}; "
                f"expected {'files' if several else 'one path'}. Check the wildcards."
            )
        found += matches
    return found


def _item_type(field: dataclasses.Field) -> type:
    return typing.get_args(field.type)[0]


def _check_value(field: dataclasses.Field, value: Any) -> None:
    row, flag = types.SimpleNamespace(**field.metadata), f"--{field.name}"
    kind = value_type(field)
    if value is None:
        return
    if kind in (int, float, dict):
        most = row.at_most or (_LARGEST_WHOLE if kind is int else _LARGEST)
        for number in value.values() if kind is dict else (value,):
            if not math.isfinite(number):
                raise RequestError(f"{flag} must be a finite number; got {number}.")
            if abs(number) > most:
                raise RequestError(f"{flag} must be at most {most:g}; got {number}.")
    if row.positive and value < _SMALLEST:
        raise RequestError(f"{flag} must be positive; got {value}.")
    if row.at_least is not None and value < row.at_least:
        raise RequestError(f"{flag} must be at least {row.at_least}; got {value}.")
    if not row.choices or value == field.default:
        return
    known = choices_of(field)
    for item in value if kind is tuple else (value,):
        if item not in known and row.check:
            _by_name(row.check)(item)
        elif item not in known:
            names = ", ".join(filter(None, known))
            raise RequestError(f"{flag} must be one of {names}; got {item!r}.")


def _check_combinations(config: RunConfig) -> None:
    """Refuses options that exclude each other.

    Raises:
        RequestError: naming the flags.
    """

    def refuse_if(wrong: Any, message: str) -> None:
        if wrong:
            raise RequestError(message)

    dataset, search = config.dataset, config.action == "search"
    for name in ("teacher_classes", "teacher_counts"):
        refuse_if(
            getattr(config, name) and not config.teachers,
            f"--{name} belongs to given --teachers; those trained here know all "
            "classes alike. Leave it out.",
        )
    refuse_if(
        config.labelled_samples == 1,
        "--labelled_samples=1 cannot be learned from: a part of them is held out. "
        "Give 0, or at least 2.",
    )
    refuse_if(
        search and not config.max_trials and config.tuner != "hyperband",
        f"--max_trials=0 leaves the number to --tuner=hyperband; got --tuner="
        f"{config.tuner}. Give at least 1.",
    )
    refuse_if(not config.workdir, "--workdir must name the folder of the run; got ''.")
    several = config.strategy == "multi_worker"
    refuse_if(
        several and search,
        "--action=search shares trials, not batches, between processes: see "
        "README.md. Leave --strategy=multi_worker out.",
    )
    refuse_if(
        several and not config.resume,
        "--noresume cannot be given to several processes: one that is started again "
        "would delete what all have done. Delete WORKDIR/checkpoints yourself.",
    )
    refuse_if(
        config.image_shape and dataset not in OWN,
        f"--image_shape belongs to --dataset=folder or none; --dataset={dataset} has "
        "its own. Leave it out.",
    )
    refuse_if(
        config.image_folder and dataset != "folder",
        f"--image_folder belongs to --dataset=folder; got --dataset={dataset}.",
    )
    refuse_if(
        config.num_classes and dataset != "none",
        f"--num_classes belongs to --dataset=none; --dataset={dataset} has its own. "
        "Leave it out.",
    )
    if dataset != "none":
        return
    refuse_if(
        not config.teachers,
        "--dataset=none has no images to train teachers on. Name them with "
        "--teachers=a.keras,b.keras.",
    )
    refuse_if(
        config.labelled_samples,
        f"--labelled_samples={config.labelled_samples}, but --dataset=none has no real "
        "images. Use --dataset=folder, or --labelled_samples=0.",
    )
