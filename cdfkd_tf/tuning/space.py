"""What a search varies: fields of `RunConfig`, each with a range or choices.

A space is a table from field to text, as in a file with one field per line:

    student_learning_rate = 0.01..0.2 log
    student_rounds = 2..10
    student_width = 0.25 | 0.5 | 1
    milestones = 16,21 | 12,18
"""

import dataclasses
import pathlib
from collections.abc import Mapping
from typing import Any

import keras_tuner

from cdfkd_tf.config import RunConfig
from cdfkd_tf.distillation.methods import METHODS
from cdfkd_tf.errors import RequestError
from cdfkd_tf.options import read_value, value_type

# Groups of options that describe the computer and the files, not the experiment.
_FIXED_GROUPS = ("data", "running", "export", "predict", "search")
_STILL_VARIED = ("dtype_policy",)
_FIXED = ("action", "workdir", "teachers", "real_samples", "evaluate_every")
_NAMED = ("weights", "schedule", "student")


@dataclasses.dataclass(frozen=True)
class Range:
    """Numbers from `low` to `high`, both included; `log`: equally dense in orders."""

    low: float
    high: float
    log: bool = False

    def holds(self, value: Any) -> bool:
        """Whether `value` lies in the range."""
        return value is not None and self.low <= value <= self.high


@dataclasses.dataclass(frozen=True)
class Choices:
    """One of `values`."""

    values: tuple[Any, ...]

    def holds(self, value: Any) -> bool:
        """Whether `value` is one of them."""
        return value in self.values


class Space(keras_tuner.HyperModel):
    """A search space over `RunConfig`: hyper-parameters in, options of a run out.

    Args:
        fields: name of a field -> its `Range` or `Choices`.
    """

    def __init__(self, fields: Mapping[str, Range | Choices]):
        super().__init__()
        self.fields = dict(fields)

    def build(self, hp: keras_tuner.HyperParameters) -> dict[str, Any]:
        """The options that a trial changes, drawn through `hp`."""
        return {name: _draw(hp, name, kind) for name, kind in self.fields.items()}

    def values_of(self, config: RunConfig) -> dict[str, Any]:
        """The hyper-parameters with which a trial is the run itself.

        Args:
            config: the run that trials vary.

        Returns:
            Name -> value; empty if the run lies outside the space.
        """
        values = {name: _value_of(config, name) for name in self.fields}
        if not all(kind.holds(values[name]) for name, kind in self.fields.items()):
            return {}
        return {name: _text_of(value) for name, value in values.items()}


def _draw(hp, name: str, kind: Range | Choices) -> Any:
    if isinstance(kind, Choices):
        if not isinstance(kind.values[0], tuple):
            return hp.Choice(name, list(kind.values))
        texts = [_text_of(value) for value in kind.values]
        return kind.values[texts.index(hp.Choice(name, texts))]
    draw = hp.Int if isinstance(kind.low, int) else hp.Float
    sampling = "log" if kind.log else "linear"
    return draw(name, kind.low, kind.high, sampling=sampling)


def _text_of(value: Any) -> Any:
    """A value as Keras Tuner can hold it."""
    return ",".join(map(str, value)) if isinstance(value, tuple) else value


def _value_of(config: RunConfig, name: str) -> Any:
    """An option of a run; for a weight that was not given, the method's."""
    value, (player, _, term) = getattr(config, name), name.partition("_")
    if value is None and player in ("student", "generator"):
        weights = getattr(METHODS[config.method], player)
        return weights.get(term.removesuffix("_weight"))
    return value


def find_space(config: RunConfig) -> Space:
    """The space that `--search_space` names.

    Raises:
        RequestError: no such name or file, or a line that says nothing.
    """
    if config.search_space in _NAMED:
        return Space(_named_fields(config))
    file = pathlib.Path(config.search_space)
    if not file.is_file():
        raise RequestError(
            f"--search_space must be {', '.join(_NAMED)}, or a file; there is no "
            f"{config.search_space!r}."
        )
    texts = {}
    for number, line in enumerate(file.read_text().splitlines(), start=1):
        name, equals, text = line.partition("#")[0].partition("=")
        if not name.strip():
            continue
        if not equals:
            raise RequestError(
                f"{file}, line {number}: expected `field = low..high` or `field = a | "
                f"b`; got {line.strip()!r}."
            )
        if name.strip() in texts:
            raise RequestError(f"{file}, line {number}: a second line for {name}.")
        texts[name.strip()] = text.strip()
    return read_space(texts, config, str(file))


