"""Files and folders of results: their size, and whether they can be written."""

from __future__ import annotations

import errno
import os
from pathlib import Path

from nvtxmoe.errors import NvtxmoeError


def size_bytes(path: Path) -> int:
    """Size of a file, or of the files of a folder."""
    return sum(f.stat().st_size for f in path.iterdir() if f.is_file()) if path.is_dir() else path.stat().st_size


def check_folder(folder: Path) -> None:
    """Refuse early what :func:`write_set` could not make or write into.

    Raises:
        NvtxmoeError: something on the way is no folder, or not writable.
    """
    try:
        reach(folder)
    except OSError as error:
        raise _cannot_write(error, folder) from error


def reach(folder: Path) -> None:
    """Raise OSError where a folder can't be made, or nothing be put into it, as far as that can be told."""
    there = next(path for path in (folder, *folder.absolute().parents) if path.exists())
    if not there.is_dir():
        raise NotADirectoryError(errno.ENOTDIR, os.strerror(errno.ENOTDIR), there)
    if not os.access(there, os.W_OK | os.X_OK):
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), there)


def _cannot_write(error: Exception, folder: Path) -> NvtxmoeError:
    reason = (error.strerror if isinstance(error, OSError) else None) or str(error)
    where = error.filename if isinstance(error, OSError) and error.filename else folder
    remedy = "Choose another folder with -o, or make room"
    return NvtxmoeError(f"cannot write the results: {reason}", where=where, remedy=remedy)
