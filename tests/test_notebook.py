"""The notebook's code is the API as it is, and its outputs are there."""

import ast
import json
import pathlib

import cdfkd_tf

FILE = (
    pathlib.Path(__file__).parent.parent / "experiments/own_teachers/from_python.ipynb"
)


def cells():
    notebook = json.loads(FILE.read_text())
    return [cell for cell in notebook["cells"] if cell["cell_type"] == "code"]


def test_notebook_was_executed_without_errors():
    assert all(cell["execution_count"] for cell in cells())
    outputs = [output for cell in cells() for output in cell["outputs"]]
    assert not any(output["output_type"] == "error" for output in outputs)
    assert sum("image/png" in output.get("data", {}) for output in outputs) == 2


def test_notebook_calls_what_exists():
    code = ast.parse("\n".join("".join(cell["source"]) for cell in cells()))
    calls = [node for node in ast.walk(code) if isinstance(node, ast.Call)]
    methods = {
        call.func.attr
        for call in calls
        if isinstance(call.func, ast.Attribute)
        and isinstance(call.func.value, ast.Name)
        and call.func.value.id == "result"
    }
    assert {"evaluate", "fit_aggregator", "export"} <= methods
    assert all(hasattr(cdfkd_tf.Distillation, name) for name in methods - {"generator"})
    (distill,) = [c for c in calls if getattr(c.func, "attr", "") == "distill"]
    options = {keyword.arg for keyword in distill.keywords}
    assert "method" in options  # the outputs show its generator
    assert options - {"verbose"} <= set(cdfkd_tf.RunConfig.__dataclass_fields__)
