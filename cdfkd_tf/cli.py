"""Command-line entry point: flags to a `RunConfig`, errors to exit codes."""

import _thread
import codecs
import contextlib
import functools
import importlib.metadata
import os
import pathlib
import re
import signal
import sys
import textwrap
import threading
import traceback
import warnings
from collections.abc import Callable, Iterator, Sequence

from absl import app
from absl import flags as absl_flags

import cdfkd_tf
from cdfkd_tf.config import (
    ACTIONS,
    FIELDS,
    GROUPS,
    REMOVED,
    RENAMED,
    RunConfig,
    choices_of,
    existing,
    hint_for,
    names_in,
    text_of,
    value_type,
)
from cdfkd_tf.distillation.methods import PUBLISHED
from cdfkd_tf.errors import (
    DistillationWarning,
    RequestError,
    file_system_error,
    one_line,
)
from cdfkd_tf.pipeline import run as pipeline
from cdfkd_tf.recipes import find_recipe, recipe_page
from cdfkd_tf.tools import COMMANDS

INTRODUCTION = """\
Several trained image classifiers in, one small network out, without their data.

  {program} --teachers=a.keras,b.keras --minutes=5   models of your own
  {program} --recipe=NAME [--flag=value ...]         a run that is shipped
  {program} --flagfile=FILE [--flag=value ...]       the same from a file
  {program} COMMAND ...

Put --recipe and --flagfile first: the last value of a flag wins. Defaults stand in
brackets."""
# What `-h` shows of the options.
_MOST_USED = (
    *("teachers", "image_folder", "workdir", "minutes", "method", "student"),
    *("student_width", "labelled_samples", "export_formats", "strategy", "seed"),
)
_BINARY = re.compile(r"[\0-\x08\x0e-\x1a\x1c-\x1f]")  # in no text file
_COMMENT = re.compile("#|//")
_SECONDS = 0.1  # until a lost interruption is raised again


def main(
    argv: list[str] | None = None, values: absl_flags.FlagValues = absl_flags.FLAGS
) -> int:
    """Runs one action.

    Args:
        argv: the program's name and its arguments; None: this process's.
        values: where flags are defined and parsed; a fresh one where main is called
            more than once in a process.

    Returns:
        0 done, 1 failed while running, 2 wrong request, 130 interrupted. Whatever
        is not 0 leaves one line on standard error that starts with `error:`.
    """
    argv = sys.argv if argv is None else argv
    debug = "--debug" in argv
    try:
        if not argv[1:]:
            _show(short_page())
            return 0
        if argv[1] in COMMANDS:
            module = f"cdfkd_tf.tools.{COMMANDS[argv[1]][0]}"
            return importlib.import_module(module).main(argv[2:])
        define(values)
        config = parse(argv, values)
        debug = config.debug
        with _plain_warnings(), _terminated_as_interrupted():
            pipeline.run(config)
    except KeyboardInterrupt:
        _print("Interrupted. What is finished is kept; the same command continues.")
        return 130
    except Exception as error:  # users get one line, never a traceback
        if debug:
            traceback.print_exc()
        error = file_system_error(error)
        if hasattr(error, "exit_code"):
            _print(one_line(error, limit=10_000))
            return error.exit_code
        _print(
            f"{type(error).__name__}: {one_line(error)} Run again with --debug for the "
            "traceback."
        )
        return 1
    return 0


class _PageFlag(absl_flags.BooleanFlag):
    """A flag that prints a page and leaves."""

    def __init__(self, name: str, page: Callable[[], str], help: str):
        super().__init__(name, False, help)
        self.page = page

    def parse(self, arg):
        if self._parse(arg):
            _show(self.page())
            sys.exit(0)


