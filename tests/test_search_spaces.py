"""What a search varies, read from names and files; how well its objective orders."""

import numpy as np
import pytest

from cdfkd_tf.config import RunConfig
from cdfkd_tf.errors import RequestError
from cdfkd_tf.tuning.space import Choices, Range, find_space, read_space
from cdfkd_tf.tuning.summary import summarise


def test_rank_correlation_is_spearmans():
    pairs = [(0.1, 0.3), (0.2, 0.2), (0.3, 0.6), (0.4, 0.9)]
    outcomes = [
        {"status": "finished", "objective": a, "test_accuracy": b, "epochs": 1}
        for a, b in pairs
    ]
    ranks = np.array([[1, 2, 3, 4], [2, 1, 3, 4]])
    expected = np.corrcoef(ranks)[0, 1]
    found = summarise(RunConfig(), outcomes).rank_correlation
    assert found == pytest.approx(expected)


def test_a_space_is_read_line_by_line(tmp_path):
    file = tmp_path / "mine.space"
    file.write_text(
        "# a note\nstudent_rounds = 2..4\nstudent_learning_rate = 1e-3..0.1 log # a\n"
        "student_width = 0.25 | 0.5\nnesterov = true | false\n"
        "milestones = 16,21 | 12,18\n"
    )
    assert find_space(RunConfig(search_space=str(file))).fields == {
        "student_rounds": Range(2, 4),
        "student_learning_rate": Range(1e-3, 0.1, log=True),
        "student_width": Choices((0.25, 0.5)),
        "nesterov": Choices((True, False)),
        "milestones": Choices(((16, 21), (12, 18))),
    }


def test_a_space_knows_the_run_that_it_varies():
    """So that a search can begin with it."""
    texts = {
        "student_learning_rate": "0.01..0.2 log",
        "generator_bn_weight": "0.01..1 log",  # not given: the method's
        "milestones": "100,200 | 50,80",
        "dtype_policy": "float32 | mixed_bfloat16",
    }
    assert read_space(texts, RunConfig(), "here").values_of(RunConfig()) == {
        "student_learning_rate": 0.1,
        "generator_bn_weight": 0.1,
        "milestones": "100,200",
        "dtype_policy": "float32",
    }
    elsewhere = read_space({"student_learning_rate": "1..2"}, RunConfig(), "here")
    assert elsewhere.values_of(RunConfig()) == {}


@pytest.mark.parametrize(
    "name,text,words",
    [
        ("student_widht", "1 | 2", "cannot be searched"),
        ("workdir", "a | b", "cannot be searched"),
        ("export_formats", "tflite_int8 | saved_model", "cannot be searched"),
        ("student_width", "0..1", "must be positive"),
        ("student_width", "1..0.5", "not below"),
        ("student_width", "0.1..1 lin", "'lin' is not 'log'"),
        ("student_feature_weight", "0..1 log", "must be positive"),
        ("student_rounds", "a..b", "whole number"),
        ("student_headers", "a..b", "takes no number"),
        ("student_headers", "single | twofold", "multi_level"),
        ("student_width", "1 |", "a choice is empty"),
    ],
)
def test_a_wrong_space_is_refused_by_name(name, text, words):
    with pytest.raises(RequestError, match=name) as refused:
        read_space({name: text}, RunConfig(), "here")
    assert words in str(refused.value)


def test_named_spaces_lie_around_the_methods_values():
    weights = find_space(RunConfig(search_space="weights")).fields
    assert weights == {
        "student_feature_weight": Range(0.02, 2.0, log=True),
        "student_ensemble_weight": Range(0.5, 50.0, log=True),
        "generator_bn_weight": Range(0.01, 1.0, log=True),
    }
    schedule = find_space(RunConfig(search_space="schedule")).fields
    assert schedule["student_learning_rate"] == Range(0.01, 1.0, log=True)
    student = find_space(RunConfig(search_space="student")).fields
    assert student["student_headers"] == Choices(("multi_level", "split"))
