"""Names at which there is no regular file: opening a FIFO waits for its other end, and a device is no file to read."""

from __future__ import annotations

import os
import stat
from pathlib import Path

from nvtxmoe.errors import NvtxmoeError

#: Endings of the files beside a database that SQLite opens.
COMPANIONS = ("-journal", "-wal", "-shm")
_KINDS = (
    (stat.S_ISDIR, "a folder"),
    (stat.S_ISCHR, "a device"),
    (stat.S_ISBLK, "a device"),
    (stat.S_ISFIFO, "a FIFO"),
    (stat.S_ISSOCK, "a socket"),
)


def special_kind(path: Path) -> str | None:
    """Return what is at a name, or where its links lead, if it is no regular file; None if it is, or nothing is there.

    Raises:
        OSError: links lead in a circle, or the parent cannot be searched.
    """
    try:
        mode = path.stat().st_mode
    except FileNotFoundError:
        return None
    if stat.S_ISREG(mode):
        return None
    return next((name for is_kind, name in _KINDS if is_kind(mode)), "a special file")


def refuse_special(path: Path) -> None:
    """Refuse to read what is no regular file.

    Raises:
        NvtxmoeError: a folder, device, FIFO or socket is there, or a link to one.
        OSError: see :func:`special_kind`.
    """
    if (kind := special_kind(path)) is not None:
        raise NvtxmoeError(f"{kind}, where a file would be read", where=path, remedy="Remove or rename it")


def refuse_companions(path: Path) -> None:
    """Refuse names at which SQLite would look for a journal, log or index, and where there is no regular file.

    Raises:
        NvtxmoeError: a FIFO, for one, is there: opening it would wait for ever.
    """
    resolved = Path(os.path.realpath(path))  # Path.resolve() raises RuntimeError where links lead in a circle
    for suffix in COMPANIONS:
        refuse_special(resolved.with_name(resolved.name + suffix))
