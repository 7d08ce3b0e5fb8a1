"""The flagfiles that come with the package, by name: `--recipe=digits/quickstart`.

In the repository they are `experiments/`; a wheel has that folder inside the package
(setup.py).
"""

import difflib
import itertools
import pathlib
import re

from cdfkd_tf.errors import RequestError

_PACKAGE = pathlib.Path(__file__).parent
_ROOT = _PACKAGE if (_PACKAGE / "experiments").is_dir() else _PACKAGE.parent
_FOLDER = _ROOT / "experiments"
_SUFFIXES = (".flags", ".space")


def recipes() -> dict[str, pathlib.Path]:
    """Name -> flagfile of each whole run; what several runs share is none."""
    files = {
        file.relative_to(_FOLDER).with_suffix("").as_posix(): file
        for file in sorted(_FOLDER.rglob("*.flags"))
    }
    return {name: file for name, file in files.items() if file.stem != "base"}


def find_recipe(name: str) -> pathlib.Path:
    """The flagfile of a name, or of the end of a single one: `quickstart`.

    Raises:
        RequestError: none, or several; the message gives the nearest names.
    """
    known = recipes()
    name = name.removesuffix(".flags")
    ends = [full for full in known if full == name or full.endswith(f"/{name}")]
    if name in known or len(ends) == 1:
        return known[name if name in known else ends[0]]
    near = ends or difflib.get_close_matches(name, known, 3)
    hint = f"did you mean {' or '.join(near[:5])}? " if near else ""
    raise RequestError(f"There is no recipe {name!r}; {hint}See --recipe=list.")


def recipe_page() -> str:
    """What `--recipe=list` prints: each name and what its file says first."""
    known = recipes()
    width = max(map(len, known))
    return "\n".join(f"{n:{width}}  {_sentence(file)}" for n, file in known.items())


def _sentence(file: pathlib.Path) -> str:
    """The first of the comment that a flagfile begins with."""
    lines = file.read_text("utf-8").splitlines()
    comment = itertools.takewhile(lambda line: line.startswith("#"), lines)
    text = " ".join(line.lstrip("# ") for line in comment)
    return re.split(r"(?<=[.?!]) (?=[A-Z])", text)[0]


def shipped(path: str) -> str:
    """A path as it is; one of `experiments/` that is not here, as the package has it.

    So flagfiles that name each other, and commands of the documents, hold anywhere.
    """
    given = pathlib.Path(path)
    ours = given.parts[:1] == (_FOLDER.name,) and given.suffix in _SUFFIXES
    if ours and not given.exists() and (_ROOT / given).is_file():
        return str(_ROOT / given)
    return path
