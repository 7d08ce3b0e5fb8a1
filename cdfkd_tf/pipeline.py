"""Which steps a run needs, and which of them are there already.

TensorFlow is imported only when a step has work to do: asking for a finished run
answers at once.
"""

import dataclasses
import json
from collections.abc import Sequence
from typing import Any

from cdfkd_tf.config import RunConfig
from cdfkd_tf.errors import RequestError
from cdfkd_tf.runtime.multi_worker import Cluster, WorkerGroup
from cdfkd_tf.runtime.silence_stderr import quiet_tensorflow
from cdfkd_tf.workdir import Workdir, write_json, write_text

# Step -> the groups of options that it adds to what its result depends on.
STEPS = {
    "train_teachers": ("data", "teachers"),
    "distill": ("method", "weights", "schedule"),
    "fit_aggregator": ("aggregator",),
    "evaluate": (),
    "export": ("export",),
}
COSTLY = ("train_teachers", "distill")  # never repeated without being told to
_DECIDE_NOTHING = ("data_dir", "evaluate_every")
_PLACES = ("data_dir", "image_folder", "teachers")  # may differ from host to host
_TOGETHER = ("evaluate_every", "checkpoint_every", "low_memory")  # may not


def perform(
    config: RunConfig, wanted: Sequence[str], callbacks: Sequence[Any] = ()
) -> bool:
    """Does the steps that the workdir does not hold yet. Whoever calls holds its lock.

    Args:
        config: the request.
        wanted: of `STEPS`, in their order; after one that has work to do, all do.
        callbacks: Keras callbacks for the distillation, besides our own.

    Returns:
        Whether there was anything to do.

    Raises:
        RequestError: wrong request, also where the workdir holds another run.
        RunError: a step failed.
    """
    workdir = Workdir(config.workdir)
    todo = steps_to_do(config, wanted)
    if todo:
        _do(todo, config, workdir, callbacks)
    return bool(todo)


def steps_to_do(config: RunConfig, wanted: Sequence[str]) -> list[str]:
    """Those of `wanted` that the workdir does not hold yet, and all after one.

    Raises:
        RequestError: the workdir holds another run.
    """
    workdir, wanted = Workdir(config.workdir), list(wanted)
    todo = [step for step in wanted if not _is_done(step, config, workdir)]
    if todo:
        todo = wanted[wanted.index(todo[0]) :]  # later build on earlier
    for step in todo:
        refuse_mixed_runs(step, config, workdir)
    return todo


def join(config: RunConfig, cluster: Cluster) -> WorkerGroup:
    """Starts TensorFlow together with the other processes of the run.

    Raises:
        RequestError: they were started with other options.
        RunError: one of them does not come.
    """

    print(f"This is {cluster}; waiting for the others.", flush=True)
    hosts = quiet_tensorflow(lambda: WorkerGroup(cluster, config.worker_timeout))
    options = options_behind("distill", config)
    options |= {name: getattr(config, name) for name in _TOGETHER}
    shared = {name: v for name, v in options.items() if name not in _PLACES}
    hosts.check_same("options", json.dumps(shared, sort_keys=True))
    return hosts


def _do(
    todo: list[str], config: RunConfig, workdir: Workdir, callbacks: Sequence[Any]
) -> None:
    order = tuple(STEPS)
    together = config.strategy == "multi_worker" and "distill" in todo
    hosts = join(config, Cluster.from_environment()) if together else None
    quiet_tensorflow()
    from cdfkd_tf.steps import Steps

    steps = Steps(config, workdir, callbacks, hosts)
    for step in todo:
        with workdir.unchanged_if_refused(step, anew=not config.resume):
            write_json(workdir.config, config.option_dict())
            write_text(workdir.flags, config.flag_lines())
            workdir.forget(order[order.index(step) + 1 :])
            options = options_behind(step, config)
            workdir.note(step, options, done=False)
            steps.run(step)
            workdir.note(step, options, done=True)


def options_behind(step: str, config: RunConfig) -> dict[str, Any]:
    """The options that the result of `step` depends on, earlier steps' included."""
    order = list(STEPS)
    groups = {group for s in order[: order.index(step) + 1] for group in STEPS[s]}
    values = config.option_dict()
    if step in COSTLY and values["evaluation_split"] == "none":
        values["evaluation_split"] = "test"  # the teachers' images are the same
    return {
        field.name: values[field.name]
        for field in dataclasses.fields(config)
        if field.name in ("seed", "dtype_policy")
        or (field.metadata["group"] in groups and field.name not in _DECIDE_NOTHING)
    }


def _is_done(step: str, config: RunConfig, workdir: Workdir) -> bool:
    record = workdir.record_of(step)
    repeats = config.action != "pipeline" and step not in COSTLY
    return (
        config.resume
        and not repeats
        and (step in COSTLY or workdir.results.exists())
        and (step != "distill" or workdir.student.exists())
        and record.get("done", False)
        and record["options"] == options_behind(step, config)
    )


def refuse_mixed_runs(step: str, config: RunConfig, workdir: Workdir) -> None:
    """A costly step that was begun with other options is not mixed with these.

    Raises:
        RequestError: naming the first option that differs.
    """
    record = workdir.record_of(step)
    has_work = record.get("done") or workdir.holds(step)
    if step not in COSTLY or not config.resume or not has_work:
        return
    begun_with = record.get("options", {})
    if step == "train_teachers" and config.teachers and begun_with.get("teachers"):
        return  # links to given files, then and now: nothing costly is lost
    for name, value in options_behind(step, config).items():
        known = begun_with.get(name, value)
        if known != value:
            raise RequestError(
                f"{config.workdir} holds {step} made with --{name}={known}; now it is "
                f"--{name}={value}. Give another --workdir, or make that step again "
                f"with --action={step} --noresume."
            )
