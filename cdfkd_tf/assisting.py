"""What a process does that trains with the chief: its part of each step, no more."""

import time

from cdfkd_tf.config import RunConfig
from cdfkd_tf.errors import RunError
from cdfkd_tf.pipeline import STEPS, join, steps_to_do
from cdfkd_tf.runtime.multi_worker import Cluster, reachable
from cdfkd_tf.workdir import Workdir

_PAUSE = 2  # seconds between looks


def assist(config: RunConfig, cluster: Cluster) -> None:
    """Takes part in the distillation. Nothing is written: that is the chief's.

    Args:
        config: the same request as the chief's.
        cluster: of which this is not the chief.

    Raises:
        RequestError: wrong request, or another one than the chief's.
        RunError: somebody does not come, or is gone.
    """
    wanted = tuple(STEPS) if config.action == "pipeline" else (config.action,)
    if "distill" not in steps_to_do(config, wanted):
        print(f"Nothing to do for {cluster}.")
        return
    hosts = join(config, cluster)
    from cdfkd_tf.assembly import Assembly
    from cdfkd_tf.distillation.run import distill
    from cdfkd_tf.runtime.precision import make_deterministic

    make_deterministic(config.deterministic)
    workdir = Workdir(config.workdir)
    _await_teachers(config, workdir, cluster)
    distill(Assembly(config, workdir), verbose=0, hosts=hosts)
    print(f"The part of {cluster} is done.")


def _await_teachers(config: RunConfig, workdir: Workdir, cluster: Cluster) -> None:
    """Until the chief has trained them all, if it has to."""
    if config.teachers:
        return
    while not all(workdir.teacher(i).exists() for i in range(config.num_teachers)):
        if not reachable(cluster.addresses[0]):
            raise RunError(
                "The chief is gone before the teachers were trained. Start all "
                "processes again with the same command."
            )
        time.sleep(_PAUSE)
