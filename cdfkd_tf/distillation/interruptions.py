"""SIGTERM and Ctrl-C, held back until a step is finished and saved."""

import contextlib
import os
import signal
import threading
from collections.abc import Iterator

_NOTE = b"\nSaving at the end of this step; once more stops at once.\n"


class Interruption:
    """The first signal is a wish, the second an interruption.

    Attributes:
        asked: whether somebody wished to stop.
    """

    def __init__(self):
        self.asked = False

    @contextlib.contextmanager
    def postponed(self) -> Iterator[None]:
        """Within the block SIGTERM and SIGINT set `asked`.

        Elsewhere than in the main thread nothing happens: signals belong to it.
        """
        if threading.current_thread() is not threading.main_thread():
            yield
            return
        numbers = (signal.SIGTERM, signal.SIGINT)
        before = {number: signal.signal(number, self._ask) for number in numbers}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    def _ask(self, number, frame):
        if self.asked:
            raise KeyboardInterrupt
        self.asked = True
        os.write(1, _NOTE)  # print may be interrupted within itself
