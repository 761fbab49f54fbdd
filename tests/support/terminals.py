"""A pseudo terminal of a given size with a program in it, as a user has it over ssh."""

from __future__ import annotations

import fcntl
import os
import re
import select
import struct
import subprocess
import sys
import termios
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from tests.support.paths import ROOT

#: Longer than any step takes on a busy machine: a limit of hangs, not of speed.
PATIENCE_S = 600.0
#: Makes the terminal the process's own, so that Ctrl-C and changes of size arrive as signals.
CONTROLLING = (
    "import fcntl, os, sys, termios; fcntl.ioctl(0, termios.TIOCSCTTY, 0); os.execv(sys.argv[1], sys.argv[1:])"
)
ESCAPES = re.compile(r"\x1b(\[[0-9;?]*[A-Za-z]|[()][A-Z0-9]|.)")
HOME = "\x1b[H"


class Terminal:
    """The terminal's side of a program."""

    def __init__(self, master: int, slave: int, process: subprocess.Popen[bytes]) -> None:
        self.process = process
        self.raw = ""
        self._master, self._slave = master, slave

    def press(self, keys: str) -> None:
        """Type."""
        os.write(self._master, keys.encode())

    def resize(self, columns: int, lines: int) -> None:
        """Change the size, as a user who drags the window."""
        fcntl.ioctl(self._master, termios.TIOCSWINSZ, struct.pack("HHHH", lines, columns, 0, 0))

    def mode(self) -> list[Any]:
        """The settings of the terminal."""
        return termios.tcgetattr(self._slave)

    def echoes(self) -> bool:
        """Whether what is typed is shown."""
        return bool(self.mode()[3] & termios.ECHO)

    def frame(self) -> str:
        """The lines drawn last."""
        return ESCAPES.sub("", self.raw.rpartition(HOME)[2]).replace("\r", "")

    def until(self, holds: Callable[[str], Any]) -> str:
        """Read until a frame has what is looked for; return it."""
        end = time.monotonic() + PATIENCE_S
        while not holds(self.frame()):
            assert time.monotonic() < end and self._read(1.0), self.raw[-5000:]
        return self.frame()

    def ended(self) -> int:
        """Read to the end; return the exit code."""
        end = time.monotonic() + PATIENCE_S
        while self.process.poll() is None:
            assert time.monotonic() < end, self.raw[-5000:]
            self._read(0.1)
        while select.select([self._master], [], [], 0)[0] and self._read(0.1):
            pass
        return self.process.returncode

    def _read(self, wait_s: float) -> bool:
        """Read what there is; return False when the program has ended without more."""
        if select.select([self._master], [], [], wait_s)[0]:
            self.raw += os.read(self._master, 65536).decode("utf-8", "replace")
            return True
        return self.process.poll() is None


@contextmanager
def terminal(
    *arguments: object, columns: int = 80, lines: int = 24, keys: bool = True, **more: str
) -> Iterator[Terminal]:
    """Run ``nvtxmoe`` in a terminal.

    Parameters:
        keys: whether standard input is the terminal.
        more: environment.
    """
    master, slave = os.openpty()
    base = {
        k: v for k, v in os.environ.items() if k not in ("NO_COLOR", "FORCE_COLOR", "COLORTERM", "COLUMNS", "LINES")
    }
    paths = os.pathsep.join([str(ROOT), base.get("PYTHONPATH", "")])
    env = base | {"TERM": "xterm-256color", "PYTHONPATH": paths, "PYTHONIOENCODING": "utf-8"} | more
    words = [sys.executable, "-m", "nvtxmoe", *map(str, arguments)]
    command = [sys.executable, "-c", CONTROLLING, *words] if keys else words
    stdin = slave if keys else subprocess.DEVNULL
    fcntl.ioctl(master, termios.TIOCSWINSZ, struct.pack("HHHH", lines, columns, 0, 0))
    process = subprocess.Popen(command, stdin=stdin, stdout=slave, stderr=slave, env=env, start_new_session=True)
    try:
        yield Terminal(master, slave, process)
    finally:
        process.kill()
        process.wait()
        os.close(slave)
        os.close(master)
