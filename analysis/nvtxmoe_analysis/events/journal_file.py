"""What the sizes and end of a journal file are."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from nvtxmoe_analysis.events.capture_state import CaptureState


@dataclass(frozen=True)
class JournalFile:
    """One journal, once it is read.

    Attributes:
        pid: the process's id where the file's name has it.
        size_bytes: how much was read.
        truncated: whether it ends inside a block.
        ended: whether the process ended in an orderly way.
        last_words: what it said then.
    """

    path: Path
    pid: int | None
    size_bytes: int
    truncated: bool
    ended: bool
    last_words: CaptureState
