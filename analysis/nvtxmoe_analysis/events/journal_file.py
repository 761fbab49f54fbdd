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
        batches: number of batches that its end record contains, idle ones included; null without it.
        idle_batches: number of idle ones among them; null where the version that recorded did not count them.
    """

    path: Path
    pid: int | None
    size_bytes: int
    truncated: bool
    ended: bool
    last_words: CaptureState
    batches: int | None = None
    idle_batches: int | None = None
