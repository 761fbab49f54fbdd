"""The terminal: consoles, JSON, progress."""

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
    """A bar on standard error for ``analyze``'s ``tell``; nothing at all where that is not a terminal."""
    from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn  # noqa: PLC0415  only where it is shown

    columns = (TextColumn("{task.description}", markup=False), BarColumn(), TimeElapsedColumn())
    with Progress(*columns, console=stderr(), transient=True, disable=not sys.stderr.isatty()) as bar:
        task = bar.add_task("opening", total=None)

        def tell(what: str, done: float | None) -> None:
            bar.update(task, description=what, completed=done or 0.0, total=None if done is None else 1.0)

        yield tell


def print_json(value: object) -> None:
    """Write JSON to standard output, nothing else."""
    sys.stdout.write(json.dumps(value, indent=2) + "\n")


def stdout() -> Console:
    """The console for results. Not a terminal: plain text, and wide enough not to fold tables."""
    from rich.console import Console  # noqa: PLC0415  not for JSON

    return Console(soft_wrap=False, width=None if sys.stdout.isatty() else 120, highlight=False, emoji=False)


def stderr() -> Console:
    """The console for progress. It shows none where standard output is read by a program."""
    from rich.console import Console  # noqa: PLC0415  not for JSON

    return Console(stderr=True, highlight=False, emoji=False, quiet=not sys.stdout.isatty())
