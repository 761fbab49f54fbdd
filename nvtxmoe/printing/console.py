"""Open consoles, and print JSON and progress."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, TextIO

if TYPE_CHECKING:
    from rich.console import Console

#: Width of an output that is no terminal: more than any line, so that none is wrapped.
PIPED_WIDTH = 100_000
#: A spinner of ASCII characters, which every terminal can show.
SPINNER = "line"


@contextmanager
def waiting(what: str) -> Iterator[None]:
    """Show that something is under way on standard error, if that is a terminal."""
    from rich.markup import escape  # noqa: PLC0415  not for JSON

    with stderr().status(escape(what), spinner=SPINNER):
        yield


def in_notebook() -> bool:
    """Return True in a Jupyter kernel and in the commands that its cells start."""
    return "JPY_PARENT_PID" in os.environ


def is_terminal(stream: TextIO) -> bool:
    """Return True if a stream is a terminal whose cursor moves.

    A command that a notebook's cell starts sees a terminal, but the cell shows the control characters as they are.
    """
    return stream.isatty() and not in_notebook()


@contextmanager
def progress_bar() -> Iterator[Callable[[str, float | None], None]]:
    """Show a progress bar on standard error and yield ``analyze``'s ``report``; show nothing if it is no terminal."""
    if not is_terminal(sys.stderr):
        yield lambda _what, _done: None
        return
    from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn  # noqa: PLC0415  only where it is shown
    from rich.table import Column  # noqa: PLC0415

    # The text is last and may take a second line, so that nothing of it is cut.
    text = TextColumn("{task.description}", markup=False, table_column=Column(overflow="fold"))
    columns = (BarColumn(bar_width=20), TimeElapsedColumn(), text)
    with Progress(*columns, console=stderr(), transient=True) as bar:
        task = bar.add_task("opening", total=None)

        def report(what: str, done: float | None) -> None:
            bar.update(task, description=what, completed=done or 0.0, total=None if done is None else 1.0)

        yield report


def print_json(value: object) -> None:
    """Write a value as JSON to standard output."""
    sys.stdout.write(json.dumps(value, indent=2) + "\n")


def stdout() -> Console:
    """Return the console for results. If it is no terminal: plain text in lines as long as they are."""
    from nvtxmoe.printing.harmless import HarmlessConsole  # noqa: PLC0415  rich, not for JSON

    width = None if is_terminal(sys.stdout) else PIPED_WIDTH
    plain = False if in_notebook() else None  # kernels set FORCE_COLOR
    return HarmlessConsole(soft_wrap=False, width=width, force_terminal=plain, highlight=False, emoji=False)


def stderr() -> Console:
    """Return the console for progress, which is quiet unless both outputs are terminals."""
    from nvtxmoe.printing.harmless import HarmlessConsole  # noqa: PLC0415  rich, not for JSON

    quiet = not (is_terminal(sys.stdout) and is_terminal(sys.stderr))
    return HarmlessConsole(stderr=True, highlight=False, emoji=False, quiet=quiet)
