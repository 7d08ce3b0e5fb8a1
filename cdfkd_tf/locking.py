"""One process per workdir: a lock that names its holder, and knows the dead."""

import contextlib
import json
import os
import pathlib
import socket
from collections.abc import Iterator

from cdfkd_tf.errors import RequestError

NAME = ".lock"


@contextlib.contextmanager
def only_one(workdir: pathlib.Path) -> Iterator[None]:
    """Holds the workdir's lock while the block runs.

    A lock whose process is gone is taken over. From another host that cannot be seen:
    the message says which file to remove.

    Args:
        workdir: created if missing.

    Raises:
        RequestError: if another process works there.
    """
    workdir.mkdir(parents=True, exist_ok=True)
    file = workdir / NAME
    pid = os.getpid()
    mine = {"pid": pid, "host": socket.gethostname(), "started": _start_of(pid)}
    _take(file, mine)
    try:
        yield
    finally:
        file.unlink(missing_ok=True)


def _take(file: pathlib.Path, mine: dict) -> None:
    # Written aside and linked: the lock appears whole, and for one process only.
    aside = file.with_name(f"{NAME}.{mine['host']}.{mine['pid']}")
    aside.write_text(json.dumps(mine))
    try:
        for _ in range(2):
            try:
                os.link(aside, file)
                return
            except FileExistsError:
                holder = _holder(file)
                if holder and _is_alive(holder, mine):
                    raise RequestError(
                        f"{file.parent} is in use by process {holder['pid']} on "
                        f"{holder['host']}. Wait for it, give another --workdir, or "
                        f"remove {file} if that process is gone."
                    ) from None
                file.unlink(missing_ok=True)
        raise RequestError(
            f"{file.parent} was taken by another process at the same moment. Try again."
        )
    finally:
        aside.unlink(missing_ok=True)


def _holder(file: pathlib.Path) -> dict | None:
    try:
        holder = json.loads(file.read_text())
        return holder if {"pid", "host"} <= set(holder) else None
    except (OSError, ValueError):
        return None


def _start_of(pid: int) -> str | None:
    """When a process started, in the kernel's ticks; None where that is not told."""
    try:
        return pathlib.Path(f"/proc/{pid}/stat").read_text().rsplit(")")[-1].split()[19]
    except (OSError, IndexError):
        return None


def _is_alive(holder: dict, mine: dict) -> bool:
    """Whether the holder may still run; on another host it may."""
    if holder["host"] != mine["host"]:
        return True
    if holder.get("started") != _start_of(holder["pid"]):
        return False  # the number was given to another process since
    try:
        os.kill(holder["pid"], 0)
    except ProcessLookupError:
        return False
    except PermissionError:  # it runs, as somebody else
        return True
    return True
