"""How several processes share one search: Keras Tuner's variables, chief, workers.

None waits for ever for another one: a worker shows that it lives by a file in the
workdir that it writes again and again, the chief by its answers.
"""

import contextlib
import os
import pathlib
import socketserver
import threading
import time
from collections.abc import Callable, Iterator

import keras_tuner

from cdfkd_tf.errors import RequestError, RunError
from cdfkd_tf.runtime.keras_internals import limit_wait_for_oracle
from cdfkd_tf.runtime.multi_worker import reachable

_ADDRESS = ("KERASTUNER_ORACLE_IP", "KERASTUNER_ORACLE_PORT")
_ID = "KERASTUNER_TUNER_ID"
_VARIABLES = (*_ADDRESS, _ID)
_PAUSE = 1.0  # seconds between looks for others, and between signs of life


def find_role() -> str:
    """`alone`, `chief` or `worker`, as Keras Tuner's variables say.

    Raises:
        RequestError: some of them are set, but not all, or the port is no number.
    """
    if not any(name in os.environ for name in _VARIABLES):
        return "alone"
    missing = [name for name in _VARIABLES if not os.environ.get(name)]
    if missing:
        raise RequestError(
            f"Several processes share a search with {', '.join(_VARIABLES)}; there is "
            f"no {', '.join(missing)}. Set all three, or none for one process alone."
        )
    port = os.environ[_ADDRESS[1]]
    if not port.isdecimal() or not 0 < int(port) < 2**16:
        raise RequestError(f"{_ADDRESS[1]} must be a port number; got {port!r}.")
    return "chief" if "chief" in os.environ[_ID] else "worker"


@contextlib.contextmanager
def listening() -> Iterator[None]:
    """Lets workers see that the chief is there, before Keras Tuner's server is.

    Raises:
        RequestError: this process cannot listen at the address in the variables.
    """
    host, port = (os.environ[name] for name in _ADDRESS)
    try:
        server = _Server((host, int(port)), socketserver.BaseRequestHandler)
    except OSError as error:
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
    address = _address()
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
                f"command and {_ID}=chief; --worker_timeout waits longer."
            )
        time.sleep(min(_PAUSE, seconds))


@contextlib.contextmanager
def working(folder: pathlib.Path, seconds: float) -> Iterator[None]:
    """Shows the chief that this worker lives, and limits the wait for its answers.

    Args:
        folder: of signs of life, which the chief sees too.
        seconds: to wait for an answer at most.

    Raises:
        RunError: the chief does not answer, or no longer.
    """
    import grpc

    limit_wait_for_oracle(seconds)
    folder.mkdir(parents=True, exist_ok=True)
    sign, ended = folder / os.environ[_ID], threading.Event()

    def show() -> None:
        while not ended.wait(min(_PAUSE, seconds / 4)):
            with contextlib.suppress(OSError):  # a full disk is the trial's trouble
                sign.touch()

    sign.touch()
    threading.Thread(target=show, daemon=True).start()
    try:
        yield
    except grpc.RpcError as error:
        raise RunError(
            f"The chief at {_address()} did not answer within {seconds:g} s. Start all "
            "again with the same command: the search goes on. --worker_timeout waits "
            "longer."
        ) from error
    finally:
        ended.set()


def lead(
    tuner: keras_tuner.Tuner,
    folder: pathlib.Path,
    seconds: float,
    give_up: Callable[[str], None],
) -> None:
    """Hands out trials until all workers were told to stop.

    Args:
        tuner: the chief's.
        folder: where workers show that they live.
        seconds: after which a worker without a sign of life is given up.
        give_up: is called with its id; must end its trial.

    Raises:
        RunError: no worker lives.
    """
    failures: list[BaseException] = []

    def serve() -> None:
        try:
            tuner.search()
        except BaseException as error:
            failures.append(error)

    server = threading.Thread(target=serve, daemon=True)  # its loop knows no end
    server.start()
    oracle, start = tuner.oracle, time.monotonic()
    signs: dict[str, tuple[int, float]] = {}  # worker -> its last sign, when seen
    known, lost = set(), set()
    while server.is_alive():
        server.join(min(_PAUSE, seconds))
        now, workers = time.monotonic(), {*oracle.tuner_ids, *oracle.ongoing_trials}
        known |= workers
        if known - lost and not workers:
            break  # those that are left were told to stop
        files = folder.glob("*") if folder.is_dir() else ()
        shown = {file.name: file.stat().st_mtime_ns for file in files}
        for name in {*shown, *workers}:  # by this host's clock: others may differ
            if name not in signs or signs[name][0] != shown.get(name, 0):
                signs[name] = shown.get(name, 0), now
        for name in workers:
            if now - signs[name][1] >= seconds:
                lost.add(name)
                give_up(name)
        if now - max([start, *(when for _, when in signs.values())]) >= seconds:
            raise RunError(
                f"No worker of this search showed a sign of life for {seconds:g} s. "
                f"Start all again with the same command, workers with {_ID}=worker0 "
                "and so on: the search goes on. --worker_timeout waits longer."
            )
    if failures:
        raise failures[0]


def _address() -> str:
    return ":".join(os.environ[name] for name in _ADDRESS)
