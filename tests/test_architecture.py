"""The structure stays true: who may import whom."""

import ast
import pathlib

ROOT = pathlib.Path(__file__).parent.parent / "cdfkd_tf"
# From the bottom up; rooms of one line do not import each other.
FLOORS = (
    ("errors",),
    ("limits", "options", "config", "locking"),
    ("runtime",),
    ("workdir",),
    ("results", "data"),
    ("networks",),
    ("teachers",),
    ("distillation", "evaluation"),
    ("report", "export", "assembly"),
    ("tuning", "steps", "pipeline", "assisting", "runs"),
    ("flags", "cli", "tools", "api", "api_search", "__init__"),
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
    passing = {"__init__", "assembly"}  # the latter is about to go
    return {(a, b) for a, b in found if a != b and not passing & {a, b}}


def test_no_import_points_up():
    floor = {name: level for level, names in enumerate(FLOORS) for name in names}
    wrong = [(a, b) for a, b in arrows() if floor[b] > floor[a]]
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
    users = [
        file.name
        for file in ROOT.rglob("*.py")
        if "import flags" in file.read_text() or "from absl" in file.read_text()
    ]
    assert set(users) <= {"cli.py", "flags.py", "import_torch.py", "prepare_data.py"}
