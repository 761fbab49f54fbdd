"""Writing one file whole or not at all; checks of what is at its name. Sets of files: ``core.file_set``."""

from __future__ import annotations

import contextlib
import errno
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

from nvtxmoe.errors import NvtxmoeError
from nvtxmoe.special_files import special_kind

#: Begins the hidden names of files and folders that are being written.
STAGE_PREFIX = ".nvtxmoe-"


def size_bytes(path: Path, unknown: int | None = None) -> int:
    """Return the size of a file, or of all files in a folder and its folders.

    Parameters:
        unknown: returned if the size cannot be read. Default: raise.

    Raises:
        OSError: nothing is there, or it cannot be read.
    """
    try:
        if path.is_dir():
            return sum(file.stat().st_size for file in path.rglob("*") if file.is_file())
        return path.stat().st_size
    except OSError:
        if unknown is None:
            raise
        return unknown


def check_folder(folder: Path) -> None:
    """Refuse early a folder of results that cannot be made or written into.

    Raises:
        NvtxmoeError: a parent is not a folder, or is not writable.
    """
    try:
        reach(folder)
    except OSError as error:
        raise cannot_write_results(error, folder) from error


def reach(folder: Path) -> None:
    """Raise OSError if a folder cannot be made or written into, as far as permissions show it."""
    parent = next(path for path in (folder, *folder.absolute().parents) if path.exists())
    if not parent.is_dir():
        raise NotADirectoryError(errno.ENOTDIR, os.strerror(errno.ENOTDIR), parent)
    if not os.access(parent, os.W_OK | os.X_OK):
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), parent)


def check_file(path: Path) -> None:
    """Refuse a name at which there is something other than a regular file or a symbolic link to one.

    Raises:
        NvtxmoeError: a folder, device, FIFO or socket is there, or a link to one.
        OSError: links lead in a circle, or the parent cannot be searched.
    """
    if (kind := special_kind(path)) is not None:
        raise NvtxmoeError(
            f"{kind}, where a file would be written", where=path, remedy="Name another file, or remove what is there"
        )


@contextlib.contextmanager
def whole_file(path: Path) -> Iterator[Path]:
    """Yield a name to write to. What was written there takes the place of ``path`` when the block ends well.

    The name is in a hidden folder beside the target, which goes when the block ends, with everything in it. A symbolic
    link at ``path`` stays: the file to which it leads is replaced.

    Raises:
        NvtxmoeError: something other than a regular file is at ``path``.
        OSError: it cannot be written.
    """
    check_file(path)
    with _staged(path) as (stage, target):
        yield stage
        stage.replace(target)


@contextlib.contextmanager
def whole_folder(path: Path) -> Iterator[Path]:
    """Yield a name at which to make a folder, which gets the name ``path`` when the block ends well.

    Files of a folder that is there already: ``core.file_set``.

    Raises:
        OSError: it cannot be written, or a file or a folder that is not empty is at ``path``.
    """
    with _staged(path) as (stage, target):
        yield stage
        stage.rename(target)


@contextlib.contextmanager
def _staged(path: Path) -> Iterator[tuple[Path, Path]]:
    """Yield a name in a hidden folder beside the file to which ``path`` leads, and that file's own name."""
    target = Path(os.path.realpath(path))
    folder = Path(tempfile.mkdtemp(prefix=STAGE_PREFIX, dir=target.parent))
    try:
        yield folder / "new", target
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def cannot_write(error: Exception, where: Path, what: str, remedy: str) -> NvtxmoeError:
    """Return the error to show if ``what`` cannot be written, with the system's reason."""
    reason = (error.strerror if isinstance(error, OSError) else None) or str(error)
    return NvtxmoeError(f"cannot write {what}: {reason}", where=where, remedy=remedy)


def cannot_write_results(error: Exception, folder: Path) -> NvtxmoeError:
    """Return the error to show if a folder of results cannot be written; it names the system's file, if any."""
    named = error.filename if isinstance(error, OSError) and error.filename else folder
    return cannot_write(error, named, "the results", "Choose another folder with -o, or make room")