def read_space(texts: Mapping[str, Any], config: RunConfig, source: str) -> Space:
    """A space from a table of texts, or of lists of choices.

    Args:
        texts: field -> `0.01..0.2 log`, `2..10`, `a | b`, or a list of values.
        config: the run whose fields are varied; says whether values are allowed.
        source: where the table comes from, for messages.

    Raises:
        RequestError: naming field and source.
    """
    fields = {}
    for name, text in texts.items():
        field = RunConfig.__dataclass_fields__.get(name)
        if field is None or not _may_vary(field):
            raise RequestError(
                f"{source}: {name!r} cannot be searched. Name an option of the "
                "teachers', the method, its weights, the schedule or the aggregator."
            )
        try:
            kind = fields[name] = _read_kind(field, text)
            ends = kind.values if isinstance(kind, Choices) else (kind.low, kind.high)
            for value in ends:
                dataclasses.replace(config, **{name: value})
        except ValueError as error:
            raise RequestError(
                f"{source}: {name} = {text} cannot be used: {error} Write low..high, "
                "low..high log, or a | b."
            ) from error
    if not fields:
        raise RequestError(f"{source} names no option to vary.")
    return Space(fields)


def _may_vary(field: dataclasses.Field) -> bool:
    fixed = field.name in _FIXED or field.metadata["group"] in _FIXED_GROUPS
    return not fixed or field.name in _STILL_VARIED


def _read_kind(field: dataclasses.Field, text: Any) -> Range | Choices:
    if not isinstance(text, str):
        return Choices(tuple(text))
    if ".." not in text:
        parts = [part.strip() for part in text.split("|")]
        if not all(parts):
            raise ValueError("a choice is empty.")
        return Choices(tuple(read_value(field, part) for part in parts))
    ends, _, log = text.partition(" ")
    if value_type(field) not in (int, float):
        raise ValueError("it takes no number.")
    if log.strip() not in ("", "log"):
        raise ValueError(f"{log.strip()!r} is not 'log'.")
    low, high = (read_value(field, end) for end in ends.split("..", 1))
    if not low < high:
        raise ValueError(f"{low} is not below {high}.")
    if log and low <= 0:
        raise ValueError("on a log scale all must be positive.")
    return Range(low, high, bool(log))


def _named_fields(config: RunConfig) -> dict[str, Range | Choices]:
    if config.search_space == "schedule":
        names = ["student_learning_rate", "generator_learning_rate"]
        fields = {name: _around(getattr(config, name)) for name in names}
        return {**fields, "student_rounds": Range(2, 10)}
    if config.search_space == "student":
        widths = [config.student_width * factor for factor in (0.5, 0.75, 1.0, 1.5)]
        fields = {"student_width": Choices(tuple(widths))}
        if METHODS[config.method].sharing != "single":
            fields["student_headers"] = Choices(("multi_level", "split"))
        return fields
    method, fields = METHODS[config.method], {}
    for player in ("student", "generator"):
        for term, weight in getattr(method, player).items():
            name = f"{player}_{term}_weight"
            asked = getattr(config, name)
            weight = weight if asked is None else asked
            # The losses' scale is the learning rate's: the adversarial terms and the
            # student's headers stay, the others are weighed against them.
            if weight > 0 and name != "student_header_weight":
                fields[name] = _around(weight)
    if len(method.student) == len(method.generator) == 1:
        raise RequestError(
            f"--method={config.method} has one loss term: no weights to search. Use "
            "--search_space=schedule, student or a file."
        )
    return fields


def _around(value: float) -> Range:
    """A tenth to ten times."""
    return Range(value / 10, value * 10, log=True)
