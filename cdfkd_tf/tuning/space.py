"""What a search varies: options of a run, each with a range or choices.

A space is a table from option to text, as in a file with one option per line:

    student_learning_rate = 0.01..0.2 log
    student_steps = 2..10
    student_loss.feature = 0 | 0.1 | 0.5
    milestones = 16,21 | 12,18

What may stand on the left follows from the rows in `config`.
"""

import dataclasses
import pathlib
from collections.abc import Callable, Mapping
from typing import Any

import keras_tuner

from cdfkd_tf.config import FIELDS, RunConfig, hint_for, text_of, value_type
from cdfkd_tf.distillation.build import build_method
from cdfkd_tf.distillation.methods import METHODS, Method
from cdfkd_tf.errors import RequestError


@dataclasses.dataclass(frozen=True)
class Range:
    """Numbers from `low` to `high`, both included; `log`: drawn log-uniformly."""

    low: float
    high: float
    log: bool = False

    def __contains__(self, value: Any) -> bool:
        return value is not None and self.low <= value <= self.high


# Name of an option, or `student_loss.TERM` -> its range or choices, of its type.
Fields = dict[str, Range | tuple]


class Space(keras_tuner.HyperModel):
    """A search space over `RunConfig`: hyper-parameters in, options of a run out.

    Args:
        fields: name of an option, or `student_loss.TERM` -> a `Range` or choices.
    """

    def __init__(self, fields: Fields):
        super().__init__()
        self.fields = dict(fields)

    def build(self, hp: keras_tuner.HyperParameters) -> dict[str, Any]:
        """The options that a trial changes, as `RunConfig.with_values` takes them."""
        return {name: _draw(hp, name, kind) for name, kind in self.fields.items()}

    def values_of(self, config: RunConfig) -> dict[str, Any]:
        """The hyper-parameters with which a trial is the run itself.

        Returns:
            Name -> value; empty if the run lies outside the space.
        """
        values = {name: _value_of(config, name) for name in self.fields}
        inside = all(values[name] in kind for name, kind in self.fields.items())
        return {name: _plain(v) for name, v in values.items()} if inside else {}


def find_space(config: RunConfig, method: Callable[[], Method] | None = None) -> Space:
    """The space that `--search_space` names.

    Args:
        config: the run whose options are varied.
        method: finds the terms whose weights can be varied; None: all that have one.

    Raises:
        RequestError: no such name or file, a line that cannot be read, or a method
            without weights to vary.
    """
    if config.search_space in _NAMED:
        method = method or (lambda: build_method(config))
        return Space(_NAMED[config.search_space](config, method))
    file = pathlib.Path(config.search_space)
    if not file.is_file():
        raise RequestError(
            f"--search_space must be {', '.join(_NAMED)}, or a file; there is no "
            f"{config.search_space!r}."
        )
    texts: dict[str, str] = {}
    for number, line in enumerate(file.read_text().splitlines(), start=1):
        name, equals, text = (p.strip() for p in line.partition("#")[0].partition("="))
        if name in texts or (name and not equals):
            problem = "a second line for" if equals else "expected OPTION = VALUES; got"
            raise RequestError(f"{file}, line {number}: {problem} {name!r}.")
        if name:
            texts[name] = text
    return read_space(texts, config, str(file))


def read_space(texts: Mapping[str, Any], config: RunConfig, source: str) -> Space:
    """A space from a table of texts, or of lists of choices.

    Args:
        texts: option -> `0.01..0.2 log`, `2..10`, `a | b`, or a list of values.
        config: the run whose options are varied; says whether values are allowed.
        source: where the table comes from, for messages.

    Raises:
        RequestError: naming option and source.
    """
    fields = {}
    for name, text in texts.items():
        option, dot, _ = name.partition(".")
        row = FIELDS.get(option)
        is_table = row is not None and value_type(row) is dict
        if row is None or not row.metadata["searched"] or is_table != bool(dot):
            raise RequestError(
                f"{source}: {name!r} cannot be searched{'.' if row else hint_for(name)}"
                " Name an option of teachers, method, schedule or aggregator; of "
                "losses one term, such as student_loss.feature."
            )
        try:
            fields[name] = _read_kind(config, name, text)
        except (ValueError, TypeError) as error:
            raise RequestError(
                f"{source}: {name} = {text} cannot be used: {error} Write low..high, "
                "low..high log, or a | b."
            ) from error
    if not fields:
        raise RequestError(f"{source} names no option to vary.")
    return Space(fields)


