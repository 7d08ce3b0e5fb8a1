"""The two ways in which a run can end badly, and what users are warned of."""


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
