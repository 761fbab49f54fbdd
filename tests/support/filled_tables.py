"""Tables of results of which a test gives the columns that it is about."""

from __future__ import annotations

import polars as pl

from nvtxmoe_analysis.outputs.registry import tables

ZERO = {pl.Int64: 0, pl.Float64: 0.0, pl.String: "0", pl.Boolean: False}


def filled(name: str, table: pl.DataFrame) -> pl.DataFrame:
    """A table with all its columns, those of ``table`` first: empty, or 0 where the columns may not be empty."""
    declared = tables()[name]
    return table.with_columns(
        pl.lit(ZERO[kind] if column in (*declared.whole, *declared.reasoned) else None, kind).alias(column)  # type: ignore[index]
        for column, kind in declared.types.items()
        if column not in table.columns
    )
