"""Files that are whole or not there."""

import os
import pathlib
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def replacing(path: pathlib.Path) -> Iterator[pathlib.Path]:
    """Yields another path, in the same folder, that becomes `path` at the end.

    What has its final name is complete: a run that breaks off, a full disk or a
    machine that is taken away leaves the old file.

    Args:
        path: the file to write; its folder is made.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}")  # same ending: writers go by it
    try:
        yield temporary
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    synced(temporary)
    os.replace(temporary, path)


def synced(path: pathlib.Path) -> None:
    """Waits until the bytes of a file are on the disk; leaves folders alone."""
    if path.is_file():
        with path.open("rb") as file:
            os.fsync(file.fileno())