def define(values: absl_flags.FlagValues = absl_flags.FLAGS) -> None:
    """Defines one flag per option in `values`; call once per process."""
    for name, page, help in (
        ("h", short_page, "Commands and the most used flags."),
        ("help", help_page, "Every flag."),
        ("version", version, "Versions of this package and those underneath."),
    ):
        absl_flags.DEFINE_flag(_PageFlag(name, page, help), values)
    absl_flags.DEFINE_flag(app.HelpfullFlag(), values)
    for name, field in FIELDS.items():
        is_bool = value_type(field) is bool
        define = absl_flags.DEFINE_bool if is_bool else absl_flags.DEFINE_string
        define(name, None, field.metadata["help"], flag_values=values)


def parse(
    argv: list[str], values: absl_flags.FlagValues = absl_flags.FLAGS
) -> RunConfig:
    """The run that the command line describes.

    Args:
        argv: the program's name, then its arguments.

    Raises:
        RequestError: unknown flag, bad value, missing flagfile or stray argument.
    """
    program, *arguments = argv
    if arguments and arguments[0] in ACTIONS:  # `predict` for `--action=predict`
        arguments[0] = f"--action={arguments[0]}"
    try:
        rest = values([program, *with_flagfiles(arguments)])[1:]
    except absl_flags.Error as error:
        raise RequestError(_explained(one_line(error))) from error
    if rest:
        commands = ", ".join((*COMMANDS, *ACTIONS))
        raise RequestError(
            f"Unexpected argument {rest[0]!r}. Options start with --, commands come "
            f"first: {commands}."
        )
    given = {name: values[name].value for name in FIELDS}
    return RunConfig(**{n: text for n, text in given.items() if text is not None})


def with_flagfiles(
    arguments: Sequence[str], within: tuple[pathlib.Path, ...] = ()
) -> list[str]:
    """Arguments with the lines of each flagfile or recipe in the place of its name.

    `--recipe=list` prints the names and leaves.

    Args:
        arguments: without the program's name.
        within: the flagfiles that hold these arguments; one within itself is left out.

    Raises:
        RequestError: a flagfile that is not there or is no text.
    """
    found, rest = [], list(arguments)
    while rest:
        name, equals, file = rest[0].partition("=")
        recipe = name in ("--recipe", "-recipe")
        if not recipe and name not in ("--flagfile", "-flagfile"):
            found.append(rest.pop(0))
            continue
        del rest[0]
        if not equals and rest:
            file = rest.pop(0)
        if recipe and file == "list":
            _show(recipe_page())
            sys.exit(0)
        if not file:
            continue
        if recipe:
            file = str(find_recipe(file))
        path = pathlib.Path(*existing("flagfile", [file]))
        if within and not path.exists():  # beside the one that names it
            path = within[-1].parent / path
        if path.resolve() not in within:
            lines = map(str.strip, _text_of_file(path).splitlines())
            flags = [line for line in lines if line and not _COMMENT.match(line)]
            found += with_flagfiles(flags, (*within, path.resolve()))
    return found


def _text_of_file(path: pathlib.Path) -> str:
    """A flagfile's text, in whatever encoding an editor or a shell wrote it."""
    try:
        content = path.read_bytes()
    except OSError as error:
        raise RequestError(
            f"Cannot read flagfile {path}: {error.strerror}. Check the path after "
            "--flagfile."
        ) from error
    marked = content.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE))
    for encoding in ["utf-16"] if marked else ["utf-8-sig", "cp1252", "latin-1"]:
        with contextlib.suppress(UnicodeDecodeError):
            text = content.decode(encoding)
            if not _BINARY.search(text):
                return text
    raise RequestError(
        f"Flagfile {path} is no text; expected one --flag=value per line."
    )


def help_page() -> str:
    """What `--help` prints: every flag, in its group."""
    lines = [_introduction()]
    for group in GROUPS:
        lines += [f"\n{group}", *map(_flag_line, names_in(group))]
    lines.append("\n  --helpfull: also the flags of the libraries underneath.")
    return "\n".join(lines)


