"""The two ways in which a run can end badly, and what users are warned of."""

import pathlib
import re
from collections.abc import Mapping
from typing import Any

_FULL = re.compile("No space left on device|File too large|quota exceeded", re.I)
# As Python and TensorFlow end their messages; the path stands before or after.
_CLOSED = re.compile(
    "(Permission denied|Read-only file system|Not a directory|Is a directory|"
    "File name too long|No such file or directory|File exists)"
)
_LIBRARIES = ("tensorflow", "h5py", "keras")
_PATH = re.compile(r"(/[^;:'\"\n]+)")


class RequestError(ValueError):
    """The request is wrong: a flag, a file or a combination. Exit code 2.

    The message is one sentence or two: what was expected, what arrived, what to do.
    """

    exit_code = 2


class RunError(RuntimeError):
    """A right request failed while running (NaN, failed export). Exit code 1."""

    exit_code = 1


class DistillationWarning(UserWarning):
    """The run goes on, but not as well as it could; the message says what to do."""


def one_line(error: Exception | str, limit: int = 1000) -> str:
    """A message on one line; of a longer one the middle is left out.

    Libraries tell the cause at the end.
    """
    text = " ".join(str(error).split())
    if len(text) <= limit:
        return text
    head = limit // 3
    return f"{text[:head]} ... {text[head - limit :]}"


def reason(error: Exception | str, limit: int = 1000) -> str:
    """The same as a sentence, which ends with a full stop."""
    text = one_line(error, limit)
    return text if text.endswith((".", "!", "?")) else f"{text}."


def lookup(table: Mapping[str, Any], name: str, kind: str) -> Any:
    """The entry of a table that users choose from by name.

    Args:
        table: name to entry.
        name: what was asked for.
        kind: what the entries are, in the singular, for the message.

    Raises:
        RequestError: if there is no such entry; the message lists the known names.
    """
    if name not in table:
        raise RequestError(f"Unknown {kind} {name!r}. Known: {', '.join(table)}.")
    return table[name]


def file_system_error(error: Exception) -> Exception:
    """Turns what the disk or the file system refused into an error of ours.

    Args:
        error: any; others, and refused requests, come back as they are.
    """
    text, known = str(error), getattr(error, "exit_code", None)
    full, closed = _FULL.search(text), _CLOSED.search(text)
    # Words alone are no proof: any library may write "File exists".
    room = type(error).__module__.partition(".")[0]
    of_files = isinstance(error, OSError) or known or room in _LIBRARIES
    if known == RequestError.exit_code or not of_files:
        return error
    if full:
        return RunError(
            f"Cannot write: {full[0]}. Make room on the disk of --workdir, or lift the "
            "limit on the size of files; the same command continues."
        )
    found = _PATH.search(text)
    path = getattr(error, "filename", None) or (found and found[1].strip())
    if known or not closed or not path:
        return error
    path = pathlib.Path(path)
    if path.name.startswith("."):  # how files are called until they are whole
        path = path.parent
    why = closed[1]
    if why == "File exists":
        why = "a file is in the place of a folder"
    return RequestError(
        f"Cannot use {path}: {why}. Check the path and its rights, or give another one."
    )
