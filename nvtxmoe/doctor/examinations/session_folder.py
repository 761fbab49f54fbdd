"""The folder of sessions: whose it is, and the one that a run was told to write into."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

from nvtxmoe.capture.startup.settings import SESSION_DIR
from nvtxmoe.doctor.context import Context
from nvtxmoe.doctor.diagnosis import NOTE, PROBLEM, Finding
from nvtxmoe.doctor.settings import error_text, existing_parent
from nvtxmoe.errors import NvtxmoeError
from nvtxmoe.private_files import refuse_of_others

ORDER = 91
TOPIC = "session folder"


def diagnose(context: Context) -> Iterator[Finding]:
    """Whether sessions can be written where the settings say."""
    mode = context.settings.mode
    if mode in ("nsys", "live"):
        return
    needed = mode in ("moe", "both") or context.under_nsys.encoding is None
    chosen = context.environ.get(SESSION_DIR)
    if chosen:
        yield from chosen_folder(Path(chosen), needed)
    else:
        yield from base_folder(context.settings.output_dir, needed)


def base_folder(base: Path, needed: bool) -> Iterator[Finding]:
    """Whether another user made the base folder of sessions, or a link at its name, first.

    Parameters:
        needed: whether a capture is impossible without it.
    """
    try:
        refuse_of_others(base.absolute())
    except NvtxmoeError as error:
        yield Finding(
            TOPIC, PROBLEM if needed else NOTE, f"nothing would be recorded: {error_text(error)}", error.remedy
        )
    except OSError:  # not there yet; examinations.disk_space tells whether it can be made
        return


def chosen_folder(folder: Path, needed: bool) -> Iterator[Finding]:
    """Whether the folder of NVTXMOE_SESSION_DIR can be written."""
    parent = existing_parent(folder)
    if not parent.is_dir() or not os.access(parent, os.W_OK | os.X_OK):
        yield Finding(
            TOPIC,
            PROBLEM if needed else NOTE,
            f"{SESSION_DIR} is {folder}, which cannot be written ({parent} is not a folder that may be written to)",
            f"unset {SESSION_DIR}, or name a folder that may be written to",
        )
