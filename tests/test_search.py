"""Searches: trials on digits' teachers, what they leave, and their doors."""

import csv
import json
import os
import pathlib
import socket
import subprocess
import sys

import keras
import numpy as np
import pytest

import cdfkd_tf
from cdfkd_tf import pipeline
from tests import strangers
from tests.conftest import TOY, run_main

ROOT = pathlib.Path(__file__).parent.parent
NO_TEST = "--evaluation_split=none"
SPACE = "student_learning_rate = 0.01..0.1 log\ngenerator_bn_weight = 0.1 | 1\n"


pytestmark = pytest.mark.usefixtures("all_eagerly")


@pytest.fixture(scope="module")
def teachers(tmp_path_factory, data_dir, all_eagerly):
    workdir = tmp_path_factory.mktemp("teachers")
    train = ("--action=train_teachers", "--dataset=digits", f"--data_dir={data_dir}")
    assert run_main(*train, f"--workdir={workdir}", *TOY) == 0
    return [str(workdir / f"teachers/teacher_{index}.keras") for index in (0, 1)]


@pytest.fixture
def flags(teachers, data_dir, tmp_path):
    """A search without its number of trials."""
    (tmp_path / "a.space").write_text(SPACE)
    return (
        "--action=search",
        "--dataset=digits",
        f"--data_dir={data_dir}",
        f"--teachers={','.join(teachers)}",
        f"--workdir={tmp_path / 'run'}",
        f"--search_space={tmp_path / 'a.space'}",
        *TOY,
        "--epochs=1",
    )


def rows_of(workdir):
    with (workdir / "search/summary.csv").open(newline="") as lines:
        return list(csv.DictReader(lines))


def weights_of(file):
    model = keras.saving.load_model(file, compile=False)
    return [np.array(weight) for weight in model.weights]


def assert_same_weights(one, other):
    for a, b in zip(weights_of(one), weights_of(other), strict=True):
        np.testing.assert_array_equal(a, b)


def test_trials_leave_a_table_a_page_and_flags_that_repeat_the_best(
    flags, tmp_path, capsys
):
    assert run_main(*flags, "--max_trials=3") == 0
    run = tmp_path / "run"
    rows = rows_of(run)
    objectives = [float(row["agreement_pooled"]) for row in rows]
    assert len(rows) == 3 and objectives == sorted(objectives, reverse=True)
    assert all(0 <= float(row["test_accuracy"]) <= 1 for row in rows)
    rates = {float(row["student_learning_rate"]) for row in rows}
    assert len(rates) == 3 and all(0.01 <= rate <= 0.1 for rate in rates)
    (first,) = (row for row in rows if row["trial"] == "0")  # the run as it stands
    own = ("student_learning_rate", "generator_bn_weight")
    assert [float(first[name]) for name in own] == [0.1, 0.1]
    assert "Rank correlation of objective and test accuracy" in capsys.readouterr().out
    page = (run / "search/report.html").read_text()
    assert page.count("<svg") == 3 and "generator_bn_weight" in page
    assert list(run.glob("search/trial_0/logs/hparams/events*"))

    best = run / f"search/trial_{rows[0]['trial']}"
    again = ("--action=distill", f"--workdir={tmp_path / 'again'}")
    assert run_main(f"--flagfile={run / 'search/best.flags'}", *again) == 0
    assert_same_weights(tmp_path / "again/student.keras", best / "student.keras")


def test_a_killed_search_finishes_the_remaining_trials_only(
    flags, tmp_path, monkeypatch
):
    done, perform = [], pipeline.perform

    def counted(config, *args):
        name = pathlib.Path(config.workdir).name
        if len(done) == 1 and not interrupted:
            interrupted.append(name)
            raise KeyboardInterrupt
        if config.action == "distill" and args[0] == ("distill",):
            done.append(name)
        return perform(config, *args)

    interrupted = []
    monkeypatch.setattr("cdfkd_tf.tuning.tuner.perform", counted)
    flags += (NO_TEST,)
    assert run_main(*flags, "--max_trials=3") == 130
    assert done == ["trial_0"] and interrupted == ["trial_1"]
    assert run_main(*flags, "--max_trials=3") == 0
    assert done == ["trial_0", "trial_1", "trial_2"]
    assert run_main(*flags, "--max_trials=3") == 0
    assert len(done) == 3 and len(rows_of(tmp_path / "run")) == 3


def test_a_trial_that_diverges_is_a_failed_trial(flags, tmp_path, capsys):
    (tmp_path / "a.space").write_text("student_learning_rate = 0.05 | 1e30\n")
    assert run_main(*flags, "--max_trials=2", "--steps_per_epoch=3") == 0
    good, bad = rows_of(tmp_path / "run")
    assert (good["status"], bad["status"]) == ("finished", "failed")
    assert "became" in bad["reason"] and bad["agreement_pooled"] == ""
    assert "Traceback" not in capsys.readouterr().out


