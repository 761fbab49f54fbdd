"""The least that any pipeline over the same export has to do: the yardstick of analyze_speed.py.

``python scripts/bench/bare_pipeline.py INPUT`` reads the columns that attribution needs, joins every kernel with its
launch call and sums kernel time by process and call name. No ranges, no payloads, no copies, no checks, no files.
"""

from __future__ import annotations

import sys
from pathlib import Path

import connectorx
import polars as pl

COLUMNS = {
    "CUPTI_ACTIVITY_KIND_KERNEL": ["start", "end", "globalPid", "correlationId", "graphNodeId", "demangledName"],
    "CUPTI_ACTIVITY_KIND_RUNTIME": ["start", "globalTid", "correlationId", "nameId"],
}


def read(path: Path, table: str) -> pl.LazyFrame:
    """The table's columns, ids as Int64."""
    if path.is_dir():
        frame = pl.scan_parquet(path / f"{table}.parquet").select(COLUMNS[table])
    else:
        columns = ", ".join(f'"{c}"' for c in COLUMNS[table])
        (rows,) = connectorx.read_sql(
            f"sqlite://{path.resolve()}", f"SELECT max(rowid) AS n FROM {table}", return_type="polars"
        )["n"]
        halves = [f"SELECT {columns} FROM {table} WHERE rowid {half} {rows // 2}" for half in ("<=", ">")]
        frame = pl.DataFrame(connectorx.read_sql(f"sqlite://{path.resolve()}", halves, return_type="arrow")).lazy()
    return frame.with_columns(pl.all().cast(pl.Int64))


def key(column: str) -> pl.Expr:
    """Process and correlation id in one number."""
    return ((pl.col(column) // (1 << 24)) % (1 << 24)) * (1 << 32) + pl.col("correlationId")


def main() -> None:
    """Print the sums."""
    path = Path(sys.argv[1])
    kernels = read(path, "CUPTI_ACTIVITY_KIND_KERNEL").with_columns(key=key("globalPid"))
    calls = read(path, "CUPTI_ACTIVITY_KIND_RUNTIME").select(key=key("globalTid"), nameId="nameId", at="start")
    joined = kernels.join(calls, on="key", how="left")
    sums = joined.group_by("globalPid", "nameId").agg(pl.len(), (pl.col("end") - pl.col("start")).sum()).collect()
    print(sums)


if __name__ == "__main__":
    main()
