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
    """Show a progress bar on standard error and yield ``analyze``'s ``tell``; show nothing if it is no terminal."""
    if not is_terminal(sys.stderr):
        yield lambda _what, _done: None
        return
    from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn  # noqa: PLC0415  only where it is shown

    columns = (TextColumn("{task.description}", markup=False), BarColumn(), TimeElapsedColumn())
    with Progress(*columns, console=stderr(), transient=True) as bar:
        task = bar.add_task("opening", total=None)

        def tell(what: str, done: float | None) -> None:
            bar.update(task, description=what, completed=done or 0.0, total=None if done is None else 1.0)

        yield tell


def print_json(value: object) -> None:
    """Write a value as JSON to standard output."""
    sys.stdout.write(json.dumps(value, indent=2) + "\n")


def stdout() -> Console:
    """Return the console for results. If it is no terminal: plain text, wide enough for unfolded tables."""
    from rich.console import Console  # noqa: PLC0415  not for JSON

    width = None if is_terminal(sys.stdout) else 120
    plain = False if in_notebook() else None  # kernels set FORCE_COLOR
    return Console(soft_wrap=False, width=width, force_terminal=plain, highlight=False, emoji=False)


def stderr() -> Console:
    """Return the console for progress, which is quiet if a program reads standard output."""
    from rich.console import Console  # noqa: PLC0415  not for JSON

    return Console(stderr=True, highlight=False, emoji=False, quiet=not is_terminal(sys.stdout))
