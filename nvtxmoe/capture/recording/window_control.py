"""Opening and closing windows of a recorder from another thread, while the serving thread goes on."""

from __future__ import annotations

import time
from typing import Any

from nvtxmoe.capture.log import logger
from nvtxmoe.capture.recording.ambiguous_tokens import AmbiguousTokens
from nvtxmoe.capture.recording.recorder import Recorder
from nvtxmoe.capture.recording.windows import Window, Windows
from nvtxmoe.capture.sinks.journal import JournalSink
from nvtxmoe.errors import NvtxmoeError

#: Seconds that a window's end waits for its last step and for counts that are on their way, and between two looks.
SETTLE_S = 10.0
LOOK_S = 0.005


class WindowControl:
    """Opens and closes the windows of a process. Not for several threads at once.

    A start is one call of ``start``, then ``keep`` or ``undo``; an end is ``stop``, then ``conclude``.

    Parameters:
        recorder: its ``recorded`` are ``windows``.
    """

    def __init__(self, recorder: Recorder, windows: Windows) -> None:
        self._recorder = recorder
        self._windows = windows

    def status(self) -> dict[str, Any]:
        """Return the process's ranks, its next step, and its window: ``window`` is null while none is open."""
        identity, window = self._recorder.identity, self._windows.current
        assert identity is not None  # windows are made with it
        return {
            "rank": identity.rank,
            "world_size": identity.world_size,
            "engine": identity.dp_rank or 0,
            "next_step": self._windows.taken,
            "windows": len(self._windows.earlier),
            "window": None if window is None else _described(window),
        }

    def start(self, number: int) -> dict[str, Any]:
        """Open a window, and return its ``first`` step in this process.

        Raises:
            OSError, NvtxmoeError: its files can't be made, or a window is open.
        """
        if (current := self._windows.current) is not None:
            raise NvtxmoeError(f"window {current.number} is open", remedy="Stop it first")
        with self._recorder._lock:
            self._recorder._events.ambiguous = AmbiguousTokens()
        window = self._windows.open(number, self._recorder.lost)
        self._recorder.tell_meta()
        return {**self.status(), "first": window.first}

    def keep(self, first: int) -> dict[str, Any]:
        """Go on with the window that was just opened; ``first`` is the first step that all ranks have."""
        window = self._open()
        window.first = max(window.recorded_first, first)
        self._recorder.tell_meta()
        return self.status()

    def undo(self) -> None:
        """Take the start back: another rank could not begin."""
        window = self._open()
        self._windows.close()
        self._windows.forget(keep=False)
        for sink in window.sinks:
            sink.close(self._recorder.summary(sink))
            if isinstance(sink, JournalSink):
                sink.path.unlink(missing_ok=True)
        self._recorder.tell_meta()

    def stop(self) -> dict[str, Any]:
        """Have no further step begin in the window, and return its ``first`` and ``last`` in this process."""
        window = self._open()
        self._windows.close()
        return {**self.status(), "first": window.first, "last": window.last}

    def conclude(self, first: int, last: int) -> dict[str, Any]:
        """Wait for the window's counts and close its files; return what was recorded, and ``failure`` if files fail.

        Parameters:
            first, last: the steps that all ranks have.
        """
        window = self._open()
        self._wait(window)
        assert window.last is not None
        window.first, recorded_last = max(window.first, first), window.last
        self._end_pairs()
        window.last = min(recorded_last, last)
        status = self.status()
        self._recorder.tell_meta()
        failures = []
        for sink in window.sinks:
            sink.close(self._recorder.summary(sink))
            failures += [sink.failure] if isinstance(sink, JournalSink) and sink.failure is not None else []
        self._windows.forget(keep=True)
        return {**status, "failure": failures[0] if failures else None}

    def _open(self) -> Window:
        window = self._windows.current
        if window is None:
            raise NvtxmoeError("no window is open", remedy="Start one: nvtxmoe window start SESSION")
        return window

    def _wait(self, window: Window) -> None:
        until = time.monotonic() + SETTLE_S
        assert window.last is not None
        while window.step_open or self._is_behind(window.last):
            if time.monotonic() > until:
                logger().warning("window %d: its last counts have not arrived in %g s", window.number, SETTLE_S)
                return
            time.sleep(LOOK_S)

    def _is_behind(self, step: int) -> bool:
        """Whether counts of steps up to this one have not been sent, or the device must not be asked now."""
        with self._recorder._lock:
            counter = self._recorder._counter
            oldest = None if counter is None else counter.oldest()
            return self._recorder.graphs.closed or (oldest is not None and oldest <= step)

    def _end_pairs(self) -> None:
        """Close the spans of pairs and send them. Nothing of them is under way: their steps' counts have arrived."""
        with self._recorder._lock:
            pairs, counter = self._recorder._pairs, self._recorder._counter
            if pairs is not None and counter is not None and counter.enter_thread():
                pairs.begin()
                self._recorder._arrived(wait=True)


def _described(window: Window) -> dict[str, Any]:
    return {
        "number": window.number, "first": window.first, "last": window.last, "steps": window.steps,
        "tokens": window.tokens,
    }  # fmt: skip
