"""The structure stays true: who may import whom."""

import ast
import pathlib
import subprocess
import sys

ROOT = pathlib.Path(__file__).parent.parent / "cdfkd_tf"
# From the bottom up; rooms of one line do not import each other.
FLOORS = (
    ("errors",),
    ("recipes", "runtime"),
    ("config",),
    ("workdir", "data", "imported"),
    ("networks", "report"),
    ("teachers",),
    ("distillation", "evaluation", "export"),
    ("tuning", "tools"),
    ("pipeline",),
    ("cli", "api", "__init__"),
    ("__main__",),
)


def room_of(parts):
    return parts[0].removesuffix(".py")


def arrows():
    """Pairs of rooms: the first imports the second."""
    found = set()
    for file in ROOT.rglob("*.py"):
        here = room_of(file.relative_to(ROOT).parts)
        for node in ast.walk(ast.parse(file.read_text())):
            targets = []
            if isinstance(node, ast.ImportFrom) and node.module:
                targets = [f"{node.module}.{alias.name}" for alias in node.names]
            elif isinstance(node, ast.Import):
                targets = [alias.name for alias in node.names]
            for target in targets:
                parts = target.split(".")
                if parts[0] == "cdfkd_tf" and len(parts) > 1:
                    inside = (ROOT / parts[1]).is_dir()
                    inside = inside or (ROOT / f"{parts[1]}.py").is_file()
                    found.add((here, parts[1] if inside else "__init__"))
    return {(a, b) for a, b in found if a != b and "__init__" not in (a, b)}


def test_no_import_points_up():
    floor = {name: level for level, names in enumerate(FLOORS) for name in names}
    wrong = [(a, b) for a, b in arrows() if floor[b] >= floor[a]]
    assert wrong == []


def test_rooms_have_no_cycle():
    below = {}
    for a, b in arrows():
        below.setdefault(a, set()).add(b)
    while free := [a for a in below if not below[a] & set(below)]:
        for a in free:
            del below[a]
    assert below == {}


def test_only_the_command_line_knows_flags():
    users = [f.name for f in ROOT.rglob("*.py") if "absl" in f.read_text()]
    assert set(users) == {"cli.py", "silence_stderr.py"}  # the latter quiets its log


def test_tables_that_options_name_need_no_tensorflow():
    program = (
        "import sys, cdfkd_tf.config as c; "
        "[c.choices_of(f) for f in c.FIELDS.values()]; "
        "print([m for m in ('tensorflow', 'keras') if m in sys.modules])"
    )
    command = [sys.executable, "-c", program]
    loaded = subprocess.run(command, check=True, cwd=ROOT.parent, stdout=-1, text=True)
    assert loaded.stdout == "[]\n"
