"""Numbers for people: 0-3, 5."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import groupby


def spans(numbers: Sequence[int]) -> str:
    """Rising numbers, neighbours together."""
    found = []
    for _, run in groupby(enumerate(numbers), key=lambda item: item[1] - item[0]):
        members = [number for _, number in run]
        found.append(str(members[0]) if len(members) == 1 else f"{members[0]}-{members[-1]}")
    return ", ".join(found)


def number(count: int, singular: str, plural: str | None = None) -> str:
    """``1 step``, ``1,234 steps``."""
    return f"{count:,} {singular if count == 1 else plural or singular + 's'}"
