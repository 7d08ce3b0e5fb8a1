"""Several processes, on one host or on many, that train as one."""

import contextlib
import os
import re
import zlib
from collections.abc import Iterator

import tensorflow as tf

from cdfkd_tf.errors import RequestError, RunError
from cdfkd_tf.runtime.cluster import Cluster

# What TensorFlow says where another process is gone or gave up.
_GONE = (
    tf.errors.UnavailableError,
    tf.errors.AbortedError,
    tf.errors.CancelledError,
    tf.errors.DeadlineExceededError,
    tf.errors.FailedPreconditionError,
)


class Hosts:
    """The strategy that spans all processes, and what they say to each other.

    To be made before TensorFlow's first operation.

    Args:
        cluster: who takes part.
        timeout: seconds to wait for the others.

    Raises:
        RequestError: this process cannot listen at its own address.
        RunError: somebody did not come.
    """

    def __init__(self, cluster: Cluster, timeout: float):
        self.cluster = cluster
        cluster.await_peers(timeout)
        os.environ["TF_CONFIG"] = cluster.as_json()
        try:
            self.strategy = tf.distribute.MultiWorkerMirroredStrategy()
        except tf.errors.OpError as error:
            raise self._told(error) from error

        @tf.function
        def total(number):
            joined = self.strategy.run(_sum_over_replicas, args=(number,))
            return self.strategy.experimental_local_results(joined)[0]

        self._total = total
        self._replicas = self.strategy.num_replicas_in_sync // len(cluster.addresses)

    def agree(self, number: int) -> int:
        """The sum of what all processes give; all must call it at the same place.

        Raises:
            RunError: somebody is gone.
        """
        with self.named_failures():
            total = self._total(tf.constant(number, tf.int64))
        return int(total) // self._replicas

    def check_same(self, what: str, text: str) -> None:
        """All processes must have the same text.

        Args:
            what: it is, for the message.
            text: of this process.

        Raises:
            RequestError: somebody has another one.
        """
        digest = zlib.crc32(text.encode())
        if self.agree(digest) != digest * len(self.cluster.addresses):
            raise RequestError(
                f"The processes of this run do not have the same {what}; this one, "
                f"{self.cluster}: {text}. Start all with the same command; --workdir "
                "must be one folder that all of them see."
            )

    @contextlib.contextmanager
    def named_failures(self) -> Iterator[None]:
        """Errors that another process's end brings are told as that.

        Raises:
            RunError: somebody is gone.
        """
        try:
            yield
        except _GONE as error:
            raise self._told(error) from error

    def _told(self, error: tf.errors.OpError) -> RunError:
        """What another process's end is called."""
        found = re.search(r"replica:\d+/task:(\d+)", str(error))
        who = "Another process of this run"
        if found and int(found[1]) < len(self.cluster.addresses):
            who = f"Process {found[1]} ({self.cluster.addresses[int(found[1])]})"
        return RunError(
            f"{who} is gone; the last checkpoint is intact. Start all processes again "
            "with the same command, and the run goes on."
        )


def _sum_over_replicas(number: tf.Tensor) -> tf.Tensor:
    replicas = tf.distribute.get_replica_context()
    return replicas.all_reduce(tf.distribute.ReduceOp.SUM, tf.identity(number))
