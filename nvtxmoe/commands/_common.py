"""What the commands share: options, the console, printing JSON."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import click
from rich.console import Console

F = TypeVar("F", bound=Callable[..., Any])

PATH = click.Path(path_type=Path)


def command(name: str, example: str) -> Callable[[Callable[..., int | None]], click.Command]:
    """A click command with ``--debug`` and an example in its help. It returns the exit code."""

    def wrap(function: Callable[..., int | None]) -> click.Command:
        made = click.command(name, epilog="\b\nExample:\n" + "\n".join(f"  {e}" for e in example.splitlines()))(
            function
        )
        made.params.append(
            click.Option(["--debug"], is_flag=True, expose_value=False, help="Show the traceback of an error.")
        )
        return made

    return wrap


def opening_options(function: F) -> F:
    """Options of every command that opens a .nsys-rep."""
    function = click.option(
        "--nsys",
        type=PATH,
        help="The nsys that exports a .nsys-rep. Default: $NVTXMOE_NSYS, then nsys on the PATH.",
    )(function)
    return click.option(
        "--cache-dir", type=PATH, help="Where exports of .nsys-rep files are kept. Default: beside the report."
    )(function)


json_option = click.option("--json", "as_json", is_flag=True, help="Print the result as JSON.")


def print_json(value: object) -> None:
    """Write JSON to standard output, nothing else."""
    sys.stdout.write(json.dumps(value, indent=2) + "\n")


def stdout() -> Console:
    """The console for results. Not a terminal: plain text, and wide enough not to fold tables."""
    return Console(soft_wrap=False, width=None if sys.stdout.isatty() else 120, highlight=False)


def stderr() -> Console:
    """The console for progress and warnings."""
    return Console(stderr=True, highlight=False)
