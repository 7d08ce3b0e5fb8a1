"""The actions: what `--action` names, and what it says at the end."""

import pathlib

from cdfkd_tf.assisting import assist
from cdfkd_tf.config import RunConfig
from cdfkd_tf.export.predict import predict
from cdfkd_tf.locking import only_one
from cdfkd_tf.pipeline import STEPS, perform
from cdfkd_tf.report.page import write_report
from cdfkd_tf.results import read_results, summary
from cdfkd_tf.runtime.cluster import Cluster
from cdfkd_tf.runtime.silence_stderr import quiet_tensorflow
from cdfkd_tf.workdir import Workdir


def run(config: RunConfig) -> None:
    """Runs the action that `config` names and prints the results.

    Raises:
        RequestError: wrong request, also where the workdir holds another run.
        RunError: a step failed.
    """
    workdir = Workdir(config.workdir)
    if config.action == "predict":
        predict(
            config.predict_input,
            model=config.predict_model,
            directory=workdir.export,
            output=pathlib.Path(
                config.predict_output or workdir.path / "predictions.csv"
            ),
            predictor=workdir.predictor if config.show_header_weights else None,
        )
    elif config.action == "report":
        print(f"The report is {write_report(workdir)}")
    elif config.action == "search":
        quiet_tensorflow()
        from cdfkd_tf.tuning.run import search  # Keras Tuner takes seconds

        search(config)
    else:
        _run_steps(config, workdir)


def _run_steps(config: RunConfig, workdir: Workdir) -> None:
    whole = config.action == "pipeline"
    if config.strategy == "multi_worker":
        cluster = Cluster.from_environment()
        if not cluster.is_chief:
            assist(config, cluster)
            return
    with only_one(workdir.path):
        worked = perform(config, tuple(STEPS) if whole else (config.action,))
        if not worked:
            print(f"Nothing to do: {config.workdir} holds all of it already.")
        results = read_results(workdir.results)
        reports = whole and config.report
        if reports and results and (worked or not workdir.report.exists()):
            write_report(workdir)
    if results:
        print(summary(results, config.workdir))
