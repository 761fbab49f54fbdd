"""Bounds of an answer: rows, bytes, and the length of each text in it."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, TypeVar

from pydantic import BaseModel, Field
from pydantic_core import to_json

from nvtxmoe.errors import NvtxmoeError
from nvtxmoe.terminal_text import harmless

#: Most rows of an answer.
MOST_ROWS = 50
#: Most bytes of an answer as JSON.
MOST_BYTES = 20_000
#: Most characters of a text, and most numbers of a list in a cell.
MOST_TEXT, MOST_NUMBERS = 1_000, 256


class Page(BaseModel):
    """A part of a list, bounded by rows and bytes."""

    total: int = Field(default=0, description="Number of all rows that match")
    offset: int = Field(default=0, description="Position of the first row of this answer among them")
    more: str | None = Field(default=None, description="How to ask for the rest; null if this answer ends the list")


AnyPage = TypeVar("AnyPage", bound=Page)


def filled(
    page: AnyPage, field: str, rows: Sequence[Any], offset: int, limit: int, total: int | None = None
) -> AnyPage:
    """Put rows into a list of a page until a bound is reached, and say how to ask for the rest.

    Parameters:
        field: the name of the list.
        rows: all rows; or, if ``total`` is given, those from ``offset`` on.

    Raises:
        NvtxmoeError: a single row is too large.
    """
    page_rows = rows if total is not None else rows[offset:]
    page.total = len(rows) if total is None else total
    page.offset = offset
    page.more = "x" * 120  # as long as the sentence can be
    left = MOST_BYTES - len(page.model_dump_json().encode())
    filled_rows: list[Any] = []
    for row in page_rows[: min(limit, MOST_ROWS)]:
        left -= len(to_json(row)) + 1
        if left < 0:
            break
        filled_rows.append(row)
    if page_rows and not filled_rows:
        raise NvtxmoeError(f"one row is larger than {MOST_BYTES:,} bytes", remedy="Name fewer columns")
    end = offset + len(filled_rows)
    page.more = None
    if end < page.total:
        page.more = f"{page.total - end:,} more rows: ask again with offset={end} (at most {MOST_ROWS} rows per answer)"
    setattr(page, field, filled_rows)
    return page


def clipped(value: Any) -> Any:
    """Return a value fit for an answer: no control character, no endless text or list, no infinity."""
    if isinstance(value, str):
        text = harmless(value, keep="")
        return text if len(text) <= MOST_TEXT else f"{text[: MOST_TEXT - 1]}… ({len(text):,} characters)"
    if isinstance(value, float) and not math.isfinite(value):
        return None
    if isinstance(value, list):
        shown = [clipped(part) for part in value[:MOST_NUMBERS]]
        return shown if len(value) <= MOST_NUMBERS else [*shown, f"… ({len(value):,} values)"]
    if isinstance(value, dict):
        return {clipped(name): clipped(part) for name, part in value.items()}
    return value
