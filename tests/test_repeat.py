"""The table over seeds is mean and sample deviation of what was measured."""

import numpy as np

from experiments.repeat import table


def result(accuracy, int8):
    return {
        "teachers": [{"accuracy": 1.0}, {"accuracy": 0.5}],
        "teacher_ensemble": {"accuracy": 0.9, "parameters": 10},
        "student": {"accuracy": accuracy, "parameters": 5, "agreement": None},
        "aggregator": {"kind": "mean", "accuracy": accuracy},
        "exports": [
            {"format": "tflite_int8", "accuracy": int8, "agreement": 1.0}
            | {"bytes": 7, "latency_ms": 0.1}
        ],
        "seconds": {"distill": 3.0},
    }


def test_table_rows_are_mean_and_deviation():
    accuracies, int8 = [0.9, 0.8, 1.0], [0.7, 0.7, 0.4]
    rows = table([result(*pair) for pair in zip(accuracies, int8)])
    rows = {row["name"]: row for row in rows}
    student = rows["student accuracy, mean of headers"]
    np.testing.assert_allclose(student["mean"], np.mean(accuracies))
    np.testing.assert_allclose(student["deviation"], np.std(accuracies, ddof=1))
    assert rows["tflite_int8 accuracy"]["values"] == int8
    np.testing.assert_allclose(rows["teacher accuracy, mean of them"]["mean"], 0.75)
    assert "student agreement with ensemble" not in rows  # not measured
