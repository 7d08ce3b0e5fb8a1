"""Keras Tuner around ordinary runs: its oracles choose, each trial is a run."""

import functools
import math
import pathlib
import shutil
import time
from collections.abc import Callable, Iterable
from typing import Any

import keras
import keras_tuner
from keras_tuner import oracles

from cdfkd_tf.config import RunConfig, names_in
from cdfkd_tf.errors import RequestError, one_line
from cdfkd_tf.tuning import objective
from cdfkd_tf.tuning.space import Space
from cdfkd_tf.tuning.summary import FOLDER, keep_outcome
from cdfkd_tf.tuning.workers import find_role
from cdfkd_tf.workdir import Workdir, read_json

# Options of a trial that are the same for all of them, and cost or show something.
_SAVING = {
    "action": "distill",
    "evaluate_every": 0,
    "export_formats": (),
    "report": False,
    "resume": True,
    "checkpoint_every": 1,  # a killed trial, and a next rung, go on from here
}


class SearchTuner(keras_tuner.Tuner):
    """Runs trials, each an ordinary distillation in a folder of its own.

    Args:
        config: the run that trials vary; `teachers` names files that all share.
        hypermodel: its `build(hp)` returns the options that a trial changes.
        perform: `pipeline.run.perform`.
        open_run: a `RunConfig` to a fresh `pipeline.steps.Run`.
    """

    def __init__(
        self,
        config: RunConfig,
        hypermodel: keras_tuner.HyperModel,
        perform: Callable[..., Any],
        open_run: Callable[[RunConfig], Any],
    ):
        self.config, self._perform, self._open_run = config, perform, open_run
        oracle = build_oracle(config, hypermodel)
        super().__init__(
            oracle, hypermodel, directory=config.workdir, project_name=FOLDER
        )
        # Keras Tuner itself goes on with what a process of the same name began. Not
        # where a chief knows the trials: it may be writing the file just now.
        begun = pathlib.Path(self.project_dir, "oracle.json").exists()
        if begun and not oracle.trials and find_role() != "worker":
            oracle.reload()
        oracle.verbose = 0

    def run_trial(self, trial: Any) -> dict[str, float]:
        """One distillation and its objective in [0, 1]; NaN if it failed.

        It may diverge, or its options fit no run: the search goes on, and the reason
        is kept beside the trial.
        """
        hp, start = trial.hyperparameters, time.monotonic()
        folder = pathlib.Path(self.get_trial_dir(trial.trial_id))
        value, options, reason = None, {}, ""
        try:
            drawn = self.hypermodel.build(hp)
            config = trial_config(self.config, drawn, folder)
            # Tables as a whole, as `RunConfig` and `distill` take them.
            known = config.option_dict()
            options = {n: known[n] for n in (name.partition(".")[0] for name in drawn)}
            with Workdir(folder).locked():
                value = self._distill_and_judge(config, hp.values)
        except Exception as error:  # whatever one trial meets, the search goes on
            own = hasattr(error, "exit_code")  # our words, which name what to do
            reason = ("" if own else f"{type(error).__name__}: ") + one_line(
                error, 1000
            )
        known = read_json(folder / "results.json").get("seconds", {})
        seconds = max(time.monotonic() - start, known.get("distill") or 0)  # of all
        self._keep(trial, value, reason, seconds, options)
        text = f" failed: {reason}" if value is None else f": {self._name} {value:.4f}"
        print(f"Trial {trial.trial_id}{text}", flush=True)
        # Keras Tuner takes NaN for a failed trial; an exception it would also print.
        return {self._name: math.nan if value is None else value}

    def give_up(self, worker: str) -> None:
        """Ends the trial of a worker that shows no sign of life, as a failed one."""
        trial = self.oracle.ongoing_trials.get(worker)
        if trial:
            reason = (
                f"{worker} showed no sign of life for {self.config.worker_timeout:g} s."
            )
            print(f"Trial {trial.trial_id} failed: {reason}", flush=True)
            self._keep(trial, None, reason)
            trial.status, trial.message = "FAILED", reason
            self.oracle.end_trial(trial)
        self.oracle.tuner_ids.discard(worker)

    @property
    def _name(self) -> str:
        return objective.objective_name(self.config)

    def _keep(self, trial, value, reason: str, seconds=0.0, options=None) -> None:
        values = trial.hyperparameters.values
        outcome = {
            "trial": trial.trial_id,
            "status": "failed" if value is None else "finished",
            "objective": value,
            "test_accuracy": None,
            "epochs": values.get("tuner/epochs", self.config.epochs),
            "seconds": round(seconds, 1),
            "values": {k: v for k, v in values.items() if k[:6] != "tuner/"},
            "options": options or {},
            "reason": reason,
        }
        folder = pathlib.Path(self.get_trial_dir(trial.trial_id))
        keep_outcome(folder, self._name, outcome)

    def _distill_and_judge(self, config: RunConfig, values: dict) -> float:
        keras.utils.clear_session()  # a hundred trials' graphs would fill the memory
        folder = pathlib.Path(config.workdir)
        if "tuner/trial_id" in values:
            _take_over(folder.with_name(f"trial_{values['tuner/trial_id']}"), folder)
        callbacks = [_stop_after(values.get("tuner/epochs", config.epochs))]
        own = () if config.teachers else ("train_teachers",)
        run = self._perform(config, (*own, "distill"), callbacks=callbacks)
        run = run or self._open_run(config)  # killed before it was judged
        if config.labelled_samples:
            return objective.held_out_accuracy(run, *self._labelled)
        objective.keep_images(run)
        pools = sorted(folder.parent.glob(f"trial_*/{objective.POOL}"))
        student = run.network("student", "distill")
        folders = [pool.parent for pool in pools]
        return objective.pooled_agreement(student, run.teachers.rule, folders)

    @functools.cached_property
    def _labelled(self) -> tuple:
        """Images and labels that all trials are judged by, read once."""
        images = self._open_run(self.config).real_images
        return images.few_shot(self.config.labelled_samples, self.config.seed)


