"""The steps of a run: lock, skip what is done, do the rest, record it.

TensorFlow is imported only when a step has work to do: a finished run is reported at
once.
"""

import json
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from cdfkd_tf.config import STEPS, RunConfig
from cdfkd_tf.errors import RequestError, RunError
from cdfkd_tf.networks.fingerprint import fingerprint
from cdfkd_tf.report.page import write_report
from cdfkd_tf.runtime.multi_worker import Cluster, WorkerGroup, reachable
from cdfkd_tf.runtime.silence_stderr import quiet_tensorflow
from cdfkd_tf.workdir import Workdir, read_results, summary, write_json, write_text

if TYPE_CHECKING:
    import keras

    from cdfkd_tf.pipeline.steps import Run

COSTLY = ("train_teachers", "distill")  # never repeated without being told to
_PLACES = ("data_dir", "image_folder", "teachers")  # may differ from host to host
# Options without effect on a result that all hosts must share all the same.
_SHARED = ("evaluate_every", "checkpoint_every", "recompute_teachers")
_PAUSE = 2  # seconds between looks for the chief's teachers


def run(config: RunConfig) -> None:
    """Runs the action that `config` names and prints the results.

    Raises:
        RequestError: wrong request, also where the workdir holds another run.
        RunError: a step failed.
    """
    workdir = Workdir(config.workdir)
    if config.action == "predict":
        from cdfkd_tf.export.predict import predict

        shown = workdir.predictor if config.show_header_weights else None
        predict(
            [config.predict_input],
            model=config.predict_model,
            directory=workdir.export,
            output=Path(config.predict_output or workdir.path / "predictions.csv"),
            predictor=shown,
        )
        return
    if config.action == "report":
        print(f"The report is {write_report(workdir)}")
        return
    if config.action == "search":
        quiet_tensorflow()
        from cdfkd_tf.pipeline.steps import Run
        from cdfkd_tf.tuning.run import search  # Keras Tuner takes seconds

        search(config, perform, Run)
        return
    whole = config.action == "pipeline"
    wanted = STEPS if whole else (config.action,)
    if config.strategy == "multi_worker":
        cluster = Cluster.from_environment()
        if not cluster.is_chief:
            _run_worker(config, cluster, wanted)
            return
    with workdir.locked():
        worked = perform(config, wanted)
        if not worked:
            print(f"Nothing to do: {config.workdir} holds all of it already.")
        results = read_results(workdir.results)
        reports = whole and config.report
        if reports and results and (worked or not workdir.report.exists()):
            write_report(workdir)
    if results:
        print(summary(results, config.workdir))


def perform(
    config: RunConfig,
    wanted: Sequence[str],
    *,
    models: Sequence["keras.Model"] | None = None,
    callbacks: Sequence["keras.callbacks.Callback"] = (),
    verbose: int | str | None = None,
) -> "Run | None":
    """Does the steps that the workdir does not hold yet. The caller holds its lock.

    Global seeds, dtype policy and determinism are afterwards as they were.

    Args:
        config: the request.
        wanted: of `STEPS`, in their order; after one that has work to do, all do.
        models: the teachers, where they are in memory; `config.teachers` names them.
        callbacks: Keras callbacks for the distillation, besides our own.
        verbose: as in `keras.Model.fit`; None: as the terminal is.

    Returns:
        The run's objects; None if there was nothing to do.

    Raises:
        RequestError: wrong request, also where the workdir holds another run.
        RunError: a step failed.
    """
    todo = steps_to_do(config, wanted, models)
    if not todo:
        return None
    workers = None
    if config.strategy == "multi_worker" and "distill" in todo:
        workers = _join(config, Cluster.from_environment())
    quiet_tensorflow()
    from cdfkd_tf.pipeline.check import check
    from cdfkd_tf.pipeline.steps import Run
    from cdfkd_tf.runtime.precision import global_state_restored

    with global_state_restored():
        current = Run(config, models, callbacks, verbose, workers)
        try:
            check(current, todo)
            for step in todo:
                _do(step, current)
        finally:
            current.release()  # models in memory come back as they were
    return current


def _do(step: str, run: "Run") -> None:
    from cdfkd_tf.pipeline.steps import DO

    config, workdir, results = run.config, run.workdir, run.results
    with workdir.unchanged_if_refused(step, anew=not config.resume):
        write_json(workdir.config, config.option_dict())
        write_text(workdir.flags, config.flag_lines())
        workdir.forget(STEPS[STEPS.index(step) + 1 :])
        options = config.options_behind(step)
        workdir.note(step, options, done=False)
        if step == "distill":
            if config.resume:  # some may have been trained just now
                refuse_other_networks(config, run.models)
            workdir.note_networks(fingerprints(config, run.models))
        print(f"-- {step.replace('_', ' ')}", flush=True)
        start = time.monotonic()
        results.begin(step)
        DO[step](run)
        if step in ("train_teachers", "fit_aggregator", "export"):
            # Distilling counts for itself: time before an interruption, too.
            seconds = round(time.monotonic() - start, 2)
            results.record("seconds", {step: seconds})
        workdir.note(step, options, done=True)


