"""Print the answers to the four questions: the terminal's first lines."""

from __future__ import annotations

import textwrap
from collections.abc import Mapping, Sequence
from typing import Any

from rich.console import Console
from rich.markup import escape

from nvtxmoe.terminal_text import harmless

#: Most columns of a line; commands are not folded, so that they can be copied.
WIDTH = 80
INDENT = "  "


def show_first_lines(console: Console, answers: Sequence[Mapping[str, Any]]) -> None:
    """Print each answer (see ``report.first_screen.Answer.as_dict``) with its question and command."""
    for answer in answers:
        console.print(f"[bold]{escape(answer['question'])}[/bold] {escape(harmless(answer['short']))}")
        width = min(WIDTH, console.width)
        for line in textwrap.wrap(harmless(answer["text"]), width - len(INDENT)):
            console.print(f"{INDENT}{escape(line)}", soft_wrap=True)
        if answer["command"]:
            console.print(f"{INDENT}$ [cyan]{escape(answer['command'])}[/cyan]", soft_wrap=True)
