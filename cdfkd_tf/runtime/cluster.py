"""Which processes train together, as TF_CONFIG says, and that all of them come."""

import dataclasses
import json
import os
import socket
import time
from typing import Any

from cdfkd_tf.errors import RequestError, RunError

_EXAMPLE = (
    '{"cluster": {"worker": ["host0:2222", "host1:2222"]}, '
    '"task": {"type": "worker", "index": 0}}'
)
_PAUSE = 0.2  # seconds between attempts to reach a peer


@dataclasses.dataclass(frozen=True)
class Cluster:
    """All processes of one run, and which of them this is.

    Attributes:
        addresses: `host:port` of each, the chief's first.
        index: of this process among them.
    """

    addresses: tuple[str, ...]
    index: int

    @classmethod
    def from_environment(cls) -> "Cluster":
        """What the variable TF_CONFIG says.

        Raises:
            RequestError: if it is missing or names no such cluster.
        """
        text = os.environ.get("TF_CONFIG", "")
        try:
            addresses, index = _read(json.loads(text))
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise RequestError(
                f"--strategy=multi_worker reads the cluster from the variable "
                f"TF_CONFIG, such as {_EXAMPLE}; got {text[:200]!r}."
            ) from error
        if not 0 <= index < len(addresses):
            raise RequestError(
                f"TF_CONFIG names {len(addresses)} processes and calls this one number "
                f"{index}, counted from 0. Give each process its own index."
            )
        return cls(addresses, index)

    @property
    def is_chief(self) -> bool:
        """Whether this process writes the workdir and does all that one can do."""
        return self.index == 0

    def as_json(self) -> str:
        """TF_CONFIG in its plainest form: workers, the first of them the chief."""
        task = {"type": "worker", "index": self.index}
        return json.dumps({"cluster": {"worker": self.addresses}, "task": task})

    def __str__(self) -> str:
        return f"process {self.index} of {len(self.addresses)}"

    def await_peers(self, seconds: float) -> None:
        """Returns once every process listens at its address.

        TensorFlow itself would wait for ever, deaf to SIGTERM.

        Args:
            seconds: to wait at most.

        Raises:
            RequestError: this process cannot listen at its own address.
            RunError: naming the processes that did not come.
        """
        deadline = time.monotonic() + seconds
        missing = {i: a for i, a in enumerate(self.addresses) if i != self.index}
        with self._listening():
            while True:
                missing = {i: a for i, a in missing.items() if not reachable(a)}
                if not missing:
                    return
                if time.monotonic() >= deadline:
                    break
                time.sleep(_PAUSE)
        names = ", ".join(f"number {i} at {a}" for i, a in missing.items())
        raise RunError(
            f"Of {len(self.addresses)} processes, {names} did not come within "
            f"{seconds:g} s. Start all with the same command and check the names and "
            "ports in TF_CONFIG; --worker_timeout waits longer."
        )

    def _listening(self) -> socket.socket:
        port = self.addresses[self.index].rpartition(":")[2]
        try:
            return socket.create_server(("", int(port)), backlog=len(self.addresses))
        except OSError as error:
            raise RequestError(
                f"This process cannot listen at port {port}, which TF_CONFIG gives it: "
                f"{error.strerror}. Give it a free port, or end what uses it."
            ) from error


def reachable(address: str) -> bool:
    """Whether somebody listens at `host:port`."""
    host, _, port = address.rpartition(":")
    try:
        with socket.create_connection((host.strip("[]"), int(port)), timeout=2):
            return True
    except OSError:
        return False


def _read(table: dict[str, Any]) -> tuple[tuple[str, ...], int]:
    """Addresses, the chief's first, and the place of this process among them."""
    jobs, task = table["cluster"], table["task"]
    known = [job for job in ("chief", "worker") if job in jobs]
    if not known or set(jobs) - set(known) or task["type"] not in known:
        raise ValueError("only chief and worker train")
    addresses = [address for job in known for address in jobs[job]]
    for address in addresses:
        int(address.rpartition(":")[2])
    before = len(jobs["chief"]) if task["type"] == "worker" and "chief" in jobs else 0
    return tuple(addresses), before + int(task["index"])
