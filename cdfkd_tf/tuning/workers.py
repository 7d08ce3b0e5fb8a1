"""How several processes share one search: Keras Tuner's variables, chief, workers."""

import contextlib
import os
import socketserver
import threading
import time
from collections.abc import Callable, Iterator

from cdfkd_tf.errors import RequestError, RunError
from cdfkd_tf.runtime.multi_worker import reachable

_ADDRESS = ("KERASTUNER_ORACLE_IP", "KERASTUNER_ORACLE_PORT")
_VARIABLES = (*_ADDRESS, "KERASTUNER_TUNER_ID")
_PAUSE = 1  # seconds between looks for the chief


def find_role() -> str:
    """`alone`, `chief` or `worker`, as Keras Tuner's variables say.

    Raises:
        RequestError: some of them are set, but not all.
    """
    missing = [name for name in _VARIABLES if name not in os.environ]
    if len(missing) == len(_VARIABLES):
        return "alone"
    if missing:
        raise RequestError(
            f"Several processes share a search with {', '.join(_VARIABLES)}; there is "
            f"no {', '.join(missing)}. Set all three, or none for one process alone."
        )
    return "chief" if "chief" in os.environ["KERASTUNER_TUNER_ID"] else "worker"


@contextlib.contextmanager
def listening() -> Iterator[None]:
    """Lets workers see that the chief is there, before Keras Tuner's server is.

    Raises:
        RequestError: this process cannot listen at the address in the variables.
    """
    host, port = (os.environ[name] for name in _ADDRESS)
    try:
        server = _Server((host, int(port)), socketserver.BaseRequestHandler)
    except (OSError, ValueError, OverflowError) as error:
        raise RequestError(
            f"The chief cannot listen at {host}:{port}, as {' and '.join(_ADDRESS)} "
            f"say: {error}. Give an address of this host and a free port."
        ) from error
    with server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        try:
            yield
        finally:
            server.shutdown()


class _Server(socketserver.TCPServer):
    allow_reuse_address = True  # Keras Tuner's server follows at once


def await_chief(is_prepared: Callable[[], bool], seconds: float) -> None:
    """Returns once the chief can be reached and has prepared the search.

    Args:
        is_prepared: whether it has, as its workdir says.
        seconds: to wait for a chief that cannot be reached; one that is there may
            train teachers as long as it takes.

    Raises:
        RunError: it does not come, or is gone.
    """
    address = ":".join(os.environ[name] for name in _ADDRESS)
    print(f"Waiting for the chief at {address}.", flush=True)
    seen = time.monotonic()
    while True:
        if reachable(address):
            if is_prepared():
                return
            seen = time.monotonic()
        elif time.monotonic() - seen >= seconds:
            raise RunError(
                f"No chief at {address} within {seconds:g} s. Start it with the same "
                "command and KERASTUNER_TUNER_ID=chief; --worker_timeout waits longer."
            )
        time.sleep(min(_PAUSE, seconds))
