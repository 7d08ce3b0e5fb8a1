"""The repository's pages, and what they link to, as files of the site."""

import pathlib

from mkdocs.structure.files import File, Files

ROOT = pathlib.Path(__file__).parent.parent
PAGES = ("*.md", "docs/*.md", "experiments/**/*.md", "tests/parity/*.md")
LINKED = ("LICENSE", "cdfkd_tf/**/*.py", "tests/parity/*.py", "experiments/**/*.*")


def on_files(files: Files, config) -> Files:
    """Adds them under their paths in the repository."""
    paths = {path for pattern in (*PAGES, *LINKED) for path in ROOT.glob(pattern)}
    for path in sorted(paths):
        name = path.relative_to(ROOT).as_posix()
        files.append(File.generated(config, name, abs_src_path=str(path)))
    return files
