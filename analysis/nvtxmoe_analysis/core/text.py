"""Numbers, lists and kernel names as people read them."""

from __future__ import annotations

import re
from collections.abc import Sequence
from itertools import groupby


def spans(numbers: Sequence[int]) -> str:
    """Return rising numbers with neighbours together: ``0-3, 5``."""
    parts = []
    for _, run in groupby(enumerate(numbers), key=lambda item: item[1] - item[0]):
        members = [number for _, number in run]
        parts.append(str(members[0]) if len(members) == 1 else f"{members[0]}-{members[-1]}")
    return ", ".join(parts)


def number(count: int, singular: str, plural: str | None = None) -> str:
    """Return ``1 step``, ``1,234 steps``."""
    return f"{count:,} {singular if count == 1 else plural or singular + 's'}"


def listed(items: Sequence[str], max_items: int = 6) -> str:
    """Return ``a, b and c``; of more than ``max_items`` items, the first ones and how many more."""
    if len(items) > max_items:
        return f"{', '.join(items[:max_items])} and {len(items) - max_items:,} more"
    return " and ".join(part for part in (", ".join(items[:-1]), items[-1] if items else "") if part)


def short_name(kernel_name: str, max_length: int | None = None) -> str:
    """Return a kernel's name without return type, template arguments and parameters.

    A name that begins with a bracket, and so would be empty, stays whole.

    Parameters:
        max_length: characters of the result; a longer one is cut, and ends in an ellipsis.
    """
    name = kernel_name.removeprefix("void ")
    name = name if name.startswith("[") else re.split(r"[<(]", name, maxsplit=1)[0] or name
    return name if max_length is None or len(name) <= max_length else f"{name[: max_length - 1]}…"
