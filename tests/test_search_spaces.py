"""What a search varies, read from names and files; how trials are ordered."""

import numpy as np
import pytest

from cdfkd_tf.config import RunConfig
from cdfkd_tf.errors import RequestError
from cdfkd_tf.tuning.space import Range, find_space, read_space
from cdfkd_tf.tuning.summary import summarise
from cdfkd_tf.tuning.tuner import build_oracle, trial_config
from tests.rows import rows


def outcome(objective, test_accuracy=None, epochs=1):
    status = "failed" if objective is None else "finished"
    return {
        "status": status,
        "objective": objective,
        "test_accuracy": test_accuracy,
        "epochs": epochs,
        "values": {},
    }


def test_summary_rank_correlation_is_spearmans():
    pairs = [(0.1, 0.3), (0.2, 0.2), (0.3, 0.6), (0.4, 0.9)]
    summary = summarise(RunConfig(), [outcome(*pair) for pair in pairs])
    ranks = np.array([[1, 2, 3, 4], [2, 1, 3, 4]])
    assert summary.rank_correlation == pytest.approx(np.corrcoef(ranks)[0, 1])


@pytest.mark.slow
def test_summary_has_no_rank_correlation_of_too_few_or_equal_trials():
    for pairs in ([(0.1, 0.3), (0.2, 0.2)], [(0.1, 0.3)] * 4):
        summary = summarise(RunConfig(), [outcome(*pair) for pair in pairs])
        assert summary.rank_correlation is None


def test_summary_puts_longest_trained_first_and_failed_last():
    trials = [outcome(None, epochs=9), outcome(0.9, epochs=3)]
    trials += [outcome(0.1, epochs=9), outcome(0.2, epochs=9)]
    ordered = summarise(RunConfig(), trials)
    assert [o["objective"] for o in ordered.outcomes] == [0.2, 0.1, 0.9, None]
    assert ordered.best["objective"] == 0.2
    assert summarise(RunConfig(), trials[:1]).best is None


def test_space_file_is_read_line_by_line(tmp_path):
    file = tmp_path / "mine.space"
    file.write_text(
        "# a note\nstudent_steps = 2..4\nstudent_learning_rate = 1e-3..0.1 log # a\n"
        "student_width = 0.25 | 0.5\nnesterov = true | false\n"
        "milestones = 16,21 | 12,18\nstudent_loss.feature = 0 | 0.1\n"
        "generator_loss.bn = 0.01..1 log\n"
    )
    assert find_space(RunConfig(search_space=str(file))).fields == {
        "student_steps": Range(2, 4),
        "student_learning_rate": Range(1e-3, 0.1, log=True),
        "student_width": (0.25, 0.5),
        "nesterov": (True, False),
        "milestones": ((16, 21), (12, 18)),
        "student_loss.feature": (0.0, 0.1),
        "generator_loss.bn": Range(0.01, 1.0, log=True),
    }


def test_space_file_with_an_unreadable_line_is_refused(tmp_path):
    file = tmp_path / "mine.space"
    for line in ("student_steps 2..3", "student_steps = 2..3\n" * 2):
        file.write_text(f"nesterov = true | false\n{line}")
        with pytest.raises(RequestError, match=r"line [23]: .*student_steps"):
            find_space(RunConfig(search_space=str(file)))


def test_space_from_python_takes_lists():
    table = {"student_width": [0.25, 1], "milestones": [[3], [4, 5]]}
    fields = read_space(table, RunConfig(), "space").fields
    assert fields == {"student_width": (0.25, 1.0), "milestones": ((3,), (4, 5))}


@pytest.mark.slow
def test_space_knows_the_values_of_the_run_that_it_varies():
    texts = {
        "student_learning_rate": "0.01..0.2 log",
        "generator_loss.bn": "0.01..1 log",  # not given: the method's
        "student_loss.ensemble": "1..10",
        "milestones": "100,200 | 50,80",
        "dtype_policy": "float32 | mixed_bfloat16",
    }
    config = RunConfig(student_loss={"ensemble": 2})
    assert read_space(texts, config, "here").values_of(config) == {
        "student_learning_rate": 0.1,
        "generator_loss.bn": 0.1,
        "student_loss.ensemble": 2,
        "milestones": "100,200",
        "dtype_policy": "float32",
    }
    elsewhere = read_space({"student_learning_rate": "1..2"}, RunConfig(), "here")
    assert elsewhere.values_of(RunConfig()) == {}


