"""Folders and files that only this user can read, and whose names nobody else has taken first."""

from __future__ import annotations

import os
import stat
from pathlib import Path

from nvtxmoe.errors import NvtxmoeError

FOLDER_MODE, FILE_MODE = 0o700, 0o600
_OTHERS_WRITE = stat.S_IWGRP | stat.S_IWOTH
_ROOT = 0


def make_folder(folder: Path) -> None:
    """Make a folder and its parents, those that are not there, each with FOLDER_MODE whatever the mask is.

    Raises:
        OSError: it cannot be made, or a file is there.
    """
    for path in (*reversed(folder.parents), folder):
        if not path.is_dir():
            path.mkdir(mode=FOLDER_MODE, exist_ok=True)


def make_base(folder: Path) -> None:
    """Make a folder for sessions, or check one that is there.

    Where others can write into the parent, as they can into /tmp, somebody else may have made a folder or a link of
    that name first. It must then belong to this user or to root, and this user's own loses the write permission of
    others. Elsewhere whoever named the folder has chosen it.

    Raises:
        NvtxmoeError: the folder, or the link at its name, belongs to another user.
        OSError: it cannot be made, or a file is there.
    """
    make_folder(folder)
    if not _others_could_take(folder):
        return
    refuse_of_others(folder)
    mode = folder.stat().st_mode
    if folder.stat().st_uid == os.geteuid() and mode & _OTHERS_WRITE and not mode & stat.S_ISVTX:
        folder.chmod(stat.S_IMODE(mode) & ~_OTHERS_WRITE)


def refuse_of_others(folder: Path) -> None:
    """Check who made a folder, and the link at its name, where others can write into the parent.

    Raises:
        NvtxmoeError: another user did, neither this one nor root.
        OSError: there is no such folder.
    """
    if not _others_could_take(folder):
        return
    for status in (folder.lstat(), folder.stat()):
        if status.st_uid not in {os.geteuid(), _ROOT}:
            what = f"belongs to another user (uid {status.st_uid}), who could read or replace what is recorded there"
            raise NvtxmoeError(what, where=folder, remedy="Name another folder with NVTXMOE_OUTPUT_DIR")


def _others_could_take(folder: Path) -> bool:
    return bool(folder.parent.stat().st_mode & stat.S_IWOTH)


def open_new(path: Path, flags: int) -> int:
    """Open a file that must not be there yet, with FILE_MODE; a link at its name is not followed.

    Parameters:
        flags: of ``os.open``, further ones.

    Raises:
        FileExistsError: something is there.
        OSError: it cannot be made.
    """
    return os.open(path, os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC | flags, FILE_MODE)
