"""Texts that a spreadsheet would take for formulas: names of kernels and layers come from a capture.

A cell that begins with one of ``= + - @``, a tab or a carriage return gets an apostrophe before it. ``load`` takes it
away again. A text that begins with apostrophes before such a character gets one more, so that nothing is ambiguous.
"""

from __future__ import annotations

import polars as pl

_FORMULA = r"^'*[=+\-@\t\r]"
_MARKED = r"^'('*[=+\-@\t\r])"


def mark(table: pl.DataFrame) -> pl.DataFrame:
    """Return a table whose String columns are as they are written to CSV."""
    # In few tables any text is to be marked.
    has_formulas = table.select(pl.col(pl.String).str.contains(_FORMULA).any()).to_dicts()
    columns = [name for row in has_formulas for name, has_one in row.items() if has_one]
    texts = pl.col(columns)
    marked = pl.when(texts.str.contains(_FORMULA)).then(texts.str.replace("^", "'")).otherwise(texts)
    return table.with_columns(marked) if columns else table


def unmark(texts: pl.Series) -> pl.Series:
    """Return a String column of a CSV file as it was before :func:`mark`."""
    return texts.str.replace(_MARKED, "${1}")
