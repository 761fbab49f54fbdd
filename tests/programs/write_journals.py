"""Writes the run of emit_words.py as journals of direct mode, one a rank, where NVTXMOE_SESSION_DIR says.

    NVTXMOE_SESSION_DIR=session python tests/programs/write_journals.py [seconds]

With seconds, a process that is left behind does it, that much later.
"""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[2]))

from nvtxmoe.formats.journal import RANKS, SUFFIX, JournalWriter, record
from tests.programs import emit_words


def write(session: Path) -> None:
    for rank in range(emit_words.RANKS):
        writer = JournalWriter(session / RANKS / f"rank{rank}-{os.getpid()}{SUFFIX}")
        for event, payload in [*emit_words.payloads(rank), ("end", b"{}")]:
            writer.append(record(event, time.time_ns(), payload))
        writer.close()


if __name__ == "__main__":
    if len(sys.argv) > 1:
        subprocess.Popen(["sh", "-c", f"sleep {sys.argv[1]}; exec '{sys.executable}' '{__file__}'"])
    else:
        write(Path(os.environ["NVTXMOE_SESSION_DIR"]))
