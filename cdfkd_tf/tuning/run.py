"""`--action=search`: teachers once, then trials, then a summary of them."""

import contextlib
import pathlib
import shutil
from collections.abc import Callable
from typing import Any

import keras
import keras_tuner
import numpy as np

from cdfkd_tf.config import RunConfig, names_in, text_of
from cdfkd_tf.distillation.build import available_method, build_student
from cdfkd_tf.distillation.methods import Method
from cdfkd_tf.errors import RequestError, RunError
from cdfkd_tf.networks.loading import load_network
from cdfkd_tf.teachers.build import build_teachers, teacher_files
from cdfkd_tf.tuning import workers
from cdfkd_tf.tuning.objective import objective_name, pooled_agreement
from cdfkd_tf.tuning.space import Space, find_space
from cdfkd_tf.tuning.summary import (
    FOLDER,
    Summary,
    keep_outcome,
    read_outcomes,
    summarise,
)
from cdfkd_tf.tuning.tuner import SearchTuner, refuse_training, trial_config
from cdfkd_tf.workdir import Workdir

Perform = Callable[..., Any]
OpenRun = Callable[[RunConfig], Any]


def search(
    config: RunConfig,
    perform: Perform,
    open_run: OpenRun,
    hypermodel: keras_tuner.HyperModel | None = None,
) -> Summary:
    """Searches, or goes on with a search, and leaves `search/` in the workdir.

    Under Keras Tuner's variables (KERASTUNER_TUNER_ID and so on) this process is the
    chief, which trains teachers, hands out trials and sums up, or a worker, which runs
    trials; all share the workdir.

    Args:
        config: the run that trials vary.
        perform: `pipeline.run.perform`.
        open_run: a `RunConfig` to a fresh `pipeline.steps.Run`.
        hypermodel: its `build(hp)` returns options; None: as `search_space` says.

    Returns:
        The trials, best first; none in a worker.

    Raises:
        RequestError: the request fits no search, or this workdir's began otherwise.
        RunError: no trial finished, or no chief came.
    """
    config = config.with_values({"action": "search"})
    objective_name(config)  # refuses what nothing can be judged by
    role = workers.find_role()
    space = hypermodel or find_space(config, lambda: _available(config, open_run))
    varied = [n for n in names_in("training") if n in getattr(space, "fields", ())]
    refuse_training(config, varied)
    shares_teachers = not (varied or config.teachers)
    workdir, seconds = Workdir(config.workdir), config.worker_timeout
    signs = workdir.path / FOLDER / "workers"

    def tuner() -> SearchTuner:
        shared = _with_what_is_shared(config, shares_teachers, open_run)
        return SearchTuner(shared, space, perform, open_run)

    if role == "worker":
        workers.await_chief(lambda: workdir.record_of(FOLDER).get("done"), seconds)
        with workers.working(signs, seconds):
            tuner().search()
        print("No trials left for this worker.")
        return Summary(config, [])
    with workdir.locked():
        shutil.rmtree(signs if config.resume else signs.parent, ignore_errors=True)
        options = _check_same_search(config, space, workdir)
        workdir.note(FOLDER, options, done=False)
        with workers.listening() if role == "chief" else contextlib.nullcontext():
            if shares_teachers:
                training = config.with_values({"action": "train_teachers"})
                perform(training, ("train_teachers",))
            workdir.note(FOLDER, options, done=True)
        trials = tuner()
        trials.save()  # a search that is killed within its first trial goes on, too
        if role == "chief":
            workers.lead(trials, signs, seconds, trials.give_up)
        else:
            trials.search()
        return _sum_up(trials.config, workdir, perform, open_run)


def _available(config: RunConfig, open_run: OpenRun) -> Method:
    """The method without the terms that teachers or student cannot provide."""
    run = open_run(config)
    if config.teachers:
        teachers = run.teachers
    else:  # as they will be
        models = [run.build_teacher(index) for index in range(config.num_teachers)]
        names = [f"teacher_{index}" for index in range(config.num_teachers)]
        teachers = build_teachers(config, run.spec, names, models)
    student = build_student(run.sized(teachers), run.spec, len(teachers))
    return available_method(config, teachers, student)


def _check_same_search(config, space, workdir: Workdir) -> dict[str, str]:
    """Flag -> its text, of all that decides what trials are and how they are chosen.

    Raises:
        RequestError: the workdir holds a search with others.
    """
    names = {*config.options_behind("fit_aggregator"), "tuner"}
    names.remove("teachers")  # which may lie elsewhere on another host
    options = {name: text_of(getattr(config, name)) for name in sorted(names)}
    if isinstance(space, Space):
        options["search_space"] = str(dict(sorted(space.fields.items())))
    begun = workdir.record_of(FOLDER).get("options", {})
    for name, value in options.items() if (workdir.path / FOLDER).exists() else ():
        known = begun.get(name, value)
        if known != value:
            raise RequestError(
                f"{workdir.path} holds a search made with --{name}={known}; now it is "
                f"{value}. Give another --workdir, or begin anew with --noresume."
            )
    return options


def _with_what_is_shared(config, shares_teachers: bool, open_run) -> RunConfig:
    """The run with what every trial would find out again."""
    values: dict[str, Any] = {}
    if shares_teachers:
        files = teacher_files(config, Workdir(config.workdir))
        values["teachers"] = tuple(map(str, files))
    if config.dataset == "none":
        spec = open_run(config).spec
        values |= {"num_classes": spec.num_classes, "image_shape": spec.image_shape}
    return config.with_values(values)


def _sum_up(shared: RunConfig, workdir: Workdir, perform, open_run) -> Summary:
    finished = [o for o in read_outcomes(workdir.path) if o["status"] == "finished"]
    folders = [pathlib.Path(outcome["folder"]) for outcome in finished]
    measures = shared.evaluation_split != "none" and open_run(shared).can_measure
    for outcome, folder in zip(finished, folders):
        keras.utils.clear_session()
        if not shared.labelled_samples:
            # On all images: early trials were judged on fewer than late ones.
            student = load_network(Workdir(folder).student, "student")
            config = trial_config(shared, outcome["options"], folder)
            rule = open_run(config).teachers.rule
            outcome["objective"] = pooled_agreement(student, rule, folders)
        if measures and outcome["test_accuracy"] is None:
            config = trial_config(shared, outcome["options"], folder)
            outcome["test_accuracy"] = _test_accuracy(config, perform)
        keep_outcome(folder, objective_name(shared), outcome)
    summary = summarise(shared, read_outcomes(workdir.path))
    print(summary.write())
    if not summary.best:
        first = next((o["reason"] for o in summary.outcomes if o["reason"]), "none ran")
        raise RunError(
            f"None of {len(summary.outcomes)} trials finished. The first: {first} "
            "Narrow --search_space."
        )
    return summary


def _test_accuracy(config: RunConfig, perform: Perform) -> float:
    """Of a finished trial's predictor, now that no choice depends on it."""
    with Workdir(config.workdir).locked():
        run = perform(config, ("distill", "fit_aggregator"))
        predictor = run.network("predictor", "fit_aggregator")
        right = [
            predictor.predict_on_batch(images).argmax(-1) == labels
            for images, labels in run.evaluation_batches
        ]
        accuracy = float(np.mean(np.concatenate(right)))
        run.results.record("aggregator", {"accuracy": accuracy})
    return accuracy
