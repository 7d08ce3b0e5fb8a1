"""Small programs around a run: `python -m cdfkd_tf.tools.<name> --help`."""

import sys
from collections.abc import Callable

from cdfkd_tf.errors import RequestError, one_line


def exit_code(work: Callable[[], None]) -> int:
    """Does `work`; 0, or 2 after one `error:` line for a wrong request."""
    try:
        work()
    except RequestError as error:
        print(f"error: {one_line(error, 2000)}", file=sys.stderr)
        return error.exit_code
    return 0
