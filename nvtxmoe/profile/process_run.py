"""A command running, under nsys or not, and its end: such that nothing of the trace is lost.

What a process recorded reaches the report when the process ends by itself. So the command is asked to end (SIGINT to
its main process alone, which ends its children itself), and everything harder comes only when it does not obey.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path

from nvtxmoe.profile.process_tree import Process, application, launched, main_process, send

_POLL_S = 0.2
#: Patience after a request that is no longer polite.
HARD_TIMEOUT_S = 10.0


class Run:
    """One run of a command.

    Parameters:
        command: what to start: `nsys profile ... COMMAND`, or the command itself.
        environment: its environment.
        log: file that gets its output.
        nsys: the nsys that it runs under, None without.
        session: nsys's name of the run.
        show_message: called with what happens, for people.
        pressed: how many times the user asked to end so far; each further time hurries :meth:`end` on.
    """

    def __init__(
        self,
        command: Sequence[str],
        environment: Mapping[str, str],
        log: Path,
        *,
        nsys: Path | None,
        session: str,
        show_message: Callable[[str], None],
        pressed: Callable[[], int],
    ) -> None:
        self._nsys, self._session = nsys, session
        self._log, self._show_message, self._pressed = log, show_message, pressed
        self._sessions: set[int] = set()
        self._first: Process | None = None
        #: Whether it had to be ended by force.
        self.forced = False
        with log.open("ab") as output:
            self._process = subprocess.Popen(
                list(command),
                env=dict(environment),
                # A terminal is ours: a background session may not read from it.
                stdin=subprocess.DEVNULL if sys.stdin is None or sys.stdin.isatty() else None,
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,  # Ctrl-C on the terminal must not reach nsys and every process of the engine
            )

    def ended(self) -> bool:
        """Whether it has ended, nsys's report written."""
        if self._first is None and self._nsys is None:
            self._first = next(iter(self._running()), None)
        elif self._first is None:
            self._first = launched(self._process.pid)
        return self._process.poll() is not None

    @property
    def code(self) -> int:
        """Its exit code once it has ended, as a shell has it: 128 + signal when a signal ended it."""
        code = self._process.wait()
        return 128 - code if code < 0 else code

    def wait(self) -> None:
        """Wait until it ends by itself."""
        while not self.ended():
            time.sleep(_POLL_S)

    def settle(self, timeout_s: float) -> None:
        """After the command has ended: wait for children that it left behind, then end them.

        Under nsys there are none: nsys waits for them.
        """
        self._sessions.add(self._process.pid)
        if not self._running():
            return
        self._show_message("waiting for processes that the command left behind")
        if self._waited(timeout_s):
            return
        for number in (signal.SIGTERM, signal.SIGKILL):
            self._force(f"sending {number.name} to", self._running(), number)
            if self._waited(HARD_TIMEOUT_S):
                return

    def end(self, timeout_s: float) -> bool:
        """Ask the command to end, wait, and only then use force.

        Parameters:
            timeout_s: how long the command may take to end after SIGINT. The time that nsys takes to write the report
                once all profiled processes have ended is not limited.

        Returns:
            Whether the command ended because it was asked to; False when its first process had ended before.
        """
        pressed = self._pressed()
        main = self._main()
        self._sessions |= {process.session for process in self._running()}
        if main is not None:
            self._show_message(f"asking the command to end (SIGINT to process {main.pid}, {main.name})")
            send(main, signal.SIGINT)
        else:
            self._show_message("waiting for what the command left running")
        if not self._waited(timeout_s, pressed):
            self._harder(main, timeout_s)
        return main is not None

    def _harder(self, main: Process | None, timeout_s: float) -> None:
        """The command did not end in time, or the user asks again: use force, as little as does it."""
        running = self._running()
        if running:
            stubborn = [main] if main in running else running
            self._force("it has not ended yet: sending SIGTERM to", stubborn, signal.SIGTERM)
            if self._waited(HARD_TIMEOUT_S):
                return
        if self._nsys is not None and self._running():
            self.forced = True
            self._show_message("stopping the capture with `nsys stop`, so that there is a report of what was recorded")
            self._stop_nsys(timeout_s)
            if self._waited(min(timeout_s, HARD_TIMEOUT_S)):
                return
        self._force("sending SIGKILL to", self._running(), signal.SIGKILL)
        if running and self._waited(HARD_TIMEOUT_S):
            return
        self.forced = True
        self._show_message(
            "giving up the report: sending SIGKILL to nsys" if self._nsys else "sending SIGKILL to all of it"
        )
        with suppress(ProcessLookupError, PermissionError):
            os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait()

    def _force(self, what: str, processes: Sequence[Process | None], number: signal.Signals) -> None:
        stubborn = [process for process in processes if process is not None]
        if stubborn:
            self.forced = True
            self._show_message(f"{what} " + ", ".join(f"{process.pid} ({process.name})" for process in stubborn[:8]))
        for process in stubborn:
            send(process, number)

    def _stop_nsys(self, timeout_s: float) -> None:
        with self._log.open("ab") as output, suppress(OSError, subprocess.TimeoutExpired):
            subprocess.run(
                [str(self._nsys), "stop", f"--session={self._session}"],
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                timeout=max(timeout_s, HARD_TIMEOUT_S),
                start_new_session=True,
                check=False,
            )

    def _running(self) -> list[Process]:
        return application(self._process.pid, self._nsys is not None, self._sessions)

    def _main(self) -> Process | None:
        """The process to ask to end; None when the command's first process has ended already."""
        deadline = time.monotonic() + HARD_TIMEOUT_S
        while not self.ended() and self._first is None and time.monotonic() < deadline:
            time.sleep(_POLL_S)  # nsys takes a moment to start it
        running = self._running()
        return main_process(running) if self._first is None or self._first in running else None

    def _waited(self, timeout_s: float, pressed: int | None = None) -> bool:
        """Wait until all has ended. False when time is over, or the user asks again.

        Parameters:
            pressed: how many times the user had asked before what is waited for was begun; default: until now.
        """
        deadline, writing = time.monotonic() + timeout_s, False
        pressed = self._pressed() if pressed is None else pressed
        while True:
            running = self._running()
            if self.ended() and not running:
                return True
            if not running and not writing and self._nsys is not None:
                writing, pressed = True, self._pressed() + 1
                self._show_message("the command has ended; nsys writes the report (Ctrl-C twice gives it up)")
            if self._pressed() > pressed or (running and time.monotonic() > deadline):
                return False
            time.sleep(_POLL_S)
