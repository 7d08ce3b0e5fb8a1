"""One absl flag per `RunConfig` field, and the way back."""

import dataclasses
import re
import sys
from typing import Any

from absl import app
from absl import flags as absl_flags

from cdfkd_tf.config import RunConfig
from cdfkd_tf.errors import RequestError
from cdfkd_tf.options import read_value, value_type

INTRODUCTION = """\
Several trained image classifiers in, one small network out, without their data.

  python main.py --flagfile=FILE [--flag=value ...]

Put --flagfile first: the last value of a flag wins. Defaults stand in brackets."""


class _HelpFlag(absl_flags.BooleanFlag):
    """`--help`: every flag of this project in one line, grouped."""

    def __init__(self):
        super().__init__("help", False, "Show this page.", short_name="?")

    def parse(self, arg):
        if self._parse(arg):
            print(help_page())
            sys.exit(0)


def define(values: absl_flags.FlagValues = absl_flags.FLAGS) -> None:
    """Defines every flag in `values`; call once per process."""
    absl_flags.DEFINE_flag(_HelpFlag(), values)
    absl_flags.DEFINE_flag(app.HelpfullFlag(), values)
    defaults = RunConfig()
    for field in dataclasses.fields(RunConfig):
        choices, help = field.metadata["choices"], field.metadata["help"]
        default = getattr(defaults, field.name)
        kind = value_type(field)
        if choices:
            absl_flags.DEFINE_enum(
                field.name, default, choices, help, flag_values=values
            )
        elif kind is bool:
            absl_flags.DEFINE_bool(field.name, default, help, flag_values=values)
        elif kind is int:
            absl_flags.DEFINE_integer(field.name, default, help, flag_values=values)
        elif kind is float:
            absl_flags.DEFINE_float(field.name, default, help, flag_values=values)
        elif kind is tuple:
            default = [str(item) for item in default]
            absl_flags.DEFINE_list(field.name, default, help, flag_values=values)
        else:
            absl_flags.DEFINE_string(field.name, default, help, flag_values=values)


def parse(
    argv: list[str], values: absl_flags.FlagValues = absl_flags.FLAGS
) -> RunConfig:
    """The run that the command line describes.

    Args:
        argv: the program's name, then its arguments.

    Raises:
        RequestError: unknown flag, bad value, missing flagfile or stray argument.
    """
    try:
        rest = values(argv)[1:]
    except absl_flags.CantOpenFlagFileError as error:
        reason = str(error).removeprefix("ERROR:: ")
        raise RequestError(f"{reason}. Check the path after --flagfile.") from error
    except absl_flags.Error as error:
        raise RequestError(
            f"{_as_we_say(str(error))} See --help for every flag."
        ) from error
    if rest:
        raise RequestError(f"Unexpected argument {rest[0]!r}. Options start with --.")
    return RunConfig(
        **{
            field.name: _as_field(field, values[field.name].value)
            for field in dataclasses.fields(RunConfig)
        }
    )


def help_page() -> str:
    """What `--help` prints."""
    lines, group = [INTRODUCTION], None
    for field in dataclasses.fields(RunConfig):
        if field.metadata["group"] != group:
            group = field.metadata["group"]
            lines.append(f"\n{group}")
        choices = [choice for choice in field.metadata["choices"] or () if choice]
        default = field.default
        if isinstance(default, tuple):
            default = ",".join(str(item) for item in default)
        shown = "method's" if default is None else "" if default == "" else default
        text = field.metadata["help"]
        if choices:
            text += f" One of: {', '.join(choices)}."
        lines.append(f"  --{field.name}: {text} [{shown}]")
    lines.append("\n  --helpfull: also the flags of the libraries underneath.")
    return "\n".join(lines)


def _as_we_say(message: str) -> str:
    """absl's words for a wrong flag in ours."""
    message = " ".join(message.split()).rstrip(".")
    bad = re.fullmatch(r"flag --(\w+)=(.*?): (.*)", message)
    field = RunConfig.__dataclass_fields__.get(bad[1]) if bad else None
    if not field:
        unknown = re.sub(r"Did you mean: (\w+) \?", r"Did you mean --\1?", message)
        return unknown if unknown.endswith("?") else f"{unknown}."
    if field.metadata["choices"]:
        known = ", ".join(choice for choice in field.metadata["choices"] if choice)
        return f"--{bad[1]} must be one of {known}; got {bad[2]!r}."
    words = {int: "a whole number", float: "a number", bool: "true or false"}
    kind = words.get(value_type(field), "a comma list")
    return f"--{bad[1]} must be {kind}; got {bad[2]!r}."


def _as_field(field: dataclasses.Field, value: Any) -> Any:
    """A flag's value as the field's type: lists become tuples of their item type."""
    return read_value(field, ",".join(value)) if isinstance(value, list) else value
