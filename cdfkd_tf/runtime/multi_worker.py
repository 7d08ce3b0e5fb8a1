"""Several processes, on one host or on many, that train as one.

TF_CONFIG is read here, not by TensorFlow's `TFConfigClusterResolver`: a request is
checked, and a missing process reported, before TensorFlow is imported. It takes seconds
to import and would wait for other processes for ever, without reacting to SIGTERM.
"""

import contextlib
import dataclasses
import json
import os
import re
import socket
import time
import zlib
from collections.abc import Iterator
from typing import TYPE_CHECKING

from cdfkd_tf.errors import RequestError, RunError

if TYPE_CHECKING:
    import tensorflow as tf

_EXAMPLE = (
    '{"cluster": {"worker": ["host0:2222", "host1:2222"]}, '
    '"task": {"type": "worker", "index": 0}}'
)
_PAUSE = 0.2  # seconds between attempts to reach another process


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
        """The cluster that the variable TF_CONFIG describes.

        Raises:
            RequestError: if it is missing or describes no such cluster.
        """
        text = os.environ.get("TF_CONFIG", "")
        try:
            table = json.loads(text)
            jobs, task = table["cluster"], table["task"]
            known = [job for job in ("chief", "worker") if job in jobs]
            if not known or set(jobs) - set(known) or task["type"] not in known:
                raise ValueError("only chief and worker train")
            addresses = tuple(address for job in known for address in jobs[job])
            for address in addresses:
                int(address.rpartition(":")[2])
            is_behind_chief = task["type"] == "worker" and "chief" in jobs
            before = len(jobs["chief"]) if is_behind_chief else 0
            index = before + int(task["index"])
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

        Args:
            seconds: to wait at most.

        Raises:
            RequestError: this process cannot listen at its own address.
            RunError: naming the processes that did not come.
        """
        port, count = self.addresses[self.index].rpartition(":")[2], len(self.addresses)
        try:
            server = socket.create_server(("", int(port)), backlog=count)
        except OSError as error:
            raise RequestError(
                f"This process cannot listen at port {port}, which TF_CONFIG gives it: "
                f"{error.strerror}. Give it a free port, or end what uses it."
            ) from error
        deadline = time.monotonic() + seconds
        missing = {i: a for i, a in enumerate(self.addresses) if i != self.index}
        with server:
            while missing := {i: a for i, a in missing.items() if not reachable(a)}:
                if time.monotonic() >= deadline:
                    names = ", ".join(f"number {i} at {a}" for i, a in missing.items())
                    raise RunError(
                        f"Of {count} processes, {names} did not come within "
                        f"{seconds:g} s. Start all with the same command and check the "
                        "names and ports in TF_CONFIG; --worker_timeout waits longer."
                    )
                time.sleep(_PAUSE)


def reachable(address: str) -> bool:
    """Whether a process listens at `host:port`."""
    host, _, port = address.rpartition(":")
    try:
        with socket.create_connection((host.strip("[]"), int(port)), timeout=2):
            return True
    except OSError:
        return False


class WorkerGroup:
    """The strategy that spans all processes, and sums over them.

    To be made before TensorFlow's first operation.

    Args:
        cluster: the processes.
        timeout: seconds to wait for the others.

    Raises:
        RequestError: this process cannot listen at its own address.
        RunError: another process did not come.
    """

    def __init__(self, cluster: Cluster, timeout: float):
        import tensorflow as tf

        self.cluster = cluster
        cluster.await_peers(timeout)
        os.environ["TF_CONFIG"] = cluster.as_json()
        try:
            self.strategy = tf.distribute.MultiWorkerMirroredStrategy()
        except tf.errors.OpError as error:
            raise self._gone(error) from error

        def sum_over_replicas(number):
            replicas = tf.distribute.get_replica_context()
            return replicas.all_reduce(tf.distribute.ReduceOp.SUM, tf.identity(number))

        @tf.function
        def total(number):
            joined = self.strategy.run(sum_over_replicas, args=(number,))
            return self.strategy.experimental_local_results(joined)[0]

        self._total = total

    def all_reduce_sum(self, number: int) -> int:
        """The sum of all processes' numbers; all must call it at the same place.

        Raises:
            RunError: another process is gone.
        """
        import tensorflow as tf

        with self.named_failures():
            total = self._total(tf.constant(number, tf.int64))
        replicas = self.strategy.num_replicas_in_sync // len(self.cluster.addresses)
        return int(total) // replicas

    def check_same(self, what: str, text: str) -> None:
        """Refuses (RequestError) a `text` that not all processes have; `what` it is."""
        digest = zlib.crc32(text.encode())
        if self.all_reduce_sum(digest) != digest * len(self.cluster.addresses):
            raise RequestError(
                f"The processes of this run do not have the same {what}; this one, "
                f"{self.cluster}: {text}. Start all with the same command; --workdir "
                "must be one folder that all of them see."
            )

    @contextlib.contextmanager
    def named_failures(self) -> Iterator[None]:
        """Turns the errors that another process's end brings into one that says so.

        Raises:
            RunError: another process is gone.
        """
        from tensorflow import errors

        try:
            yield
        except (
            errors.UnavailableError,
            errors.AbortedError,
            errors.CancelledError,
            errors.DeadlineExceededError,
            errors.FailedPreconditionError,
        ) as error:
            raise self._gone(error) from error

    def _gone(self, error: "tf.errors.OpError") -> RunError:
        found = re.search(r"replica:\d+/task:(\d+)", str(error))
        name = "Another process of this run"
        if found and int(found[1]) < len(self.cluster.addresses):
            name = f"Process {found[1]} ({self.cluster.addresses[int(found[1])]})"
        return RunError(
            f"{name} is gone; the last checkpoint is intact. Start all processes again "
            "with the same command, and the run goes on."
        )
