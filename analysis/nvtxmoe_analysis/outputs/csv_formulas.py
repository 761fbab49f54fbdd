"""Texts that a spreadsheet would take for formulas: names of kernels and layers come from a capture.

A cell that begins with one of ``= + - @``, a tab or a carriage return gets an apostrophe before it. ``load`` takes it
away again. A text that begins with apostrophes before such a character gets one more, so that nothing is ambiguous.
"""

from __future__ import annotations

import polars as pl

_FORMULA = r"^'*[=+\-@\t\r]"
_MARKED = r"^'('*[=+\-@\t\r])"


def mark(texts: pl.Series) -> pl.Series:
    """Return a String column as it is written to CSV."""
    dangerous = texts.str.contains(_FORMULA)
    if not dangerous.any():
        return texts
    marked: pl.Series = pl.select(pl.when(dangerous).then(pl.lit("'") + texts).otherwise(texts)).to_series()
    return marked.alias(texts.name)


def unmark(texts: pl.Series) -> pl.Series:
    """Return a String column of a CSV file as it was before :func:`mark`."""
    return texts.str.replace(_MARKED, "${1}")
