"""The door: a command line in, an exit code out."""

import _thread
import contextlib
import functools
import signal
import sys
import threading
import traceback
import warnings
from collections.abc import Iterator

from absl import flags as absl_flags

from cdfkd_tf import flags, runs
from cdfkd_tf.errors import DistillationWarning, of_the_system


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
        flags.define(values)
        config = flags.parse(argv, values)
        debug = config.debug
        with _plain_warnings(), _terminated_as_interrupted():
            runs.run(config)
    except KeyboardInterrupt:
        _say("Interrupted. The last checkpoint is kept; the same command continues.")
        return 130
    except Exception as error:  # the door: users see one line, never a traceback
        if debug:
            traceback.print_exc()
        error = of_the_system(error)
        _say(_one_line(error))
        return getattr(error, "exit_code", 1)
    return 0


_SECONDS = 0.1  # until a lost interruption is raised again


@contextlib.contextmanager
def _terminated_as_interrupted() -> Iterator[None]:
    """SIGTERM, which schedulers send before they kill, ends a run as Ctrl-C does."""
    if threading.current_thread() is not threading.main_thread():
        yield  # signals belong to the main thread
        return

    def interrupt(number, frame):
        raise KeyboardInterrupt

    def insist(lost):
        """Python drops an exception that meets a finaliser: then once more."""
        if issubclass(lost.exc_type, KeyboardInterrupt):
            # Not SIGINT: what runs in the background may have it ignored.
            again = functools.partial(_thread.interrupt_main, signal.SIGTERM)
            threading.Timer(_SECONDS, again).start()
        else:
            others(lost)

    before, others = signal.signal(signal.SIGTERM, interrupt), sys.unraisablehook
    sys.unraisablehook = insist
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)
        sys.unraisablehook = others


@contextlib.contextmanager
def _plain_warnings() -> Iterator[None]:
    """Our own warnings become one `warning:` line each, without file and line."""
    with warnings.catch_warnings():
        warnings.simplefilter("always", DistillationWarning)
        others = warnings.showwarning

        def show(message, category, *args, **kwargs):
            if issubclass(category, DistillationWarning):
                _say(str(message), "warning")
            else:
                others(message, category, *args, **kwargs)

        warnings.showwarning = show
        yield


def _one_line(error: Exception) -> str:
    text = " ".join(str(error).split())
    if hasattr(error, "exit_code"):  # our own words, meant for users
        return text
    text = text if len(text) < 300 else text[:300] + " ..."
    return f"{type(error).__name__}: {text} Run again with --debug for the traceback."


def _say(text: str, kind: str = "error") -> None:
    sys.stdout.flush()
    print(f"{kind}: {text}", file=sys.stderr, flush=True)
