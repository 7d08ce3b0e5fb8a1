"""`--action=search`: teachers once, then trials, then what they amount to."""

import dataclasses
import os
import pathlib
import shutil
import time
from typing import Any

import keras_tuner

from cdfkd_tf.assembly import Assembly
from cdfkd_tf.config import RunConfig
from cdfkd_tf.errors import RequestError, RunError
from cdfkd_tf.locking import only_one
from cdfkd_tf.pipeline import perform
from cdfkd_tf.teachers.build import TRAINING, teacher_files
from cdfkd_tf.tuning.objective import (
    POOL,
    POOLED_AGREEMENT,
    keep_images,
    objective_of,
    pooled_agreement,
)
from cdfkd_tf.tuning.report import write_search_report
from cdfkd_tf.tuning.space import Space, find_space
from cdfkd_tf.tuning.summary import Summary, options_of, summarise
from cdfkd_tf.tuning.tuner import (
    FOLDER,
    SearchTuner,
    keep_outcome,
    read_outcomes,
    refuse_training,
    trial_config,
)
from cdfkd_tf.workdir import Workdir

# May differ between the processes and continuations of one search.
_DECIDE_NOTHING = ("action", "max_trials", "resume", "debug", "report", "teachers")
_WAIT_SECONDS = 2


def search(
    config: RunConfig, hypermodel: keras_tuner.HyperModel | None = None
) -> Summary:
    """Searches, or goes on with a search, and leaves `search/` in the workdir.

    Under Keras Tuner's variables (KERASTUNER_TUNER_ID and so on) this process is the
    chief, who hands out trials and sums up, or a worker; all share the workdir.

    Args:
        config: the run that trials vary.
        hypermodel: its `build(hp)` returns options; None: as `search_space` says.

    Returns:
        The trials, best first.

    Raises:
        RequestError: the request fits no search, or this workdir's began otherwise.
        RunError: no trial finished.
    """
    space = hypermodel or find_space(config)
    objective_of(config)
    workdir, role = Workdir(config.workdir), _role()
    directory = workdir.path / FOLDER
    if role == "worker":
        _await_teachers(config, workdir)
        return _try(config, space, workdir)
    # Alone or the chief: the only one who trains teachers and writes the summary.
    with only_one(workdir.path):
        if not config.resume:
            shutil.rmtree(directory, ignore_errors=True)
        _refuse_other_search(config, space, workdir)
        if _trains_shared_teachers(config, space):
            config_of_teachers = dataclasses.replace(config, action="train_teachers")
            perform(config_of_teachers, ("train_teachers",))
        workdir.note(FOLDER, _options(config, space), done=False)
        return _try(config, space, workdir)


def _try(config: RunConfig, space: Any, workdir: Workdir) -> Summary:
    shared = config
    if _trains_shared_teachers(config, space):
        files = tuple(str(file) for file in teacher_files(config, workdir))
        shared = dataclasses.replace(config, teachers=files)
    tuner = SearchTuner(shared, space)
    tuner.save()  # a search that is killed within its first trial goes on, too
    tuner.oracle.verbose = 0
    tuner.search()
    if _role() == "worker":
        print("No trials left for this worker.")
        return Summary(shared, [])
    if objective_of(shared) == POOLED_AGREEMENT:
        _rejudge(shared, workdir)
    _measure(shared, workdir)
    summary = summarise(shared, read_outcomes(workdir.path))
    summary.write(workdir.path / FOLDER)
    write_search_report(summary, workdir.path / FOLDER / "report.html")
    print(summary)
    if not summary.best:
        first = next((o["reason"] for o in summary.outcomes if o["reason"]), "none ran")
        raise RunError(
            f"None of {len(summary.outcomes)} trials finished. The first: {first} "
            "Narrow --search_space."
        )
    return summary


def _rejudge(config: RunConfig, workdir: Workdir) -> None:
    """Agreement of all finished trials on the images of all of them.

    While the search ran, early trials were judged on fewer images than late ones.
    """
    finished = [o for o in read_outcomes(workdir.path) if o["status"] == "finished"]
    folders = [pathlib.Path(outcome["folder"]) for outcome in finished]
    assemblies = [
        Assembly(_run_of(config, outcome), Workdir(str(folder)))
        for outcome, folder in zip(finished, folders)
    ]
    for assembly in assemblies:
        if not (assembly.workdir.path / POOL).exists():
            keep_images(assembly)
    for outcome, assembly in zip(finished, assemblies):
        outcome["objective"] = pooled_agreement(assembly, folders)
        keep_outcome(assembly.workdir.path, config, outcome)


def _measure(config: RunConfig, workdir: Workdir) -> None:
    """Test accuracy of the finished trials, once no choice depends on it any more."""
    if not Assembly(config, workdir).can_measure:
        return
    for outcome in read_outcomes(workdir.path):
        if outcome["status"] == "finished" and outcome["test_accuracy"] is None:
            with only_one(pathlib.Path(outcome["folder"])):
                run = _run_of(config, outcome)
                perform(run, ("distill", "fit_aggregator", "evaluate"))


def _run_of(config: RunConfig, outcome: dict[str, Any]) -> RunConfig:
    folder = pathlib.Path(outcome["folder"])
    return trial_config(config, options_of(outcome), folder)


def _role() -> str:
    if "KERASTUNER_ORACLE_IP" not in os.environ:
        return "alone"
    for name in ("KERASTUNER_ORACLE_PORT", "KERASTUNER_TUNER_ID"):
        if name not in os.environ:
            raise RequestError(
                f"KERASTUNER_ORACLE_IP is set, {name} is not. Several processes need "
                "all three; one process alone needs none."
            )
    return "chief" if "chief" in os.environ["KERASTUNER_TUNER_ID"] else "worker"


def _await_teachers(config: RunConfig, workdir: Workdir) -> None:
    """Until the chief has begun the search, after the teachers."""
    said = False
    while not workdir.record_of(FOLDER):
        if not said:
            print("Waiting for the chief to prepare the teachers.", flush=True)
            said = True
        time.sleep(_WAIT_SECONDS)


def _trains_shared_teachers(config: RunConfig, space: Any) -> bool:
    """Whether teachers are trained once, before the first trial, for all of them."""
    varied = [name for name in TRAINING if name in getattr(space, "fields", {})]
    refuse_training(config, varied)
    return not (varied or config.teachers)


def _options(config: RunConfig, space: Any) -> dict[str, Any]:
    options = config.option_dict()
    kept = {name: v for name, v in options.items() if name not in _DECIDE_NOTHING}
    if isinstance(space, Space):
        fields = {name: str(kind) for name, kind in sorted(space.fields.items())}
        kept["search_space"] = str(fields)
    return kept


def _refuse_other_search(config: RunConfig, space: Any, workdir: Workdir) -> None:
    begun = workdir.record_of(FOLDER).get("options", {})
    if not (workdir.path / FOLDER).exists():
        return
    for name, value in _options(config, space).items():
        known = begun.get(name, value)
        if known != value:
            raise RequestError(
                f"{config.workdir} holds a search made with --{name}={known}; now it "
                f"is {value}. Give another --workdir, or begin anew with --noresume."
            )