def steps_to_do(
    config: RunConfig,
    wanted: Sequence[str],
    models: Sequence["keras.Model"] | None = None,
) -> list[str]:
    """The steps of `wanted` that the workdir does not hold yet, and all after one.

    Raises:
        RequestError: the workdir holds another run.
    """
    workdir, wanted = Workdir(config.workdir), list(wanted)
    todo = [step for step in wanted if not _is_done(step, config, workdir)]
    if todo:
        todo = wanted[wanted.index(todo[0]) :]  # later build on earlier
    for step in todo:
        _refuse_mixed_runs(step, config, workdir)
    anew = "distill" in wanted and not config.resume
    if not anew and wanted != ["train_teachers"]:
        refuse_other_networks(config, models)
    return todo


def fingerprints(
    config: RunConfig, models: Sequence["keras.Model"] | None
) -> dict[str, str]:
    """Name -> fingerprint of each teacher, and of a student that starts from a file.

    Files that are not there are left out.
    """
    workdir = Workdir(config.workdir)
    if config.teachers:
        networks = dict(zip(config.teachers, models or config.teachers))
    else:
        own = [workdir.teacher(index) for index in range(config.num_teachers)]
        networks = {str(file.relative_to(workdir.path)): str(file) for file in own}
    if config.student.endswith((".keras", ".h5")):
        networks[config.student] = config.student
    return {
        name: fingerprint(network)
        for name, network in networks.items()
        if not isinstance(network, str) or Path(network).exists()
    }


def refuse_other_networks(
    config: RunConfig, models: Sequence["keras.Model"] | None
) -> None:
    """Refuses teachers that were replaced, under their names, since the distillation.

    Raises:
        RequestError: naming the first one.
    """
    known = Workdir(config.workdir).networks()
    for name, digest in fingerprints(config, models).items() if known else ():
        if known.get(name, digest) != digest:
            raise RequestError(
                f"{name} was replaced since {config.workdir} began to distil from it. "
                "Put it back, give another --workdir, or distil anew with "
                "--action=distill --noresume."
            )


def _is_done(step: str, config: RunConfig, workdir: Workdir) -> bool:
    record = workdir.record_of(step)
    repeats = config.action != "pipeline" and step not in COSTLY
    return (
        config.resume
        and not repeats
        and (step in COSTLY or workdir.results.exists())
        and (step != "distill" or workdir.student.exists())
        and record.get("done", False)
        and record["options"] == config.options_behind(step)
    )


def _refuse_mixed_runs(step: str, config: RunConfig, workdir: Workdir) -> None:
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
    for name, value in config.options_behind(step).items():
        known = begun_with.get(name, value)
        if known != value:
            raise RequestError(
                f"{config.workdir} holds {step} made with --{name}={known}; now it is "
                f"--{name}={value}. Give another --workdir, or make that step again "
                f"with --action={step} --noresume."
            )


def _join(config: RunConfig, cluster: Cluster) -> WorkerGroup:
    """Starts TensorFlow together with the other processes of the run.

    Raises:
        RequestError: they were started with other options.
        RunError: one of them does not come.
    """
    print(f"This is {cluster}; waiting for the others.", flush=True)
    workers = quiet_tensorflow(lambda: WorkerGroup(cluster, config.worker_timeout))
    options = config.options_behind("distill")
    options |= {name: getattr(config, name) for name in _SHARED}
    shared = {name: v for name, v in options.items() if name not in _PLACES}
    workers.check_same("options", json.dumps(shared, sort_keys=True))
    return workers


def _run_worker(config: RunConfig, cluster: Cluster, wanted: Sequence[str]) -> None:
    """Takes part in the chief's distillation; writes nothing.

    Raises:
        RequestError: wrong request, or another one than the chief's.
        RunError: a process does not come, or is gone.
    """
    if "distill" not in steps_to_do(config, wanted):
        print(f"Nothing to do for {cluster}.")
        return
    workers = _join(config, cluster)
    from cdfkd_tf.pipeline.steps import DO, Run

    current = Run(config, verbose=0, workers=workers)
    while not config.teachers and not all(
        current.workdir.teacher(i).exists() for i in range(config.num_teachers)
    ):
        if not reachable(cluster.addresses[0]):
            raise RunError(
                "The chief is gone before the teachers were trained. Start all "
                "processes again with the same command."
            )
        time.sleep(_PAUSE)
    DO["distill"](current)
    print(f"The part of {cluster} is done.")