def trial_config(
    config: RunConfig, options: dict[str, Any], folder: pathlib.Path
) -> RunConfig:
    """The run that a trial with these options is, in its folder.

    Args:
        config: of the search.
        options: name -> value, of what this trial varies.
        folder: the trial's own workdir.

    Raises:
        RequestError: options that fit no run, or not the given teachers.
    """
    refuse_training(config, options)
    return config.with_values({**options, **_SAVING, "workdir": str(folder)})


def refuse_training(config: RunConfig, names: Iterable[str]) -> None:
    """Refuses to vary how teachers are trained that are trained already.

    Raises:
        RequestError: naming the options.
    """
    varied = [name for name in names if name in names_in("training")]
    if varied and config.teachers:
        raise RequestError(
            f"The search varies {', '.join(varied)}, but its teachers are trained "
            "already. Leave out either that or --teachers."
        )


def build_oracle(
    config: RunConfig, hypermodel: keras_tuner.HyperModel
) -> keras_tuner.Oracle:
    """The oracle that `--tuner` names.

    Its first trial is the run as it stands, if the space holds it: what a search finds
    can then be compared with what it began with.
    """
    first = max(2, config.max_trials // 3)  # random ones, to learn from
    kind, more = {
        "random": (oracles.RandomSearchOracle, {}),
        "bayesian": (oracles.BayesianOptimizationOracle, {"num_initial_points": first}),
        "hyperband": (oracles.HyperbandOracle, {"max_epochs": config.epochs}),
    }[config.tuner]
    own = hypermodel.values_of(config) if isinstance(hypermodel, Space) else {}

    class OwnFirst(kind):
        def populate_space(self, trial_id):
            answer = super().populate_space(trial_id)
            if not self.trials and answer["values"]:
                answer["values"] |= own
            return answer

    oracle = OwnFirst(
        objective=keras_tuner.Objective(objective.objective_name(config), "max"),
        seed=config.seed + 1,  # to Keras Tuner, 0 is no seed
        max_consecutive_failed_trials=10**9,  # the summary lists them
        **more,
    )
    oracle.max_trials = config.max_trials or None
    return oracle


def _stop_after(epochs: int) -> keras.callbacks.Callback:
    """Ends training there; what is done is the beginning of the whole run."""

    def stop(epoch, logs):
        if epoch + 1 >= epochs:
            callback.model.stop_training = True

    callback = keras.callbacks.LambdaCallback(on_epoch_end=stop)
    return callback


def _take_over(earlier: pathlib.Path, folder: pathlib.Path) -> None:
    """A rung of Hyperband continues from the checkpoint that the rung below left."""
    source, goal = Workdir(earlier), Workdir(folder)
    if goal.holds("distill"):
        return  # killed within this rung, which has checkpoints of its own
    aside = folder / "checkpoints.part"
    shutil.rmtree(aside, ignore_errors=True)
    shutil.copytree(source.checkpoints, aside)
    shutil.copy(source.history, goal.history)
    if source.holds("train_teachers"):  # a trial's own
        shutil.copytree(source.teachers, goal.teachers, dirs_exist_ok=True)
    aside.rename(goal.checkpoints)
