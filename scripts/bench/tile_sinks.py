"""Where a tiled export is written: one SQLite file, or a folder with a Parquet file a table."""

from __future__ import annotations

import sqlite3
from pathlib import Path
from typing import Protocol

import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq

from scripts.bench.nsys_types import parquet_frame

#: Rows gathered before a Parquet row group is written.
ROW_GROUP_ROWS = 500_000


class Sink(Protocol):
    """Takes the rows of an export, table by table, in the order they shall stand in."""

    def append(self, table: str, frame: pl.DataFrame) -> None:
        """Add rows to a table; the frame has SQLite's types and the table's columns."""

    def close(self) -> None:
        """Write what is left."""


class SqliteSink:
    """Writes an SQLite export with the source's own table declarations."""

    def __init__(self, path: Path, declarations: list[str]) -> None:
        path.unlink(missing_ok=True)
        self._connection = sqlite3.connect(path)
        self._connection.execute("PRAGMA journal_mode = OFF")
        self._connection.execute("PRAGMA synchronous = OFF")
        for declaration in declarations:
            self._connection.execute(declaration)

    def append(self, table: str, frame: pl.DataFrame) -> None:
        """Insert rows in one batch."""
        placeholders = ", ".join("?" * frame.width)
        self._connection.executemany(f'INSERT INTO "{table}" VALUES ({placeholders})', frame.iter_rows())

    def close(self) -> None:
        """Commit and close the file."""
        self._connection.commit()
        self._connection.close()


class ParquetSink:
    """Writes a folder like nsys's ``--type parquetdir``: binaryData is bytes labelled as text."""

    def __init__(self, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        for old in folder.glob("*.parquet"):
            old.unlink()
        self._folder = folder
        self._waiting: dict[str, list[pl.DataFrame]] = {}
        self._writers: dict[str, pq.ParquetWriter] = {}

    def append(self, table: str, frame: pl.DataFrame) -> None:
        """Gather rows and write a row group when there are enough."""
        waiting = self._waiting.setdefault(table, [])
        waiting.append(parquet_frame(table, frame))
        if sum(part.height for part in waiting) >= ROW_GROUP_ROWS:
            self._flush(table)

    def close(self) -> None:
        """Write the last row groups; a table without rows gets no file, as with nsys."""
        for table in list(self._waiting):
            self._flush(table)
        for writer in self._writers.values():
            writer.close()

    def _flush(self, table: str) -> None:
        parts = [part for part in self._waiting.pop(table) if part.height]
        if not parts:
            return
        rows = mislabelled(pl.concat(parts).to_arrow(compat_level=pl.CompatLevel.oldest()))
        if table not in self._writers:
            self._writers[table] = pq.ParquetWriter(self._folder / f"{table}.parquet", rows.schema)
        self._writers[table].write_table(rows)


def mislabelled(rows: pa.Table) -> pa.Table:
    """Label binaryData as UTF-8 text though its bytes are none, which is what nsys does."""
    index = rows.schema.get_field_index("binaryData")
    if index < 0:
        return rows
    column = rows.column(index).cast(pa.binary())
    text = pa.chunked_array([chunk.view(pa.string()) for chunk in column.chunks], type=pa.string())
    return rows.set_column(index, "binaryData", text)
