"""Put columns beside rows by a key, without the copy that a join makes of all columns."""

from __future__ import annotations

from collections.abc import Sequence

import polars as pl


def beside(rows: pl.DataFrame, table: pl.DataFrame, key: Sequence[str], *, nulls_equal: bool = False) -> pl.DataFrame:
    """Return what is found by a key for each of these rows, without the key; null where nothing is."""
    positions = table.select(*key, pl.int_range(pl.len(), dtype=pl.UInt32).alias("at"))
    at = rows.select(key).join(positions, on=key, how="left", nulls_equal=nulls_equal, maintain_order="left")["at"]
    return table.drop(key).select(pl.all().gather(at))
