"""results.json holds what was measured for this request, and null for the rest."""

import json

import pytest
from cdfkd_tf.results import Results, summary

from cdfkd_tf.config import RunConfig


@pytest.fixture
def results(tmp_path):
    return Results(
        tmp_path / "results.json", RunConfig(dataset="digits"), {"keras": "3"}
    )


def read(results):
    return json.loads(results.file.read_text())


def test_values_merge_and_the_rest_is_null(results):
    results.record("student", {"accuracy": 0.5})
    results.record("student", {"agreement": 0.25})
    student = read(results)["student"]
    assert (student["accuracy"], student["agreement"]) == (0.5, 0.25)
    assert student["parameters"] is None and student["header_accuracy"] is None
    assert (
        read(results)["exports"] == [] and read(results)["seconds"]["distill"] is None
    )


def test_a_step_that_runs_again_blanks_what_depends_on_it(results):
    results.record("student", {"accuracy": 0.5})
    values = dict.fromkeys(("bytes", "accuracy", "agreement", "latency_ms"))
    results.record("exports", [{"format": "saved_model", **values}])
    results.begin("fit_aggregator")
    assert read(results)["exports"] == []
    assert read(results)["student"]["accuracy"] == 0.5
    results.begin("distill")
    assert read(results)["student"]["accuracy"] is None


def test_the_request_is_always_the_present_one(results):
    results.record("student", {"accuracy": 0.5})
    later = Results(results.file, RunConfig(dataset="digits", seed=3), {"keras": "4"})
    later.record("seconds", {"distill": 1.0})
    assert (read(later)["seed"], read(later)["versions"]) == (3, {"keras": "4"})


def test_the_summary_leaves_out_what_was_not_measured(results):
    results.record("teacher_ensemble", {"parameters": 1234, "accuracy": 0.5})
    text = summary(read(results), "runs/x")
    assert "1,234 weights" in text and "50.00%" in text and "runs/x" in text
    assert "student" not in text


def test_without_any_measured_value_the_summary_is_one_line(results):
    results.record("seconds", {"distill": 1.0})
    assert summary(read(results), "runs/x") == "The results so far are in runs/x"
