"""Searches: one real one that many tests look at; others whose runs train nothing."""

import contextlib
import csv
import io
import json
import os
import pathlib
import socket
import subprocess
import sys
import threading
import time

import keras
import keras_tuner
import numpy as np
import pytest
import tensorflow as tf
from keras import layers

import cdfkd_tf
from cdfkd_tf.config import RunConfig
from cdfkd_tf.distillation import build
from cdfkd_tf.errors import DistillationWarning, RequestError, RunError
from cdfkd_tf.pipeline.steps import Run
from cdfkd_tf.tuning import workers
from cdfkd_tf.tuning.run import search
from cdfkd_tf.tuning.space import find_space, read_space
from cdfkd_tf.tuning.summary import read_outcomes
from cdfkd_tf.tuning.tuner import SearchTuner
from tests import toys
from tests.rows import rows

ROOT = pathlib.Path(__file__).parent.parent
SPACE = "student_learning_rate = 0.01..0.1 log\ngenerator_loss.bn = 0.1 | 1\n"
SHORT = ("--epochs=1", "--steps_per_epoch=2", "--batch_size=64")
OWN_TEACHERS = {
    "teachers": (),
    "num_teachers": 2,
    "teacher_input": "auto",
    "teacher_network": "wrn10_1",
    "teacher_width": 0.25,
}


@pytest.fixture(scope="module")
def request_of(toy_files):
    """`request_of(folder, more)`: a search on own images, its space in the folder."""

    def build_config(folder, *more):
        (folder / "a.space").write_text(SPACE)
        own = (f"--workdir={folder / 'run'}", f"--search_space={folder / 'a.space'}")
        flags = (*toy_files.with_data, *SHORT, "--student_learning_rate=0.1", *own)
        return toys.parse("--action=search", *flags, *more)

    return build_config


def rows_of(workdir):
    with (workdir / "search/summary.csv").open(newline="") as lines:
        return list(csv.DictReader(lines))


def assert_same_weights(one, other):
    models = [keras.saving.load_model(file, compile=False) for file in (one, other)]
    for a, b in zip(models[0].weights, models[1].weights, strict=True):
        np.testing.assert_array_equal(a, b)


@pytest.fixture(scope="module")
def complete(request_of, tmp_path_factory):
    """A search, as users run it: its request, its folder, and what it printed."""
    config = request_of(tmp_path_factory.mktemp("complete"), "--max_trials=3")
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed):
        assert toys.run_main(*config.changed_flags()) == 0
    return config, pathlib.Path(config.workdir), printed.getvalue()


def test_search_leaves_a_table_that_begins_with_the_best(complete):
    rows = rows_of(complete[1])
    objectives = [float(row["agreement_pooled"]) for row in rows]
    assert len(rows) == 3 and objectives == sorted(objectives, reverse=True)
    assert all(0 <= float(row["test_accuracy"]) <= 1 for row in rows)
    rates = {float(row["student_learning_rate"]) for row in rows}
    assert len(rates) == 3 and all(0.01 <= rate <= 0.1 for rate in rates)


def test_search_tries_the_runs_own_settings_first(complete):
    (first,) = (row for row in rows_of(complete[1]) if row["trial"] == "0")
    own = ("student_learning_rate", "generator_loss.bn")
    assert [float(first[name]) for name in own] == [0.1, 0.1]


def test_search_writes_a_page_and_hparams(complete):
    _, run, printed = complete
    page = (run / "search/report.html").read_text()
    assert page.count("<svg") == 3 and "generator_loss.bn" in page
    assert f"--flagfile={run}/search/best.flags" in page
    assert len(list(run.glob("search/trial_*/logs/hparams/events*"))) == 3
    assert "Rank correlation of objective and test accuracy" in printed


@pytest.mark.slow
def test_best_flags_repeat_the_best_trial(complete, tmp_path):
    _, run, _ = complete
    best = run / f"search/trial_{rows_of(run)[0]['trial']}"
    again = ("--action=distill", f"--workdir={tmp_path}")
    assert toys.run_main(f"--flagfile={run / 'search/best.flags'}", *again) == 0
    assert_same_weights(tmp_path / "student.keras", best / "student.keras")


@pytest.mark.slow
def test_finished_search_is_summed_up_again_without_a_trial(complete):
    config, run, _ = complete
    before = (run / "search/summary.csv").read_text()

    def perform(*args, **kwargs):
        raise AssertionError("nothing is left to perform")

    summary = search(config, perform, Run)
    assert (run / "search/summary.csv").read_text() == before
    assert len(summary.outcomes) == 3