def test_space_that_cannot_be_is_refused_by_name():
    for name, text, words in [
        ("student_widht", "1 | 2", "did you mean 'student_width'"),
        ("student_feature_weight", "0 | 1", "student_loss=feature=WEIGHT"),
        ("workdir", "a | b", "cannot be searched"),
        ("export_formats", "tflite_int8 | saved_model", "cannot be searched"),
        ("student_loss", "feature=1 | feature=2", "one term"),
        ("student_width", "0..1", "must be positive"),
        ("student_width", "1..0.5", "not below"),
        ("student_width", "0.1..1 lin", "'lin' is not 'log'"),
        ("student_loss.feature", "0..1 log", "must be positive"),
        ("student_loss.colour", "0..1", "knows header"),
        ("student_steps", "a..b", "whole number"),
        ("student_headers", "a..b", "takes no number"),
        ("aggregator", "mean | median", "attention"),
        ("student_width", "1 |", "a choice is empty"),
    ]:
        with pytest.raises(RequestError, match=name) as refused:
            read_space({name: text}, RunConfig(), "here")
        assert words in str(refused.value)


@rows(
    "method,expected",
    [
        (
            "cdfkd_mfs",
            {
                "student_loss.feature": Range(0.02, 2.0, log=True),
                "student_loss.ensemble": Range(0.5, 50.0, log=True),
                "generator_loss.bn": Range(0.01, 1.0, log=True),
            },
        ),
        # One term alone: its weight is the learning rate's part.
        ("dfed", {"generator_loss.bn": Range(0.01, 1.0, log=True)}),
    ],
)
def test_weights_space_lies_around_the_methods_weights(method, expected):
    config = RunConfig(search_space="weights", method=method)
    assert find_space(config).fields == expected


def test_weights_space_leaves_out_terms_without_weight():
    config = RunConfig(search_space="weights", student_loss={"feature": 0})
    assert "student_loss.feature" not in find_space(config).fields


@pytest.mark.slow
def test_weights_space_of_a_method_with_single_terms_is_refused():
    for method in ("dfad", "kd"):
        with pytest.raises(RequestError, match="one loss term"):
            find_space(RunConfig(search_space="weights", method=method))


@pytest.mark.slow
def test_schedule_and_student_spaces_lie_around_the_run():
    schedule = find_space(RunConfig(search_space="schedule")).fields
    assert schedule["student_learning_rate"] == Range(0.01, 1.0, log=True)
    student = find_space(RunConfig(search_space="student")).fields
    assert student["student_width"] == (0.5, 0.75, 1.0, 1.5)
    assert student["student_headers"] == ("multi_level", "split")
    decided = RunConfig(search_space="student", student="auto", teachers=("a.keras",))
    assert find_space(decided).fields["student_width"] == (0.5, 0.75, 1.0, 1.5)
    of_data = RunConfig(search_space="schedule", method="kd")  # has no generator
    assert set(find_space(of_data).fields) == {"student_learning_rate"}


@rows("tuner", ["random", "bayesian", "hyperband"])
def test_oracle_begins_with_the_run_itself_and_goes_on_elsewhere(tuner, tmp_path):
    config = RunConfig(tuner=tuner, epochs=9)
    space = read_space({"student_loss.ensemble": "1..50 log"}, config, "here")
    oracle = build_oracle(config, space)
    oracle._set_project_dir(tmp_path, "search")
    oracle.verbose = 0
    hp = oracle.get_space()
    space.build(hp)
    oracle.update_space(hp)
    drawn = [oracle.create_trial(f"tuner{i}").hyperparameters for i in range(3)]
    weights = [space.build(hp)["student_loss.ensemble"] for hp in drawn]
    assert weights[0] == 5 and len(set(weights)) == 3
    assert all(1 <= weight <= 50 for weight in weights)


def test_trial_is_the_run_with_its_options_and_no_luxury(tmp_path):
    config = RunConfig(student_loss={"feature": 0}, epochs=7)
    trial = trial_config(config, {"student_loss.ensemble": 2.0}, tmp_path)
    assert trial.student_loss == {"feature": 0, "ensemble": 2}
    assert (trial.action, trial.workdir) == ("distill", str(tmp_path))
    assert (trial.epochs, trial.report, trial.export_formats) == (7, False, ())


@pytest.mark.slow
def test_trial_cannot_vary_the_training_of_given_teachers(tmp_path):
    config = RunConfig(teachers=("a.keras",))
    with pytest.raises(RequestError, match="varies teacher_width, but"):
        trial_config(config, {"teacher_width": 2}, tmp_path)
