"""Show a running server until the user quits: scrapes in a thread, keys and signals in the main thread."""

from __future__ import annotations

import os
import select
import signal
import socket
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

from rich.console import Console
from rich.live import Live
from rich.text import Text

from nvtxmoe.errors import NvtxmoeError
from nvtxmoe.live_view.keys import KeyReader, key_by_key
from nvtxmoe.live_view.model import View, view_of
from nvtxmoe.live_view.scrape import Page
from nvtxmoe.live_view.screen import draw
from nvtxmoe.live_view.state import QUIT, State, pressed

#: Seconds of pages that rates are computed over: ranks publish once per second only.
RATE_S = 10.0
ENDING = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
_SCRAPED = 0
#: Width of a table if the output is no terminal: room for all columns.
FOLLOWED_WIDTH = 120


class Pages:
    """The last pages, for rates over up to ``RATE_S`` seconds, or over two scrapes if these are further apart."""

    def __init__(self, first: Page) -> None:
        self._pages = deque([first])

    def add(self, page: Page) -> None:
        """Add the newest page; forget those that are too old."""
        self._pages.append(page)
        while len(self._pages) > 2 and page.at_s - self._pages[0].at_s > RATE_S:
            self._pages.popleft()

    def view(self) -> View:
        """Return the view of the newest page."""
        return view_of(self._pages[-1], self._pages[0] if len(self._pages) > 1 else None)


def follow(
    console: Console, scrape: Callable[[], Page], first: Page, interval_s: float, order: str, times: int | None = None
) -> None:
    """Print a table per interval, for outputs that are no terminal, until a signal ends the process.

    Parameters:
        times: tables to print; None: no end.

    Raises:
        NvtxmoeError: a scrape failed.
    """
    pages, printed = Pages(first), 0
    while times is None or printed < times:
        time.sleep(interval_s)
        pages.add(scrape())
        width = console.width if console.is_terminal else FOLLOWED_WIDTH
        console.print(draw(pages.view(), State(order=order), width, ascii_only=ascii_only(console)), soft_wrap=True)
        console.file.flush()
        printed += 1


def ascii_only(console: Console) -> bool:
    """Return whether the output can't show block characters."""
    return not (console.encoding or "").lower().startswith("utf")


class _Scraper(threading.Thread):
    """Scrapes at intervals. A server that hangs holds this thread only, and the process may end without it."""

    def __init__(self, scrape: Callable[[], Page], interval_s: float, wake: socket.socket) -> None:
        super().__init__(name="scrape", daemon=True)
        self.results: deque[Page | str] = deque()
        self._scrape, self._interval_s, self._wake = scrape, interval_s, wake

    def run(self) -> None:
        """Scrape until the process ends."""
        while True:
            time.sleep(self._interval_s)
            try:
                self.results.append(self._scrape())
            except NvtxmoeError as error:
                self.results.append(f"{error.where}: {error.what}")
            except Exception as error:
                self.results.append(f"{type(error).__name__}: {error}")
            try:
                self._wake.send(bytes([_SCRAPED]))
            except OSError:  # the screen has closed
                return


def watch(
    console: Console, scrape: Callable[[], Page], first: Page, interval_s: float, order: str, keyboard: int | None
) -> int:
    """Show the live screen until a key or a signal ends it; the terminal is as before afterwards.

    Parameters:
        console: of a terminal.
        scrape: returns the next page.
        keyboard: descriptor that keys come from; None: no keys.

    Returns:
        The signal that ended it; 0 for the key q.
    """
    state, pages = State(order=order), Pages(first)
    view, keys = pages.view(), KeyReader()
    with _wake_pair() as (reading, writing), key_by_key(keyboard) as has_keys:
        scraper = _Scraper(scrape, interval_s, writing)
        plain = ascii_only(console)

        def picture() -> Text:
            return draw(view, state, console.width, console.height, ascii_only=plain, keys=has_keys)

        with Live(picture(), console=console, screen=True, auto_refresh=False) as live:
            scraper.start()
            while True:
                sources: list[Any] = [reading, *([keyboard] if has_keys and keyboard is not None else [])]
                ready = select.select(sources, [], [])[0]
                if reading in ready:
                    for number in reading.recv(4096):
                        if number in ENDING:
                            return number
                while scraper.results:
                    result = scraper.results.popleft()
                    state = replace(state, trouble=result if isinstance(result, str) else "")
                    if isinstance(result, Page):
                        pages.add(result)
                        view = pages.view()
                if has_keys and keyboard in ready:
                    data = _read(keyboard)
                    if not data:  # the terminal has gone
                        return signal.SIGHUP
                    for key in keys.feed(data):
                        if key in QUIT:
                            return 0
                        state = pressed(state, key, view)
                live.update(picture(), refresh=True)


def _read(keyboard: int | None) -> bytes:
    try:
        return os.read(keyboard, 4096) if keyboard is not None else b""
    except OSError:
        return b""


@contextmanager
def _wake_pair() -> Iterator[tuple[socket.socket, socket.socket]]:
    """Yield two ends: numbers of signals arrive in the first, so that none interrupts the drawing.

    Handlers are as before afterwards.
    """
    reading, writing = socket.socketpair()
    writing.setblocking(False)
    before: dict[int, Any] = {}
    wakeup = signal.set_wakeup_fd(writing.fileno(), warn_on_full_buffer=False)
    try:
        for number in (*ENDING, signal.SIGWINCH):
            before[number] = signal.signal(number, lambda *_: None)
        yield reading, writing
    finally:
        for key, handler in before.items():
            signal.signal(key, handler)
        signal.set_wakeup_fd(wakeup)
        writing.close()
        reading.close()
