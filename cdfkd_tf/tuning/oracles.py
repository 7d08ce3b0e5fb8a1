"""What is tried next: Keras Tuner's oracles, but the run's own settings first."""

from typing import Any

import keras_tuner
from keras_tuner import oracles

from cdfkd_tf.config import RunConfig
from cdfkd_tf.errors import RequestError
from cdfkd_tf.tuning.objective import objective_of
from cdfkd_tf.tuning.space import Space

_NEVER = 10**9


class _OwnFirst:
    """An oracle whose first trial is the run as it stands, if the space holds it.

    What a search finds can then be compared with what it began with.
    """

    own: dict[str, Any] = {}

    def populate_space(self, trial_id):
        """As Keras Tuner's, but for the first trial."""
        answer = super().populate_space(trial_id)
        if not self.trials and answer["values"]:
            answer["values"] |= self.own
        return answer


class _Random(_OwnFirst, oracles.RandomSearchOracle):
    pass


class _Bayesian(_OwnFirst, oracles.BayesianOptimizationOracle):
    pass


class _Hyperband(_OwnFirst, oracles.HyperbandOracle):
    pass


def build_oracle(config: RunConfig, hypermodel: keras_tuner.HyperModel) -> Any:
    """The oracle that `--tuner` names.

    Args:
        config: the run that trials vary.
        hypermodel: what varies.

    Raises:
        RequestError: no number of trials where one is needed.
    """
    oracle = _oracle(config)
    if isinstance(hypermodel, Space):
        oracle.own = hypermodel.values_of(config)
    return oracle


def _oracle(config: RunConfig) -> Any:
    shared = {
        "objective": keras_tuner.Objective(objective_of(config), "max"),
        "seed": config.seed + 1,  # to Keras Tuner, 0 is no seed
        "max_consecutive_failed_trials": _NEVER,  # they are told of at the end
    }
    if config.tuner == "hyperband":
        oracle = _Hyperband(max_epochs=config.epochs, **shared)
        oracle.max_trials = config.max_trials or None
        return oracle
    if not config.max_trials:
        raise RequestError(
            "--max_trials=0 leaves the number to --tuner=hyperband; got --tuner="
            f"{config.tuner}. Give a number."
        )
    shared["max_trials"] = config.max_trials
    if config.tuner == "random":
        return _Random(**shared)
    first = max(2, config.max_trials // 3)  # random ones, to learn from
    return _Bayesian(num_initial_points=first, **shared)
