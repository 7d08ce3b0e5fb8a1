"""The notebooks' code is the API as it is, and their outputs are there."""

import ast
import json
import pathlib

import cdfkd_tf
from tests.rows import rows

ROOT = pathlib.Path(__file__).parent.parent / "experiments"
FILES = {  # and their pictures
    "own_teachers/from_python.ipynb": 2,
    "different_teachers/from_python.ipynb": 3,
}
NETWORKS = {"generator", "predictor"}  # models are called, too


def cells(name):
    notebook = json.loads((ROOT / name).read_text())
    return [cell for cell in notebook["cells"] if cell["cell_type"] == "code"]


def test_notebooks_are_tested():
    assert {file.relative_to(ROOT).as_posix() for file in ROOT.rglob("*.ipynb")} == {
        *FILES
    }


@rows("name, pictures", FILES.items())
def test_notebook_was_executed_without_errors(name, pictures):
    assert all(cell["execution_count"] for cell in cells(name))
    outputs = [output for cell in cells(name) for output in cell["outputs"]]
    assert not any(output["output_type"] == "error" for output in outputs)
    assert sum("image/png" in output.get("data", {}) for output in outputs) == pictures


@rows("name", FILES)
def test_notebook_calls_what_exists(name):
    code = ast.parse("\n".join("".join(cell["source"]) for cell in cells(name)))
    calls = [node for node in ast.walk(code) if isinstance(node, ast.Call)]
    methods = {
        call.func.attr
        for call in calls
        if isinstance(call.func, ast.Attribute)
        and isinstance(call.func.value, ast.Name)
        and call.func.value.id == "result"
    }
    assert {"evaluate", "fit_aggregator"} <= methods
    assert all(hasattr(cdfkd_tf.Distillation, name) for name in methods - NETWORKS)
    (distill,) = [c for c in calls if getattr(c.func, "attr", "") == "distill"]
    options = {keyword.arg for keyword in distill.keywords}
    # Outputs show its generator.
    assert "method" in options or "generator" not in methods
    assert options - {"verbose"} <= set(cdfkd_tf.RunConfig.__dataclass_fields__)
