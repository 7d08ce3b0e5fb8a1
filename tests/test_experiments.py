"""Scripts of experiments/ ask for options that there are, and count rightly."""

import argparse
import importlib
import pathlib

import numpy as np

from cdfkd_tf.config import RunConfig
from cdfkd_tf.networks.aggregators import AGGREGATORS
from experiments.repeat import table
from tests.rows import rows
from tests.toys import parse

ROOT = pathlib.Path(__file__).parent.parent / "experiments"


def script(name, monkeypatch):
    """A script as a module; what it does to the environment is undone."""
    path = ROOT / name
    monkeypatch.syspath_prepend(str(path.parent))
    for variable in ("TF_NUM_INTRAOP_THREADS", "TF_NUM_INTEROP_THREADS"):
        monkeypatch.setenv(variable, "")
    spec = importlib.util.spec_from_file_location(path.stem, path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


SCRIPTS = sorted(
    str(path.relative_to(ROOT))
    for path in ROOT.rglob("*.py")
    if "import torch" not in path.read_text()
)


@rows("name", SCRIPTS)
def test_scripts_import_what_there_is(name, monkeypatch):
    assert script(name, monkeypatch).__doc__


def test_rows_of_the_comparison_are_requests(monkeypatch):
    compare = script("digits/compare.py", monkeypatch)
    for count, flags in compare.ROWS.values():
        config = parse(
            f"--flagfile={compare.FLAGFILE}", *flags, f"--num_teachers={count}"
        )
        assert isinstance(config, RunConfig)
    assert {*compare.AGGREGATORS.values()} <= {*AGGREGATORS}


def test_rows_of_different_teachers_are_requests(monkeypatch, tmp_path):
    benchmark = script("different_teachers/benchmark.py", monkeypatch)
    options = argparse.Namespace(
        dataset="mnist_5k", data_dir="", split="test", folder=tmp_path, flags=[]
    )
    for name in ("0.1", "2x5"):
        case = benchmark.Case(name, 0, options)
        for row in benchmark.STUDENTS:
            assert case.config(row).dataset == "mnist_5k"
    kinds = {kind for kind, _ in benchmark.LABELS.values()}
    assert kinds <= {*AGGREGATORS, "best"}


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
