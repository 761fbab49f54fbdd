"""Running `nvtxmoe profile` in a process of its own, so that it can be interrupted, and looking at what it left."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

from tests.support.cli import Ran
from tests.support.paths import ROOT

PROGRAMS = ROOT / "tests" / "programs"
SERVER = PROGRAMS / "serve_stand_in.py"
PATIENCE_S = 600.0


def environment(**more: str) -> dict[str, str]:
    """This process's, without settings of ours, and with the tests on the path."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith("NVTXMOE_")}
    path = os.pathsep.join(filter(None, (str(ROOT), os.environ.get("PYTHONPATH"))))
    return {**kept, "PYTHONPATH": path, **more}


def free_port() -> int:
    """A port that nothing listens on."""
    with closing(socket.create_server(("127.0.0.1", 0))) as probe:
        return int(probe.getsockname()[1])


@dataclass
class Profile:
    """`nvtxmoe profile` running, in a process group of its own as a shell starts it."""

    process: subprocess.Popen[str]
    folder: Path

    @property
    def results(self) -> Path:
        return self.folder / "moe_expert_tracking"

    def wait_for(self, what: Callable[[], bool]) -> None:
        """Wait until it is so, while the process runs."""
        deadline = time.monotonic() + PATIENCE_S
        while not what():
            assert self.process.poll() is None, f"profile ended before its time: {self.finish()}"
            assert time.monotonic() < deadline, "waited in vain"
            time.sleep(0.05)

    def interrupt(self) -> None:
        """What Ctrl-C on a terminal does: SIGINT to the whole foreground process group."""
        os.killpg(self.process.pid, signal.SIGINT)

    def finish(self) -> Ran:
        """Wait for its end."""
        out, err = self.process.communicate(timeout=PATIENCE_S)
        return Ran(self.process.returncode, out, err)


def start(folder: Path, *arguments: object, nsys: Path | None = None) -> Profile:
    """Start `nvtxmoe profile -o FOLDER ...`."""
    named = {} if nsys is None else {"NVTXMOE_NSYS": str(nsys)}
    command = [sys.executable, "-m", "nvtxmoe", "profile", "-o", str(folder), *map(str, arguments)]
    process = subprocess.Popen(
        command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        env=environment(**named), start_new_session=True,
    )  # fmt: skip
    return Profile(process, folder)


def profile(folder: Path, *arguments: object, nsys: Path | None = None) -> Ran:
    """Run `nvtxmoe profile -o FOLDER ...` to its end."""
    return start(folder, *arguments, nsys=nsys).finish()


def has_ended(pid: int) -> bool:
    """Whether no process of that number runs."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] in "ZX"
    except OSError:
        return True
