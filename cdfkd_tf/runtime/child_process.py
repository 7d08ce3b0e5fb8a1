"""Work in a process of its own: for native code that may die, or never end."""

import json
import os
import select
import signal
from collections.abc import Callable


def in_child(work: Callable[[], dict], seconds: float | None = None) -> dict | None:
    """What `work` gives, as JSON carries it, out of a process of its own.

    Args:
        work: called once, in a fork of this process; not on Windows.
        seconds: that it may take; None: any.

    Returns:
        None if that process died or took longer.
    """
    receive, send = os.pipe()
    child = os.fork()  # not spawned: that would run the caller's script again
    if not child:
        try:
            with open(send, "w") as pipe:
                json.dump(work(), pipe)
            os._exit(0)
        finally:
            os._exit(1)
    os.close(send)
    with open(receive) as pipe:
        if not select.select([pipe], [], [], seconds)[0]:
            os.kill(child, signal.SIGKILL)
        text = pipe.read()
    _, status = os.waitpid(child, 0)
    return None if status else json.loads(text)
