"""Keras Tuner around ordinary runs: one tuner, three oracles."""

import dataclasses
import gc
import json
import math
import os
import pathlib
import shutil
import time
from collections.abc import Iterable
from typing import Any

import keras
import keras_tuner
from keras_tuner.engine.base_tuner import BaseTuner

from cdfkd_tf.assembly import Assembly
from cdfkd_tf.config import RunConfig
from cdfkd_tf.errors import RequestError
from cdfkd_tf.locking import only_one
from cdfkd_tf.pipeline import perform
from cdfkd_tf.teachers.build import TRAINING
from cdfkd_tf.tuning.objective import judge, objective_of
from cdfkd_tf.tuning.oracles import build_oracle
from cdfkd_tf.workdir import Workdir, read_json, write_json, write_text

FOLDER = "search"  # within the workdir
OUTCOME = "outcome.json"  # within a trial's folder
# Options of a trial that are the same for all of them, and cost or show something.
_LEAN = {
    "evaluate_every": 0,
    "export_formats": (),
    "report": False,
    "resume": True,
    "checkpoint_every": 1,  # a killed trial, and a next rung, go on from here
}


class SearchTuner(BaseTuner):
    """Runs trials, each an ordinary distillation in a folder of its own.

    Args:
        config: the run that trials vary; `teachers` names files that all share.
        hypermodel: its `build(hp)` returns the options that a trial changes.
    """

    def __init__(self, config: RunConfig, hypermodel: keras_tuner.HyperModel):
        self.config = config
        _know_the_search(pathlib.Path(config.workdir) / FOLDER)
        super().__init__(
            build_oracle(config, hypermodel),
            hypermodel,
            directory=config.workdir,
            project_name=FOLDER,
        )

    def run_trial(self, trial: Any) -> dict[str, float]:
        """One distillation and its objective; NaN if it failed.

        It may diverge, or its options fit no run: the search goes on, and the reason
        is kept beside the trial.
        """
        values, start = trial.hyperparameters.values, time.monotonic()
        folder = pathlib.Path(self.get_trial_dir(trial.trial_id))
        outcome = {
            "trial": trial.trial_id,
            "status": "failed",
            "values": {k: v for k, v in values.items() if not k.startswith("tuner/")},
            "epochs": values.get("tuner/epochs", self.config.epochs),
            "objective": None,
            "reason": "",
        }
        try:
            options = self.hypermodel.build(trial.hyperparameters)
            outcome["options"] = _plain(options)
            outcome["objective"] = self._distil(folder, options, values)
            outcome["status"] = "finished"
        except Exception as error:  # whatever one trial meets, the search goes on
            outcome["reason"] = _one_line(error)
        finally:
            if outcome["status"] == "finished" or outcome["reason"]:
                seconds = max(time.monotonic() - start, _distilled_for(folder))
                outcome["seconds"] = round(seconds, 1)
                keep_outcome(folder, self.config, outcome)
        # Keras Tuner takes NaN for a failed trial; an exception it would also print.
        failed = outcome["objective"] is None
        score = math.nan if failed else outcome["objective"]
        return {objective_of(self.config): score}

    def _distil(self, folder: pathlib.Path, options: dict, values: dict) -> float:
        config = trial_config(self.config, options, folder)
        keras.utils.clear_session()  # a hundred trials' graphs would fill the memory
        gc.collect()
        with only_one(folder):
            if "tuner/trial_id" in values:
                earlier = f"trial_{values['tuner/trial_id']}"
                _take_over(folder.parent / earlier, folder)
            until = values.get("tuner/epochs")
            callbacks = [StopAfter(until)] if until else []
            own = () if config.teachers else ("train_teachers",)
            perform(config, (*own, "distill"), callbacks)
            return judge(config, Assembly(config, Workdir(config.workdir)))

    def on_trial_end(self, trial: Any) -> None:
        """Says what came out; Keras Tuner keeps it."""
        super().on_trial_end(trial)
        outcome = read_json(pathlib.Path(self.get_trial_dir(trial.trial_id)) / OUTCOME)
        if outcome.get("objective") is None:
            print(f"Trial {trial.trial_id} failed: {outcome['reason']}", flush=True)
        else:
            name, value = objective_of(self.config), outcome["objective"]
            print(f"Trial {trial.trial_id}: {name} {value:.4f}", flush=True)


