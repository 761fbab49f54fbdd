"""The filters of the command line, as one argument ``selection``."""

from __future__ import annotations

import re
from collections.abc import Callable
from functools import wraps
from typing import Any

import click

# At most 15 digits: 64-bit integers wherever they go.
_RANGE = re.compile(r"([0-9]{0,15}):([0-9]{0,15})")
_NUMBERS = re.compile(r"([0-9]{1,15})(?:-([0-9]{1,15}))?")
#: Layers or ranks that one LIST may name.
MOST_NUMBERS = 100_000


def step_range(text: str | None) -> tuple[int | None, int | None]:
    """``A:B`` as (A, B), both inclusive; either may be missing."""
    if text is None:
        return None, None
    match = _RANGE.fullmatch(text)
    if match is None or text == ":":
        raise click.BadParameter(f"{text!r} is no range; write A:B, A: or :B", param_hint="--steps")
    first, last = (int(part) if part else None for part in match.groups())
    if first is not None and last is not None and first > last:
        raise click.BadParameter(f"{text!r} ends before it begins", param_hint="--steps")
    return first, last


def numbers(text: str | None, option: str) -> frozenset[int] | None:
    """``0,3,8-11`` as a set."""
    if text is None:
        return None
    numbers: set[int] = set()
    for part in text.split(","):
        match = _NUMBERS.fullmatch(part.strip())
        if match is None:
            raise click.BadParameter(f"{part!r} is no number or range; write 0,3,8-11", param_hint=option)
        first = int(match[1])
        last = int(match[2] or first)
        if last < first:
            raise click.BadParameter(f"{part!r} ends before it begins", param_hint=option)
        if last - first >= MOST_NUMBERS:
            raise click.BadParameter(f"{part!r} are more than {MOST_NUMBERS:,} numbers", param_hint=option)
        numbers.update(range(first, last + 1))
    return frozenset(numbers)


def selection_options(function: Callable[..., Any]) -> Callable[..., Any]:
    """Options that narrow what is kept; the command gets them as ``selection``, a ``nvtxmoe_analysis`` Selection."""

    @wraps(function)
    def command(
        *args: Any,
        steps: str | None,
        skip_first: int,
        only: str | None,
        layers: str | None,
        ranks: str | None,
        **others: Any,
    ) -> Any:
        from nvtxmoe_analysis.core.blas import one_thread  # noqa: PLC0415

        one_thread()
        from nvtxmoe_analysis.facts.selection import Selection  # noqa: PLC0415  polars only when needed

        first, last = step_range(steps)
        selection = Selection(
            first_step=first,
            last_step=last,
            skip_first=skip_first,
            only=only,
            layers=numbers(layers, "--layers"),
            ranks=numbers(ranks, "--ranks"),
        )
        return function(*args, selection=selection, **others)

    for option in (
        click.option("--ranks", metavar="LIST", help="Only these ranks, likewise."),
        click.option("--layers", metavar="LIST", help="Only these layers, as 0,3,8-11."),
        click.option(
            "--only", type=click.Choice(["prefill", "decode", "mixed"]), help="Only steps that schedule just this."
        ),
        click.option(
            "--skip-first",
            metavar="N",
            type=click.IntRange(min=0),
            default=0,
            help="Leave out each rank's first N steps.",
        ),
        click.option("--steps", metavar="A:B", help="Only steps A to B, both inclusive; either may be left out."),
    ):
        command = option(command)
    return command