def short_page() -> str:
    """What `-h`, and no argument at all, prints: commands and the most used flags."""
    lines = [_introduction(), "\nCommands (COMMAND -h for more)"]
    lines += [f"  {name:16}{what}" for name, (_, what) in COMMANDS.items()]
    lines += ["\nSteps of a run, each for itself, as --action=NAME or NAME"]
    names = textwrap.wrap(", ".join(ACTIONS), 84)
    lines += [f"  {line}" for line in names] + ["\nMost used flags"]
    for name in _MOST_USED:
        lines += textwrap.wrap(_flag_line(name), 88, subsequent_indent=" " * 6)
    lines.append(
        "\n--recipe=list: names of recipes. --help: every flag. --version: versions."
    )
    return "\n".join(lines)


def version() -> str:
    """What `--version` prints."""
    names = ("tensorflow", "keras")
    found = [f"{name} {importlib.metadata.version(name)}" for name in names]
    return f"cdfkd_tf {cdfkd_tf.__version__} ({', '.join(found)})"


def _show(page: str) -> None:
    """Prints a page; whoever closes the pipe early, as `| head`, has read enough."""
    try:
        print(page, flush=True)
    except BrokenPipeError:  # Python would flush once more on its way out
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _introduction() -> str:
    as_script = sys.argv[0].endswith("main.py")
    program = "python main.py" if as_script else "cdfkd-tf"
    return INTRODUCTION.format(program=program)


def _flag_line(name: str) -> str:
    text = FIELDS[name].metadata["help"]
    choices = ", ".join(filter(None, choices_of(FIELDS[name])))
    if choices:
        text += f" One of: {choices}."
    value = getattr(RunConfig(), name)
    of_method = name in PUBLISHED or isinstance(value, dict)
    shown = "the method's" if of_method else text_of(value)
    return f"  --{name}: {text} [{shown}]"


def _explained(message: str) -> str:
    """absl's message about a wrong flag, with what to do."""
    message = message.rstrip(".")
    unknown = re.search(r"Unknown command line flag '(?:no)?(\w+)'", message)
    if unknown and unknown[1] in {**RENAMED, **REMOVED}:
        return f"There is no flag --{unknown[1]}{hint_for(unknown[1])}"
    boolean = re.fullmatch(r"flag --(\w+)=(.*?): .*Non-boolean .*", message)
    if boolean:
        return f"--{boolean[1]} must be true or false; got {boolean[2]!r}."
    message = re.sub(r"Did you mean: (\w+) \?", r"Did you mean --\1?", message)
    message = message if message.endswith("?") else f"{message}."
    return f"{message} See --help for every flag."


@contextlib.contextmanager
def _terminated_as_interrupted() -> Iterator[None]:
    """SIGTERM, which schedulers send before they kill, ends a run as Ctrl-C does."""
    if threading.current_thread() is not threading.main_thread():
        yield  # signals belong to the main thread
        return

    def interrupt(number, frame):
        raise KeyboardInterrupt

    def again_if_lost(lost):
        """Python drops an exception raised within a finaliser: raise it again."""
        if issubclass(lost.exc_type, KeyboardInterrupt):
            # Not SIGINT: a process in the background may have it ignored.
            again = functools.partial(_thread.interrupt_main, signal.SIGTERM)
            timers.append(threading.Timer(_SECONDS, again))
            timers[-1].start()
        else:
            others(lost)

    timers: list[threading.Timer] = []
    before, others = signal.signal(signal.SIGTERM, interrupt), sys.unraisablehook
    sys.unraisablehook = again_if_lost
    try:
        yield
    finally:
        for timer in timers:  # it would interrupt what this process does next
            timer.cancel()
        signal.signal(signal.SIGTERM, before)
        sys.unraisablehook = others


@contextlib.contextmanager
def _plain_warnings() -> Iterator[None]:
    """Our own warnings as one line without file and line number."""
    with warnings.catch_warnings():
        warnings.simplefilter("always", DistillationWarning)
        others = warnings.showwarning

        def show(message, category, *args, **kwargs):
            if issubclass(category, DistillationWarning):
                _print(str(message), "warning")
            else:
                others(message, category, *args, **kwargs)

        warnings.showwarning = show
        yield


def _print(text: str, kind: str = "error") -> None:
    sys.stdout.flush()
    print(f"{kind}: {text}", file=sys.stderr, flush=True)
