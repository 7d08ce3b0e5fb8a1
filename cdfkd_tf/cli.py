"""The door: a command line in, an exit code out.

TensorFlow is imported behind the flags, so that `--help` and wrong flags answer at
once.
"""

import contextlib
import os
import sys
import traceback
from collections.abc import Iterator

from cdfkd_tf import flags
from cdfkd_tf.errors import RequestError


def main(argv: list[str] | None = None) -> int:
    """Runs one action.

    Returns:
        0 done, 1 failed while running, 2 wrong request, 130 interrupted. Whatever
        is not 0 leaves one line on standard error that starts with `error:`.
    """
    argv = sys.argv if argv is None else argv
    debug = "--debug" in argv
    try:
        flags.define()
        config = flags.parse(argv)
        debug = config.debug
        with _quiet_import():
            from cdfkd_tf import runs
        runs.run(config)
    except KeyboardInterrupt:
        _say("Interrupted. The last checkpoint is kept; the same command continues.")
        return 130
    except Exception as error:  # the door: users see one line, never a traceback
        if debug:
            traceback.print_exc()
        _say(_one_line(error))
        return getattr(error, "exit_code", 1)
    return 0


def _one_line(error: Exception) -> str:
    text = " ".join(str(error).split())
    if isinstance(error, RequestError) or hasattr(error, "exit_code"):
        return text
    text = text if len(text) < 300 else text[:300] + " ..."
    return f"{type(error).__name__}: {text} Run again with --debug for the traceback."


def _say(text: str) -> None:
    sys.stdout.flush()
    print(f"error: {text}", file=sys.stderr, flush=True)


@contextlib.contextmanager
def _quiet_import() -> Iterator[None]:
    """Hides what TensorFlow's C++ side writes to standard error when it loads.

    Its log level variables silence only part of it. A Python exception still shows:
    it is raised after standard error is back.
    """
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
    sys.stderr.flush()
    saved, null = os.dup(2), os.open(os.devnull, os.O_WRONLY)
    os.dup2(null, 2)
    os.close(null)
    try:
        yield
    finally:
        sys.stderr.flush()
        os.dup2(saved, 2)
        os.close(saved)
