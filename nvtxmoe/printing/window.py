"""Print the state of a window of a running server: ``window``."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.markup import escape

#: Ranks that a line names.
MOST_RANKS = 16


def show_window(console: Console, state: Mapping[str, Any], session: Path) -> None:
    """Print whether a window is open, what it has recorded, and which ranks take no part.

    Parameters:
        state: ``window``, ``ranks``, ``silent``, ``absent`` and ``failed``, as ``nvtxmoe window --json`` prints them.
    """
    window, ranks = state["window"], state["ranks"]
    if window is None:
        console.print(f"No window is open on {_named([rank['rank'] for rank in ranks])}.")
    else:
        ends = "is open" if window["last_step"] is None else f"has ended with step {window['last_step']:,}"
        console.print(
            f"Window {window['number']} {ends} on {_named(window['ranks'])}, from step {window['first_step']:,} on: "
            f"{window['steps']:,} steps, {window['tokens']:,} tokens."
        )
    for title, reason in state["silent"].items():
        console.print(f"[bold red]{escape(title)} takes no part:[/bold red] {escape(reason)}")
    for rank, reason in state["failed"].items():
        console.print(f"[bold red]rank {rank} could not write its journal:[/bold red] {escape(reason)}")
    if state["absent"]:
        console.print(
            f"{_named(state['absent'])} of the run: no socket in {escape(str(session))}. Another machine's ranks need "
            "the command there; the log of others has the reason."
        )


def _named(ranks: list[int]) -> str:
    named = ", ".join(map(str, ranks[:MOST_RANKS])) + (", ..." if len(ranks) > MOST_RANKS else "")
    return f"rank{'s' if len(ranks) > 1 else ''} {named}"