@pytest.mark.slow
def test_finished_search_is_known_to_a_process_of_another_name(complete):
    config = complete[0]
    tuner = SearchTuner(config, find_space(config), None, None)
    assert len(tuner.oracle.trials) == 3 and tuner.oracle.create_trial("another").status


def test_another_search_in_the_same_workdir_is_refused(complete, capsys):
    for more, words in (
        ("--student_steps=3", "--student_steps=2"),
        ("--search_space=weights", "--noresume"),
        ("--tuner=bayesian", "--tuner=random"),
    ):
        assert toys.run_main(*complete[0].changed_flags(), more) == 2
        assert words in capsys.readouterr().err


def test_search_that_cannot_be_is_refused(request_of, tmp_path, capsys):
    flags = request_of(tmp_path).changed_flags()
    weights = ("--method=kd", "--labelled_samples=6", "--search_space=weights")
    for more, words in (
        (["--search_space=nowhere"], "weights, schedule, student, or a file"),
        (["--method=kd"], "--labelled_samples"),
        (weights, "one loss term"),
        (["--max_trials=0"], "hyperband"),
    ):
        assert toys.run_main(*flags, *more) == 2
        assert words in capsys.readouterr().err


class Untrained:
    """Performs runs that end with fresh networks, and counts what was asked for."""

    def __init__(self, fails=lambda config: None, keeps_images=True):
        self.fails, self.keeps_images = fails, keeps_images
        self.performed, self.opened = [], 0

    def __call__(self, config, wanted, callbacks=()):
        self.performed.append((pathlib.Path(config.workdir).name, wanted, config))
        self.fails(config)
        run = Run(config)
        if "train_teachers" in wanted:
            run.workdir.teachers.mkdir(parents=True)
            for index in range(config.num_teachers):
                toys.classifier(seed=index).save(run.workdir.teacher(index))
        if "distill" in wanted:
            keras.utils.set_random_seed(config.seed)
            run.keep("student", build.build_student(config, run.spec, 2))
            run.keep("generator", build.build_generator(config, run.spec))
        if "distill" in wanted and self.keeps_images:
            images = np.random.default_rng(0).normal(size=(2, 4, *toys.SHAPE))
            run.workdir.checkpoints.mkdir()
            np.savez(run.workdir.earlier_images, images=images, classes=[[0] * 4] * 2)
        return run

    def open(self, config):
        self.opened += 1
        return Run(config)

    @property
    def trials(self):
        return [name for name, _, _ in self.performed]


@pytest.fixture
def config(request_of, tmp_path):
    """A search of two trials that measures nothing; line by line: it trains nothing."""
    tf.config.run_functions_eagerly(True)
    yield request_of(tmp_path, "--evaluation_split=none", "--max_trials=2")
    tf.config.run_functions_eagerly(False)


@pytest.mark.slow
def test_killed_or_longer_search_runs_the_remaining_trials_only(config):
    def interrupt(config):
        if config.workdir.endswith("trial_1"):
            raise KeyboardInterrupt

    first, second, third = Untrained(interrupt), Untrained(), Untrained()
    with pytest.raises(KeyboardInterrupt):
        search(config, first, first.open)
    search(config, second, second.open)
    assert first.trials == ["trial_0", "trial_1"] and second.trials == ["trial_1"]
    longer = config.with_values({"max_trials": 3})
    assert len(search(longer, third, third.open).outcomes) == 3
    assert third.trials == ["trial_2"]


@pytest.mark.slow
def test_noresume_search_begins_anew(config):
    perform = Untrained()
    for more in ({}, {"resume": False, "student_steps": 3}):
        values = {"max_trials": 1, **more}
        search(config.with_values(values), perform, perform.open)
    assert perform.trials == ["trial_0"] * 2


def test_trial_that_fails_is_a_row_with_its_reason(config, capsys):
    def diverge(config):
        if config.workdir.endswith("trial_1"):
            raise RunError("student_header became NaN.")
        if config.workdir.endswith("trial_2"):
            raise OSError("two\nlines")

    perform = Untrained(diverge)
    search(config.with_values({"max_trials": 3}), perform, perform.open)
    good, *bad = rows_of(pathlib.Path(config.workdir))
    assert [good["status"], *(row["status"] for row in bad)] == [
        "finished",
        "failed",
        "failed",
    ]
    reasons = {row["reason"] for row in bad}
    assert reasons == {"student_header became NaN.", "OSError: two lines"}
    assert {row["agreement_pooled"] for row in bad} == {""}
    assert "Traceback" not in capsys.readouterr().out