class StopAfter(keras.callbacks.Callback):
    """Ends `fit` early, so that what is done is the beginning of the whole run.

    Args:
        epochs: of the whole run that are done then.
    """

    def __init__(self, epochs: int):
        super().__init__()
        self.epochs = epochs

    def on_epoch_end(self, epoch, logs=None):
        """Stops Keras's loop after the given epoch."""
        if epoch + 1 >= self.epochs:
            self.model.stop_training = True


def trial_config(
    config: RunConfig, options: dict[str, Any], folder: pathlib.Path
) -> RunConfig:
    """The run that a trial is.

    Raises:
        RequestError: options that fit no run, or not the given teachers.
    """
    refuse_training(config, options)
    return dataclasses.replace(
        config, action="distill", workdir=str(folder), **_LEAN | options
    )


def refuse_training(config: RunConfig, names: Iterable[str]) -> None:
    """Refuses to vary how teachers are trained that are trained already.

    Raises:
        RequestError: naming the options.
    """
    varied = [name for name in names if name in TRAINING]
    if varied and config.teachers:
        raise RequestError(
            f"The search varies {', '.join(varied)}, but its teachers are trained "
            "already. Leave out either that or --teachers."
        )


def _know_the_search(directory: pathlib.Path) -> None:
    """Lets Keras Tuner go on with a search that processes of other names began.

    It looks for a file named after this process, and that file is always empty.
    """
    own = directory / f"{os.environ.get('KERASTUNER_TUNER_ID', 'tuner0')}.json"
    if (directory / "oracle.json").exists() and not own.exists():
        write_text(own, "{}")


def _take_over(earlier: pathlib.Path, folder: pathlib.Path) -> None:
    """A rung goes on from the checkpoint that the rung below ended with."""
    source, goal = Workdir(str(earlier)), Workdir(str(folder))
    if goal.holds("distill"):
        return  # killed within this rung, which has checkpoints of its own
    aside = folder / "checkpoints.part"
    shutil.rmtree(aside, ignore_errors=True)
    shutil.copytree(source.checkpoints, aside)
    shutil.copy(source.history, goal.history)
    if source.holds("train_teachers"):  # a trial's own
        shutil.copytree(source.teachers, goal.teachers, dirs_exist_ok=True)
    aside.rename(goal.checkpoints)


def _one_line(error: Exception) -> str:
    text = " ".join(str(error).split())[:300]
    own = hasattr(error, "exit_code")  # our words, which name what to do
    return text if own else f"{type(error).__name__}: {text}"


def _plain(options: dict[str, Any]) -> dict[str, Any]:
    return {
        name: list(value) if isinstance(value, tuple) else value
        for name, value in options.items()
    }


def _distilled_for(folder: pathlib.Path) -> float:
    """Seconds of a distillation, also of processes that were interrupted."""
    known = read_json(folder / "results.json").get("seconds", {})
    return known.get("distill") or 0.0


def keep_outcome(
    folder: pathlib.Path, config: RunConfig, outcome: dict[str, Any]
) -> None:
    """Writes what came out of a trial, also for TensorBoard's HParams page.

    Args:
        folder: of the trial.
        config: the run that trials vary.
        outcome: `trial`, `values`, `epochs`, `objective` and so on.
    """
    import tensorflow as tf
    from tensorboard.plugins.hparams import api

    write_json(folder / OUTCOME, outcome)
    directory = folder / "logs/hparams"
    shutil.rmtree(directory, ignore_errors=True)
    with tf.summary.create_file_writer(str(directory)).as_default():
        api.hparams(outcome["values"], trial_id=f"trial {outcome['trial']}")
        if outcome["objective"] is not None:
            name = objective_of(config)
            tf.summary.scalar(name, outcome["objective"], step=outcome["epochs"])


def read_outcomes(workdir: pathlib.Path) -> list[dict[str, Any]]:
    """What the trials so far left, in their order."""
    files = sorted((workdir / FOLDER).glob(f"trial_*/{OUTCOME}"))
    outcomes = []
    for file in files:
        outcome = json.loads(file.read_text())
        results = read_json(file.with_name("results.json"))
        outcome["test_accuracy"] = results.get("aggregator", {}).get("accuracy")
        outcome["folder"] = str(file.parent)
        outcomes.append(outcome)
    return outcomes
