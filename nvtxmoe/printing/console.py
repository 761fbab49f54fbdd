"""Open consoles, and print JSON and progress."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rich.console import Console


@contextmanager
def progress_bar() -> Iterator[Callable[[str, float | None], None]]:
    """Show a progress bar on standard error and yield ``analyze``'s ``tell``; show nothing if it is no terminal."""
    if not sys.stderr.isatty():
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
    from nvtxmoe.printing.harmless import HarmlessConsole  # noqa: PLC0415  rich, not for JSON

    return HarmlessConsole(soft_wrap=False, width=None if sys.stdout.isatty() else 120, highlight=False, emoji=False)


def stderr() -> Console:
    """Return the console for progress, which is quiet if a program reads standard output."""
    from nvtxmoe.printing.harmless import HarmlessConsole  # noqa: PLC0415  rich, not for JSON

    return HarmlessConsole(stderr=True, highlight=False, emoji=False, quiet=not sys.stdout.isatty())