def test_search_without_a_finished_trial_names_the_first_reason(config):
    def diverge(config):
        raise RunError("student_header became NaN.")

    perform = Untrained(diverge)
    with pytest.raises(RunError, match=r"None of 2 trials .* became NaN"):
        search(config, perform, perform.open)
    folder = pathlib.Path(config.workdir) / "search"
    assert (folder / "report.html").exists() and not (folder / "best.flags").exists()


def test_labelled_samples_judge_trials_and_are_read_once(config):
    more = {"labelled_samples": 8, "aggregator": "weights", "evaluation_split": "test"}
    perform = Untrained()

    def open_run(config):
        run = perform.open(config)
        run.real_images.__dict__["can_measure"] = False
        return run

    summary = search(config.with_values(more), perform, open_run)
    accuracies = [outcome["objective"] for outcome in summary.outcomes]
    assert len(accuracies) == 2 and perform.opened == 2  # samples; can_measure
    assert np.allclose(np.array(accuracies) * 4 % 1, 0)  # half of the eight
    assert "held_out_accuracy" in rows_of(pathlib.Path(config.workdir))[0]


def test_trials_share_teachers_that_are_trained_once(config):
    perform = Untrained()
    search(config.with_values(OWN_TEACHERS), perform, perform.open)
    assert [wanted for _, wanted, _ in perform.performed] == [
        ("train_teachers",),
        ("distill",),
        ("distill",),
    ]
    folder = pathlib.Path(config.workdir) / "teachers"
    shared = tuple(str(folder / f"teacher_{index}.keras") for index in range(2))
    assert perform.performed[1][2].teachers == shared


@pytest.mark.slow
def test_trials_train_their_own_teachers_if_these_vary(config):
    more = {**OWN_TEACHERS, "max_trials": 1}
    config, perform = config.with_values(more), Untrained()
    space = read_space({"teacher_learning_rate": "0.05 | 0.1"}, config, "space")
    search(config, perform, perform.open, space)
    wanted = [wanted for _, wanted, _ in perform.performed]
    assert wanted == [("train_teachers", "distill")]
    assert not (pathlib.Path(config.workdir) / "teachers").exists()


@pytest.mark.slow
def test_search_finds_the_number_of_classes_once(config):
    more = {"dataset": "none", "image_folder": "", "image_shape": toys.SHAPE}
    more["max_trials"] = 1
    perform = Untrained()
    search(config.with_values(more), perform, perform.open)
    assert [c.num_classes for _, _, c in perform.performed] == [4]
    assert perform.opened == 2  # classes; the rule by which the student is judged


@pytest.mark.slow
def test_trial_too_short_to_keep_images_is_judged_by_its_last_generator(config):
    perform = Untrained(keeps_images=False)
    search(config.with_values({"max_trials": 1}), perform, perform.open)
    folder = pathlib.Path(config.workdir) / "search/trial_0"
    with np.load(folder / "generated_pool.npz") as pool:
        assert pool["images"].shape == (256, *toys.SHAPE)
        teachers = [keras.saving.load_model(file) for file in config.teachers]
        logits = sum(teacher.predict(pool["images"], verbose=0) for teacher in teachers)
        np.testing.assert_array_equal(pool["classes"], logits.argmax(-1))


@pytest.mark.slow
@pytest.mark.parametrize("tuner", ["bayesian", "hyperband"])
def test_every_tuner_searches(tuner, config):
    perform = Untrained()
    config = config.with_values({"tuner": tuner})
    summary = search(config, perform, perform.open)
    # One epoch is one rung of one.
    assert len(summary.outcomes) == (1 if tuner == "hyperband" else 2)
    assert summary.rank_correlation is None


