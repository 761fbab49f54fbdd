"""Snapshots: one file a process, in a folder that all processes of a run share; a new one replaces the old one.

A file is the length of its header (u64, little-endian), the header (JSON), and the bytes of the arrays that it lists.
"""

from __future__ import annotations

import contextlib
import json
import math
import os
import struct
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

SUFFIX = ".live"
_LENGTH = struct.Struct("<Q")


@dataclass(frozen=True)
class Snapshot:
    """The last published state of a process.

    Attributes:
        alive: whether the process still runs.
        published_ns: Unix time of the last sign of life.
    """

    header: Mapping[str, Any]
    arrays: Mapping[str, npt.NDArray[Any]]
    alive: bool
    published_ns: int


def path_of(folder: Path, rank: int) -> Path:
    """The file of this process."""
    return folder / f"rank{rank}-{os.getpid()}{SUFFIX}"


def write(path: Path, header: Mapping[str, Any], arrays: Mapping[str, npt.NDArray[Any]]) -> None:
    """Replace a snapshot. A reader sees the old one or the new one, whole.

    Raises:
        OSError: it can't be written.
    """
    listed = [(name, array.dtype.str, array.shape) for name, array in arrays.items()]
    full = {**header, "pid": os.getpid(), "started": started(os.getpid()), "arrays": listed}
    text = json.dumps(full).encode()
    packed = b"".join((_LENGTH.pack(len(text)), text, *(array.tobytes() for array in arrays.values())))
    part_path = path.with_suffix(".part")
    part_path.write_bytes(packed)
    part_path.replace(path)


def touch(path: Path) -> None:
    """Give a sign of life: nothing has changed."""
    with contextlib.suppress(OSError):
        os.utime(path)


def read(path: Path) -> Snapshot | None:
    """Read a snapshot; None where it is gone, or another program's."""
    try:
        published_ns = path.stat().st_mtime_ns
        data = path.read_bytes()
        (length,) = _LENGTH.unpack_from(data)
        at = _LENGTH.size + length
        header = json.loads(data[_LENGTH.size : at])
        arrays = {}
        for name, code, shape in header["arrays"]:
            array = np.frombuffer(data, np.dtype(code), math.prod(shape), at).reshape(shape)
            arrays[name], at = array, at + array.nbytes
    except (OSError, ValueError, KeyError, TypeError, struct.error):
        return None
    alive = header["started"] is None or started(int(header["pid"])) == header["started"]
    return Snapshot(header, arrays, alive, published_ns)


def read_all(folder: Path) -> list[Snapshot]:
    """All snapshots of a folder, by file name."""
    snapshots = (read(path) for path in sorted(folder.glob(f"*{SUFFIX}")))
    return [snapshot for snapshot in snapshots if snapshot is not None]


def started(pid: int) -> int | None:
    """When a process began, in ticks since the machine did: it tells processes of one id apart. None: it is over."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return None
    after_name = stat.rpartition(")")[2].split()  # the name may hold anything
    return None if after_name[0] in "ZX" else int(after_name[19])
