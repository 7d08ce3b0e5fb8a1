"""The picture of the layers stays true."""

import ast
import pathlib

import pytest

ROOT = pathlib.Path(__file__).parent.parent
FILES = sorted((ROOT / "cdfkd_tf").rglob("*.py"))
LAYERS = (
    (
        "errors",
        "limits",
        "options",
        "config",
        "registry",
        "quiet",
        "files",
        "locking",
        "cluster",
        "losses",
        "kernels",
        "saved_models",
    ),
    ("data", "models"),
    ("methods", "training"),
    (
        "computing",
        "workdir",
        "results",
        "evaluation",
        "export",
        "teaching",
        "assembly",
        "engine",
        "distillation",
        "report",
        "prediction",
        "steps",
        "pipeline",
        "assisting",
        "searching",
        "runs",
    ),
    ("flags", "cli", "tools", "api", "api_search"),
)


def name_of(file):
    return file.relative_to(ROOT / "cdfkd_tf").parts[0].removesuffix(".py")


def imports_of(file):
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.ImportFrom) and node.module:
            for alias in node.names:
                yield f"{node.module}.{alias.name}"
        elif isinstance(node, ast.Import):
            for alias in node.names:
                yield alias.name


def level_of(name):
    return next((i for i, layer in enumerate(LAYERS) if name in layer), None)


@pytest.mark.parametrize("file", FILES, ids=lambda file: str(file.relative_to(ROOT)))
def test_imports_point_down(file):
    name = name_of(file)
    if name == "__init__":
        return
    assert level_of(name) is not None, f"{name} has no layer"
    for target in imports_of(file):
        parts = target.split(".")
        if parts[0] != "cdfkd_tf" or len(parts) < 2:
            continue
        if level_of(parts[1]) is not None:
            assert level_of(parts[1]) <= level_of(name), f"{file} imports {target}"
        shared = target.startswith("cdfkd_tf.data.specs.")  # what images look like
        if {name, parts[1]} == {"data", "models"} and not shared:
            raise AssertionError(f"{file} imports {target}: parts do not meet")


@pytest.mark.parametrize("file", FILES, ids=lambda file: str(file.relative_to(ROOT)))
def test_only_the_door_knows_flags(file):
    uses = any(target.startswith("absl") for target in imports_of(file))
    assert not uses or level_of(name_of(file)) == len(LAYERS) - 1


def test_no_file_is_longer_than_300_lines():
    files = FILES + sorted((ROOT / "tests").rglob("*.py"))
    lengths = {str(f.relative_to(ROOT)): len(f.read_text().splitlines()) for f in files}
    assert {name: n for name, n in lengths.items() if n > 300} == {}
