"""Which steps are recorded: all, or those in windows, which are opened and closed while the process runs on."""

from __future__ import annotations

import threading
from collections import Counter as Tally
from collections.abc import Callable, Mapping, Sequence

from nvtxmoe.capture.sinks import Sink

#: Steps whose counts are sent together, where no sink wants fewer.
MOST_STEPS_A_SEND = 16


class Window:
    """One window in this process.

    Parameters:
        sinks: its own, closed with it.
        lost_before: losses of the process when the window opens.

    Attributes:
        first: the first step of the window that is to be kept; ``recorded_first`` is the first one of this process.
        last: the last one; None while the window is open.
        steps, tokens: what has begun in it.
        step_open: whether one of its steps has begun and not ended.
    """

    def __init__(self, number: int, first: int, sinks: Sequence[Sink], lost_before: Mapping[str, int]) -> None:
        self.number = number
        self.first = self.recorded_first = first
        self.last: int | None = None
        self.sinks = tuple(sinks)
        self.steps = self.tokens = 0
        self.step_open = False
        self._lost_before = dict(lost_before)
        self._idle: list[list[int]] = []  # first and last of consecutive idle steps

    @property
    def closed(self) -> bool:
        """Whether no further step begins in it."""
        return self.last is not None

    def holds(self, step: int) -> bool:
        """Whether a step was recorded in it."""
        return self.recorded_first <= step and (self.last is None or step <= self.last)

    def idle(self, step: int) -> None:
        """Note an idle batch."""
        if self._idle and self._idle[-1][1] == step - 1:
            self._idle[-1][1] = step
        else:
            self._idle.append([step, step])

    def batches(self, batches_seen: int) -> dict[str, int]:
        """Numbers of batches and of idle ones among them.

        Parameters:
            batches_seen: batches of the process so far, for a window that is still open.
        """
        last = batches_seen - 1 if self.last is None else self.last
        idle = sum(max(0, min(last, end) - max(self.first, begin) + 1) for begin, end in self._idle)
        return {"steps": max(0, last - self.first + 1), "idle_steps": idle}

    def lost(self, lost: Mapping[str, int], lasting: Mapping[str, int]) -> dict[str, int]:
        """Losses since it was opened, and ``lasting`` ones, which hold for every step."""
        since = Tally(lost)
        since.subtract({what: number for what, number in self._lost_before.items() if what not in lasting})
        return {what: number for what, number in since.items() if number > 0}


class EveryStep:
    """All steps are recorded.

    Attributes:
        windowed: whether steps may be outside of a window; else ``begin``, ``passes`` and ``end`` need no call.
        sinks: those that may take something now.
        quiet: whether the running batch is not to be recorded, but by sinks that take all steps.
    """

    windowed = False

    def __init__(self, sinks: Sequence[Sink] = ()) -> None:
        self.always = tuple(sinks)
        self.quiet = False

    @property
    def sinks(self) -> tuple[Sink, ...]:
        """Sinks that may take something now."""
        return self.always

    @property
    def steps_a_send(self) -> int:
        """Steps whose counts are sent together: as many as the sinks allow."""
        return min((sink.steps_a_send for sink in self.sinks), default=MOST_STEPS_A_SEND)

    def begin(self, step: int, num_tokens: int) -> tuple[Sink, ...]:  # noqa: ARG002
        """A step begins: return the sinks that take it."""
        return self.always

    def passes(self, step: int) -> bool:  # noqa: ARG002
        """Whether no sink takes the step that begins; then it takes a number."""
        return False

    def skip(self, step: int) -> None:
        """An idle batch takes a number."""

    def end(self) -> None:
        """The running step has ended."""

    def of(self, step: int) -> tuple[Sink, ...]:  # noqa: ARG002
        """Return the sinks that take the counts of a step."""
        return self.always

    def takes(self, step: int) -> bool:  # noqa: ARG002
        """Whether a step is recorded by more than the sinks that take all steps."""
        return True

    def of_sink(self, sink: Sink) -> Window | None:  # noqa: ARG002
        """Return the window that a sink belongs to alone; None for sinks of all windows and of all steps."""
        return None

    def bounds_for(self, sink: Sink) -> list[list[int | None]] | None:  # noqa: ARG002
        """First and last step of the windows that a sink has taken; None where it takes all steps."""
        return None


