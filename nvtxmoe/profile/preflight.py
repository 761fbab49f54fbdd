"""What is checked before a run is started: nothing may listen on its port, and its disk must have room."""

from __future__ import annotations

import shutil
import tempfile
from pathlib import Path

from nvtxmoe.errors import NvtxmoeError
from nvtxmoe.profile.server import Server, check_port

#: Free space without which a capture is not worth starting, in bytes.
LEAST_FREE_BYTES = 1 << 30
#: The same for the files of mode moe alone.
LEAST_FREE_DIRECT_BYTES = 1 << 26


def preflight(folder: Path, *, under_nsys: bool, server: Server | None, expected_bytes: int | None) -> None:
    """Check what can be told before a run.

    Parameters:
        folder: where the results go; it need not be there yet.
        under_nsys: whether nsys runs; it writes to the folder for temporary files first.
        server: the server that will be started, None for other commands.
        expected_bytes: the estimate of all files, None where there is none.

    Raises:
        NvtxmoeError: the run would fail.
    """
    check_folder(folder)
    if server is not None:
        check_port(server)
    needed_bytes = max(LEAST_FREE_BYTES if under_nsys else LEAST_FREE_DIRECT_BYTES, expected_bytes or 0)
    check_disk(folder, needed_bytes, "-o")
    if under_nsys:
        check_disk(Path(tempfile.gettempdir()), needed_bytes, "TMPDIR")


def check_folder(folder: Path) -> None:
    """A run gets a folder of its own: reports of an earlier one would be taken for its.

    Raises:
        NvtxmoeError: something is there already.
    """
    if folder.is_dir() and not any(folder.iterdir()):
        return
    if folder.exists():
        raise NvtxmoeError("it is there already, and not an empty folder", where=folder, remedy="Give another with -o")


def check_disk(folder: Path, needed_bytes: int, option: str) -> None:
    """Make sure that a disk has room.

    Parameters:
        folder: any folder on it; its nearest parent that exists counts.
        option: what names another disk.

    Raises:
        NvtxmoeError: there is not enough.
    """
    folder_or_parent = folder.absolute()
    while not folder_or_parent.exists():
        folder_or_parent = folder_or_parent.parent
    free_bytes = shutil.disk_usage(folder_or_parent).free
    if free_bytes < needed_bytes:
        raise NvtxmoeError(
            f"{free_bytes / 1e6:,.0f} MB are free on its disk, a capture needs at least {needed_bytes / 1e6:,.0f} MB",
            where=folder_or_parent,
            remedy=f"Make room, or name a folder on another disk with {option}",
        )
