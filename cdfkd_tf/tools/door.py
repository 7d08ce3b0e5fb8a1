"""What the small programs share: one `error:` line and an exit code, as main.py has."""

import sys
from collections.abc import Callable

from cdfkd_tf.errors import RequestError


def run(work: Callable[[], None]) -> int:
    """Does `work`; returns 0, or 2 after one `error:` line for a wrong request."""
    try:
        work()
    except RequestError as error:
        print(f"error: {' '.join(str(error).split())}", file=sys.stderr)
        return error.exit_code
    return 0