@pytest.mark.slow
def test_hyperband_goes_on_with_the_weights_of_the_rung_below(config, tmp_path):
    more = {"tuner": "hyperband", "max_trials": 4, "epochs": 3, "action": "search"}
    config = config.with_values({**more, "steps_per_epoch": 1})
    assert toys.run_main(*config.changed_flags()) == 0
    run = pathlib.Path(config.workdir) / "search"
    trials = [json.loads(file.read_text()) for file in run.glob("trial_*/trial.json")]
    values = {t["trial_id"]: t["hyperparameters"]["values"] for t in trials}
    continued = {t: v["tuner/trial_id"] for t, v in values.items() if v["tuner/round"]}
    trial, earlier = next(iter(continued.items()))
    history = (run / f"trial_{trial}/history.csv").read_text().splitlines()
    before = (run / f"trial_{earlier}/history.csv").read_text().splitlines()
    assert len(history) == 4 and history[: len(before)] == before
    # The same as the whole run at once.
    own = {name: v for name, v in values[trial].items() if "tuner/" not in name}
    own |= {"action": "distill", "workdir": str(tmp_path / "whole")}
    assert toys.run_main(*config.with_values(own).changed_flags()) == 0
    assert_same_weights(
        tmp_path / "whole/student.keras", run / f"trial_{trial}/student.keras"
    )


@pytest.mark.slow
def test_search_from_python_takes_models_and_a_hypermodel(request_of, tmp_path):
    class Mine(keras_tuner.HyperModel):
        def build(self, hp):
            steps = hp.Int("steps", 2, 3)
            weights = {"student_loss.ensemble": 2.0 * steps}
            return {"student_steps": steps, "batch_size": 8 * steps, **weights}

    config = request_of(tmp_path)
    names = ("student", "student_headers", "generator_width", "latent_size", "epochs")
    summary = cdfkd_tf.search(
        [toys.classifier(seed=0), toys.classifier(seed=1)],
        Mine(),
        workdir=tmp_path,
        max_trials=1,
        steps_per_epoch=1,
        student_loss={"feature": 0},
        **{name: getattr(config, name) for name in names},
    )
    best = summary.best["options"]
    assert best["batch_size"] == 8 * best["student_steps"]
    assert best["student_loss"] == {"feature": 0, "ensemble": 2 * best["student_steps"]}
    assert RunConfig(**best).batch_size == best["batch_size"]  # `distill` takes it
    assert (tmp_path / "search/best.flags").exists()


def test_search_from_python_reads_a_table(tmp_path):
    table = {"student_width": [0.5, 0.25], "student_loss.colour": "1..2"}
    with pytest.raises(RequestError, match=r"space: student_loss.colour = 1\.\.2"):
        cdfkd_tf.search([toys.classifier()], table, workdir=tmp_path)