def _read_kind(config: RunConfig, name: str, text: Any) -> Range | tuple:
    def read(value: Any) -> Any:  # in the option's type; refused if the run cannot
        if value == "":
            raise ValueError("a choice is empty.")
        return _value_of(config.with_values({name: value}), name)

    if not isinstance(text, str):
        return tuple(map(read, text))
    if ".." not in text:
        return tuple(read(part.strip()) for part in text.split("|"))
    if "." not in name and value_type(FIELDS[name]) not in (int, float):
        raise ValueError("it takes no number.")
    ends, _, scale = text.partition(" ")
    if scale.strip() not in ("", "log"):
        raise ValueError(f"{scale.strip()!r} is not 'log'.")
    low, high = map(read, ends.split("..", 1))
    if not low < high:
        raise ValueError(f"{low} is not below {high}.")
    if scale and low <= 0:
        raise ValueError("on a log scale all must be positive.")
    return Range(low, high, bool(scale))


def _value_of(config: RunConfig, name: str) -> Any:
    """An option of a run; of a loss term that is not named there, the method's."""
    option, dot, term = name.partition(".")
    if not dot:
        return getattr(config, option)
    return build_method(config).weights(option.removesuffix("_loss")).get(term)


def _draw(hp: keras_tuner.HyperParameters, name: str, kind: Range | tuple) -> Any:
    if isinstance(kind, tuple):
        drawn = hp.Choice(name, [_plain(value) for value in kind])
        return next(value for value in kind if _plain(value) == drawn)
    draw = hp.Int if isinstance(kind.low, int) else hp.Float
    return draw(name, kind.low, kind.high, sampling="log" if kind.log else "linear")


def _plain(value: Any) -> Any:
    """A value as Keras Tuner can hold it."""
    return text_of(value) if isinstance(value, tuple) else value


def _weights(config: RunConfig, method: Callable[[], Method]) -> Fields:
    known, fields = method(), {}
    for role in ("student", "generator"):
        weights = {term: w for term, w in known.weights(role).items() if w}
        # Scaling a whole loss is the learning rate's part: the student's header term
        # and adversarial terms stay, the others are weighed against them.
        for term, weight in weights.items() if len(weights) > 1 else ():
            if weight > 0 and (role, term) != ("student", "header"):
                fields[f"{role}_loss.{term}"] = _around(weight)
    if not fields:
        raise RequestError(
            f"--method={config.method} has one loss term for each network: no weights "
            "to search. Use --search_space=schedule, student or a file."
        )
    return fields


def _schedule(config: RunConfig, method: Callable[[], Method]) -> Fields:
    fields = {"student_learning_rate": _around(config.student_learning_rate)}
    if method().has_generator:
        fields["generator_learning_rate"] = _around(config.generator_learning_rate)
        fields["student_steps"] = Range(2, 10)
    return fields


def _student(config: RunConfig, method: Callable[[], Method]) -> Fields:
    usual = config.student_width or 1.0  # where the teachers decide it
    widths = tuple(usual * factor for factor in (0.5, 0.75, 1.0, 1.5))
    if METHODS[config.method].sharing == "single":
        return {"student_width": widths}
    return {"student_width": widths, "student_headers": ("multi_level", "split")}


_NAMED = {"weights": _weights, "schedule": _schedule, "student": _student}


def _around(value: float) -> Range:
    """A tenth to ten times."""
    return Range(value / 10, value * 10, log=True)