class Windows(EveryStep):
    """The steps in windows are recorded; at most one window is open. Outside only step numbers are taken.

    The serving thread calls ``begin``, ``skip`` and ``end``; another thread opens and closes.

    Parameters:
        always: sinks that take all steps all the same.
        shared: sinks of all windows.
        make_own: makes the sinks of one window from its number; it may raise OSError and NvtxmoeError.

    Attributes:
        quiet: whether the running batch is outside of every window. The serving thread sets it, between batches.
        taken: number of batches that have begun, idle ones too: the number of the next one.
    """

    windowed = True

    def __init__(
        self, always: Sequence[Sink], shared: Sequence[Sink], make_own: Callable[[int], Sequence[Sink]]
    ) -> None:
        super().__init__(always)
        self.quiet = True
        self.taken = 0
        self.current: Window | None = None
        self.earlier: list[tuple[int, int]] = []
        self._shared = tuple(shared)
        self._make_own = make_own
        self._lock = threading.Lock()

    @property
    def sinks(self) -> tuple[Sink, ...]:
        """Sinks that may take something now."""
        window = self.current
        return (*self.always, *self._shared, *(() if window is None else window.sinks))

    def begin(self, step: int, num_tokens: int) -> tuple[Sink, ...]:
        """A step begins: return the sinks that take it."""
        with self._lock:
            self.taken = step + 1
            window = self.current
            self.quiet = window is None or window.closed
            if window is None or window.closed:
                return self.always
            window.steps += 1
            window.tokens += num_tokens
            window.step_open = True
        return (*self.always, *self._shared, *window.sinks)

    def passes(self, step: int) -> bool:
        """Whether no sink takes the step that begins; then it takes a number."""
        with self._lock:
            window = self.current
            if self.always or (window is not None and not window.closed):
                return False
            self.taken, self.quiet = step + 1, True
        return True

    def skip(self, step: int) -> None:
        """An idle batch takes a number."""
        with self._lock:
            self.taken = step + 1
            window = self.current
            self.quiet = window is None or window.closed
            if window is not None and not window.closed:
                window.idle(step)

    def end(self) -> None:
        """The running step has ended."""
        window = self.current
        if window is not None:
            window.step_open = False

    def of(self, step: int) -> tuple[Sink, ...]:
        """Return the sinks that take the counts of a step."""
        window = self.current
        if window is None or not window.holds(step):
            return self.always
        return (*self.always, *self._shared, *window.sinks)

    def takes(self, step: int) -> bool:
        """Whether a step is in the window."""
        window = self.current
        return window is not None and window.holds(step)

    def open(self, number: int, lost: Mapping[str, int]) -> Window:
        """Open a window: it begins with the next step.

        Parameters:
            number: of the window in the session, from 1.
            lost: losses of the process so far.

        Raises:
            OSError, NvtxmoeError: its files can't be made.
        """
        own_sinks = self._make_own(number)
        with self._lock:
            window = self.current = Window(number, self.taken, own_sinks, lost)
        return window

    def close(self) -> None:
        """No further step begins in the window. One that runs goes on."""
        with self._lock:
            if self.current is not None and self.current.last is None:
                self.current.last = self.taken - 1

    def forget(self, *, keep: bool) -> None:
        """The window is over: its sinks take nothing more; ``keep`` tells whether its steps count."""
        window = self.current
        if window is not None and keep and window.last is not None:
            self.earlier.append((window.first, window.last))
        self.current = None

    def of_sink(self, sink: Sink) -> Window | None:
        """Return the window that a sink belongs to alone; None for sinks of all windows and of all steps."""
        window = self.current
        return window if window is not None and sink in window.sinks else None

    def bounds_for(self, sink: Sink) -> list[list[int | None]] | None:
        """First and last step of the windows that a sink has taken; None where it takes all steps."""
        if sink in self.always:
            return None
        window = self.current
        now: list[list[int | None]] = [] if window is None else [[window.first, window.last]]
        if sink not in self._shared:
            return now
        earlier: list[list[int | None]] = [[first, last] for first, last in self.earlier]
        return earlier + now