def test_hyperband_goes_on_with_the_weights_of_the_rung_below(flags, tmp_path):
    more = ("--tuner=hyperband", "--max_trials=4", "--epochs=3", "--milestones=1")
    more += ("--steps_per_epoch=1", NO_TEST)
    assert run_main(*flags, *more) == 0
    run = tmp_path / "run/search"
    trials = [json.loads(file.read_text()) for file in run.glob("trial_*/trial.json")]
    values = {t["trial_id"]: t["hyperparameters"]["values"] for t in trials}
    continued = {t: v["tuner/trial_id"] for t, v in values.items() if v["tuner/round"]}
    trial, earlier = next(iter(continued.items()))
    history = (run / f"trial_{trial}/history.csv").read_text().splitlines()
    before = (run / f"trial_{earlier}/history.csv").read_text().splitlines()
    assert len(history) == 4 and history[: len(before)] == before
    # The same as the whole run at once.
    rate = values[trial]["student_learning_rate"]
    weight = values[trial]["generator_bn_weight"]
    whole = (f"--student_learning_rate={rate}", f"--generator_bn_weight={weight}")
    action = ("--action=distill", f"--workdir={tmp_path / 'whole'}")
    assert run_main(*flags, *more, *whole, *action) == 0
    assert_same_weights(
        tmp_path / "whole/student.keras", run / f"trial_{trial}/student.keras"
    )


def test_real_samples_judge_where_there_are_some(flags, tmp_path):
    more = ("--max_trials=1", "--real_samples=20", "--aggregator=weights")
    assert run_main(*flags, *more) == 0
    (row,) = rows_of(tmp_path / "run")
    assert float(row["held_out_accuracy"]) * 10 == pytest.approx(
        round(float(row["held_out_accuracy"]) * 10)  # half of the twenty
    )


def test_trials_train_their_own_teachers_if_these_vary(flags, tmp_path, capsys):
    (tmp_path / "a.space").write_text("teacher_learning_rate = 0.05 | 0.1\n")
    flags += ("--max_trials=1", "--steps_per_epoch=1", NO_TEST)
    assert run_main(*flags) == 2
    assert "varies teacher_learning_rate, but" in capsys.readouterr().err
    assert run_main(*flags, "--teachers=") == 0
    run = tmp_path / "run"
    assert len(list(run.glob("search/trial_0/teachers/*.keras"))) == 2
    assert not (run / "teachers").exists()


def test_another_search_in_the_same_workdir_is_refused(flags, tmp_path, capsys):
    assert run_main(*flags, "--max_trials=1") == 0
    assert run_main(*flags, "--max_trials=1", "--student_rounds=3") == 2
    assert "--student_rounds=2" in capsys.readouterr().err
    (tmp_path / "a.space").write_text("student_rounds = 2..3\n")
    assert run_main(*flags, "--max_trials=1") == 2
    assert "--noresume" in capsys.readouterr().err


@pytest.mark.parametrize("tuner", ["random", "bayesian", "hyperband"])
def test_from_python_with_models_and_a_hypermodel(tuner, tmp_path):
    import keras_tuner

    class Mine(keras_tuner.HyperModel):
        def build(self, hp):
            rounds = hp.Int("rounds", 2, 3)
            return {"student_rounds": rounds, "batch_size": 8 * rounds}

    keras.utils.set_random_seed(0)
    models = [strangers.logits(), strangers.probabilities_of_bytes()]
    summary = cdfkd_tf.search(
        models,
        Mine() if tuner == "random" else {"student_width": [0.25, 0.125]},
        workdir=tmp_path,
        tuner=tuner,
        max_trials=2,
        student="wrn10_1",
        student_feature_weight=0,
        generator_width=0.125,
        latent_size=8,
        student_rounds=2,
        epochs=1,
        steps_per_epoch=1,
        batch_size=8,
    )
    # One epoch is one rung of one.
    trials = 1 if tuner == "hyperband" else 2
    assert len(summary.outcomes) == trials and summary.rank_correlation is None
    options = summary.best["options"]
    if tuner == "random":
        assert options["batch_size"] == 8 * options["student_rounds"]
    assert (tmp_path / "search/best.flags").exists()


@pytest.mark.parametrize(
    "more,words",
    [
        (("--search_space=nowhere",), "weights, schedule, student, or a file"),
        (("--search_space=weights", "--method=dfad"), "one loss term"),
        (("--method=kd",), "--real_samples"),
        (("--max_trials=0",), "hyperband"),
    ],
)
def test_a_search_that_cannot_be_is_refused(more, words, flags, capsys):
    assert run_main(*flags, *more) == 2
    assert words in capsys.readouterr().err


def test_chief_and_two_workers_share_six_trials(flags, tmp_path):
    program = (
        "import sys, tensorflow as tf; tf.config.run_functions_eagerly(True);"
        "from cdfkd_tf import cli; sys.exit(cli.main())"
    )
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    processes = []
    for name in ("chief", "worker0", "worker1"):
        there = {
            "KERASTUNER_ORACLE_IP": "127.0.0.1",
            "KERASTUNER_ORACLE_PORT": str(port),
            "KERASTUNER_TUNER_ID": name,
        }
        processes.append(
            subprocess.Popen(
                [sys.executable, "-c", program, *flags, "--max_trials=6"],
                cwd=ROOT,
                env={**os.environ, **there},
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                text=True,
            )
        )
    said = [process.communicate(timeout=400)[0] for process in processes]
    assert [process.returncode for process in processes] == [0, 0, 0], said
    finished = [
        [line.split()[1] for line in text.splitlines() if line.startswith("Trial ")]
        for text in said[1:]
    ]
    assert all(finished), "one worker did all"
    assert sorted([*finished[0], *finished[1]]) == [f"{trial}:" for trial in range(6)]
    assert len(rows_of(tmp_path / "run")) == 6
