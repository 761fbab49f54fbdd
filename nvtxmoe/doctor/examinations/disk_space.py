"""Room on the disk, where a capture would write."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from pathlib import Path

from nvtxmoe.doctor.bytes_text import human
from nvtxmoe.doctor.context import Context
from nvtxmoe.doctor.diagnosis import NOTE, OK, PROBLEM, Finding
from nvtxmoe.doctor.settings import existing_parent

ORDER = 90

#: Where `nvtxmoe profile` puts its results, from where it is started.
PROFILE_FOLDER = Path("profiling_results")
#: Less room than this is said even without an estimate.
LITTLE_BYTES = 1 << 30


def diagnose(context: Context) -> Iterator[Finding]:
    """The folder of sessions, and the one of `nvtxmoe profile`, each where it would be used."""
    settings, under = context.settings, context.under_nsys

    def needed_bytes(sink: str) -> int:
        return 0 if context.estimate is None else context.estimate.disk((sink,), context.encoding)[0]

    direct = settings.mode in ("moe", "both") or under.encoding is None
    if settings.mode == "live":  # nothing is written
        return
    if settings.mode != "nsys":
        yield from disk(settings.output_dir, direct, needed_bytes("moe"))
    if settings.mode != "moe" and under.encoding is not None:
        yield from disk(PROFILE_FOLDER.absolute(), False, needed_bytes("nsys"))


def disk(folder: Path, needed: bool, wanted_bytes: int) -> Iterator[Finding]:
    """Whether the output folder can be written, and has room.

    Parameters:
        folder: it need not be there yet.
        needed: whether a capture is impossible without it.
        wanted_bytes: of the estimate; 0 where there is none.
    """
    parent = existing_parent(folder)
    if not parent.is_dir() or not os.access(parent, os.W_OK | os.X_OK):
        yield Finding(
            "disk",
            PROBLEM if needed else NOTE,
            f"{folder} cannot be written ({parent} is not a folder that may be written to)",
            "Set NVTXMOE_OUTPUT_DIR to one that may",
        )
        return
    free = shutil.disk_usage(parent).free
    details = {"free_bytes": free, "wanted_bytes": wanted_bytes}
    if free < max(wanted_bytes, LITTLE_BYTES):
        wants = f", the estimate wants {human(wanted_bytes)}" if wanted_bytes else ""
        yield Finding(
            "disk", NOTE, f"{human(free)} free in {folder}{wants}", "Make room, or capture fewer steps", details
        )
    else:
        yield Finding("disk", OK, f"{human(free)} free in {folder}", None, details)