@pytest.fixture
def address(monkeypatch):
    """A free port, as the variables of a worker name it."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    monkeypatch.setenv("KERASTUNER_ORACLE_IP", "127.0.0.1")
    monkeypatch.setenv("KERASTUNER_ORACLE_PORT", str(port))
    monkeypatch.setenv("KERASTUNER_TUNER_ID", "worker0")
    return port


@rows("missing", [workers._VARIABLES[:2], workers._VARIABLES[2:]])
def test_role_needs_all_variables(missing, address, monkeypatch):
    assert workers.find_role() == "worker"
    for name in missing:
        monkeypatch.delenv(name)
    with pytest.raises(RequestError, match=f"no {missing[0]}"):
        workers.find_role()
    for name in missing:
        monkeypatch.setenv(name, "")
    with pytest.raises(RequestError, match=f"no {missing[0]}"):
        workers.find_role()


def test_role_needs_a_port_that_is_a_number(address, monkeypatch):
    monkeypatch.setenv("KERASTUNER_ORACLE_PORT", "8o00")
    with pytest.raises(RequestError, match="must be a port number; got '8o00'"):
        workers.find_role()


def test_worker_gives_up_where_no_chief_comes(address, config):
    with pytest.raises(RunError, match=f"No chief at 127.0.0.1:{address} within 0.2 s"):
        search(config.with_values({"worker_timeout": 0.2}), None, None)


@pytest.mark.slow
def test_worker_gives_up_where_the_chief_is_gone(address, config, tmp_path):
    with workers.listening():
        workers.await_chief(lambda: True, seconds=1)
    with (
        pytest.raises(RunError, match=f"{address} did not answer within 0.4 s"),
        workers.working(tmp_path / "signs", 0.4),
    ):
        SearchTuner(config, find_space(config), None, None).search()


@pytest.mark.slow
def test_chief_ends_the_trial_of_a_worker_that_is_gone(config, address, monkeypatch):
    monkeypatch.setenv("KERASTUNER_TUNER_ID", "chief")
    config = config.with_values({"worker_timeout": 1.0})
    tuner = SearchTuner(config, find_space(config), None, None)
    signs = pathlib.Path(config.workdir) / "search/workers"

    def begin_a_trial():
        monkeypatch.setenv("KERASTUNER_TUNER_ID", "worker0")
        worker = SearchTuner(config, find_space(config), None, None)
        with workers.working(signs, 10.0):
            worker.oracle.create_trial("worker0")
        monkeypatch.setenv("KERASTUNER_TUNER_ID", "chief")

    threading.Timer(0.5, begin_a_trial).start()
    with pytest.raises(RunError, match="No worker of this search showed a sign of"):
        workers.lead(tuner, signs, 3.0, tuner.give_up)
    (row,) = read_outcomes(pathlib.Path(config.workdir))
    assert row["status"] == "failed" and row["reason"].startswith("worker0 showed no")
    assert tuner.oracle.ongoing_trials == {} and not tuner.oracle.tuner_ids


def test_worker_waits_as_long_as_the_chief_prepares(address):
    prepared = []
    with workers.listening():
        threading.Timer(1.0, lambda: prepared.append(True)).start()
        start = time.monotonic()
        workers.await_chief(lambda: bool(prepared), seconds=0.2)
        assert time.monotonic() - start > 0.5


def test_chief_on_a_port_in_use_is_refused(address):
    with (
        socket.create_server(("127.0.0.1", address)),
        pytest.raises(RequestError, match="cannot listen"),
        workers.listening(),
    ):
        pass


@pytest.mark.slow
def test_weights_space_leaves_out_what_the_teachers_cannot_feed(config, tmp_path):
    """They have neither a Dense layer, and so no features, nor BatchNormalization."""
    for index in range(2):
        image = keras.Input(toys.SHAPE)
        logits = layers.GlobalAveragePooling2D()(layers.Conv2D(4, 3)(image))
        keras.Model(image, logits).save(tmp_path / f"{index}.keras")
    teachers = tuple(str(tmp_path / f"{index}.keras") for index in range(2))
    values = {"teachers": teachers, "search_space": "weights", "student_loss": {}}
    perform = Untrained()
    with pytest.warns(DistillationWarning, match="learns without the feature term"):
        search(config.with_values(values), perform, perform.open)
    rows = rows_of(pathlib.Path(config.workdir))
    assert {row["status"] for row in rows} == {"finished"}
    assert {n for n in rows[0] if "_loss." in n} == {"student_loss.ensemble"}


@pytest.fixture
def start(config, address):
    """`start(name, values)`: a process of a shared search; all are ended."""
    program = (
        "import sys, tensorflow as tf; tf.config.run_functions_eagerly(True);"
        "from cdfkd_tf import cli; sys.exit(cli.main())"
    )
    processes = []

    def run(name, values):
        flags = config.with_values({"action": "search", **values}).changed_flags()
        processes.append(
            subprocess.Popen(
                [sys.executable, "-c", program, *flags],
                cwd=ROOT,
                env={**os.environ, "KERASTUNER_TUNER_ID": name},
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                text=True,
            )
        )
        return processes[-1]

    yield run
    for process in processes:
        process.kill()


@pytest.mark.slow
def test_chief_and_two_workers_share_six_trials(config, start):
    processes = [start(n, {"max_trials": 6}) for n in ("chief", "worker0", "worker1")]
    printed = [process.communicate(timeout=400)[0] for process in processes]
    assert [process.returncode for process in processes] == [0, 0, 0], printed
    finished = [
        [line.split()[1] for line in text.splitlines() if line.startswith("Trial ")]
        for text in printed[1:]
    ]
    assert all(finished), "one worker did all"
    assert sorted([*finished[0], *finished[1]]) == [f"{trial}:" for trial in range(6)]
    assert len(rows_of(pathlib.Path(config.workdir))) == 6


@pytest.mark.slow
def test_search_goes_on_without_a_worker_that_is_killed(config, start):
    values = {"max_trials": 5, "worker_timeout": 15.0, "epochs": 3}
    chief, dying, other = (start(n, values) for n in ("chief", "worker0", "worker1"))
    state = pathlib.Path(config.workdir) / "search/oracle.json"
    while not (state.exists() and "worker0" in state.read_text()):
        assert chief.poll() is None and dying.poll() is None
        time.sleep(0.1)
    dying.kill()
    printed = [process.communicate(timeout=400)[0] for process in (chief, other)]
    assert (chief.returncode, other.returncode) == (0, 0), printed
    rows = rows_of(pathlib.Path(config.workdir))
    failed = [row["reason"] for row in rows if row["status"] == "failed"]
    assert len(rows) == 5 and failed == ["worker0 showed no sign of life for 15 s."]
