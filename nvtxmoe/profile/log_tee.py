"""What the command prints: kept in a file, shown as it comes, and its last lines when it failed."""

from __future__ import annotations

import sys
import threading
from pathlib import Path
from types import TracebackType

_POLL_S = 0.1
_TAIL_BYTES = 16384
#: Lines shown of a command that failed.
LAST_LINES = 20


class Echo:
    """Shows on standard output what is appended to a file, until it is left.

    The command writes to the file itself, not to a pipe of ours: it goes on whatever happens to this process.
    """

    def __init__(self, log: Path, show: bool) -> None:
        self._log = log
        self._done = threading.Event()
        self._thread = threading.Thread(target=self._follow, daemon=True) if show else None

    def __enter__(self) -> Echo:
        if self._thread:
            self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._done.set()
        if self._thread:
            self._thread.join()

    def _follow(self) -> None:
        with self._log.open("rb") as file:
            while True:
                last = self._done.is_set()
                text = file.read()
                if text:
                    sys.stdout.write(text.decode("utf-8", "replace"))
                    sys.stdout.flush()
                if last:
                    return
                self._done.wait(_POLL_S)


def last_lines(log: Path, max_lines: int = LAST_LINES) -> list[str]:
    """The last lines of a file, without the progress that is overwritten on a terminal."""
    try:
        with log.open("rb") as file:
            file.seek(max(0, file.seek(0, 2) - _TAIL_BYTES))
            text = file.read().decode("utf-8", "replace")
    except OSError:
        return []
    lines = [line.rpartition("\r")[2].rstrip() for line in text.split("\n")]
    return [line for line in lines if line][-max_lines:]
