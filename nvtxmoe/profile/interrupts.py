"""Ctrl-C, and the signals that ask to end: the first interrupts what is going on, further ones are counted."""

from __future__ import annotations

import signal
from types import FrameType, TracebackType
from typing import Any

_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


class Interrupts:
    """While it is entered, SIGINT, SIGTERM and SIGHUP raise KeyboardInterrupt once, as soon as it is armed.

    Attributes:
        count: how many signals have come.
    """

    def __init__(self) -> None:
        self.count = 0
        self._armed = False
        self._before: dict[signal.Signals, Any] = {}

    def __enter__(self) -> Interrupts:
        for number in _SIGNALS:
            before = signal.getsignal(number)
            if before is not signal.SIG_IGN or number is signal.SIGINT:  # nohup ignores SIGHUP
                self._before[number] = before
                signal.signal(number, self._came)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for number, before in self._before.items():
            signal.signal(number, before)

    def arm(self) -> None:
        """From now on the first signal raises KeyboardInterrupt; at once when it has come already."""
        self._armed = True
        if self.count:
            self.disarm()
            raise KeyboardInterrupt

    def disarm(self) -> None:
        """From now on signals are only counted."""
        self._armed = False

    def _came(self, number: int, frame: FrameType | None) -> None:  # noqa: ARG002  the signature of a handler
        self.count += 1
        if self._armed:
            self._armed = False
            raise KeyboardInterrupt
