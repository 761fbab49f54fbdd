"""Write tables as nsys writes its exports: SQLite, or a folder of Parquet files, with nsys's column types."""

from __future__ import annotations

import os
import sqlite3
from collections.abc import Iterator, Mapping
from pathlib import Path

import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq
import sqlite_utils

from nvtxmoe.errors import NvtxmoeError
from nvtxmoe_analysis.core.file_set import replace_set, staging
from nvtxmoe_analysis.core.files import STAGE_PREFIX, whole_file, whole_folder
from nvtxmoe_analysis.readers import nsys_tables
from nvtxmoe_analysis.readers.nsys_export import REPORT_SUFFIX
from nvtxmoe_analysis.readers.nsys_tables import Table
from nvtxmoe_analysis.readers.open import open_export

SQLITE_SUFFIXES = (".sqlite", ".db")

Frames = Mapping[Table, pl.DataFrame]

#: Columns that nsys declares NOT NULL in SQLite, beside those named ``start`` of events.
NOT_NULL: Mapping[Table, frozenset[str]] = {
    nsys_tables.KERNEL: frozenset({"start", "end", "deviceId", "streamId", "demangledName"}),
    nsys_tables.MEMCPY: frozenset({"start", "end", "deviceId", "streamId", "bytes", "copyKind"}),
    nsys_tables.MEMSET: frozenset({"start", "end", "deviceId", "streamId", "bytes"}),
    nsys_tables.GRAPH_TRACE: frozenset({"start", "end", "deviceId", "streamId"}),
    nsys_tables.RUNTIME: frozenset({"start", "end", "nameId", "returnValue"}),
    nsys_tables.GRAPH_NODES: frozenset({"start", "graphNodeId"}),
    nsys_tables.NVTX: frozenset({"start", "eventType"}),
    nsys_tables.PAYLOAD_ENTRIES: frozenset({"domainId", "schemaId", "idx"}),
    nsys_tables.STRINGS: frozenset({"id", "value"}),
    nsys_tables.EXPORT_META: frozenset({"name"}),
    nsys_tables.CAPTURE_META: frozenset({"name"}),
    nsys_tables.DIAGNOSTICS: frozenset({"timestamp", "severity", "text"}),
    nsys_tables.GPU_INFO: frozenset({"id"}),
    nsys_tables.COPY_KINDS: frozenset({"id"}),
}
PRIMARY_KEYS: Mapping[Table, str] = {nsys_tables.STRINGS: "id", nsys_tables.COPY_KINDS: "id"}

#: Types of integer columns in nsys's Parquet files; all others are UInt64.
PARQUET_TYPES: Mapping[str, type[pl.DataType]] = {
    **dict.fromkeys(("start", "end", "timestamp", "int64Value"), pl.Int64),
    **dict.fromkeys(("eventType", "textId", "deviceId", "correlationId", "returnValue"), pl.UInt32),
    "severity": pl.Int32,
}
PARQUET_IDS: Mapping[Table, type[pl.DataType]] = {
    nsys_tables.STRINGS: pl.Int32,
    nsys_tables.GPU_INFO: pl.UInt32,
    nsys_tables.COPY_KINDS: pl.Int64,
}
_BOUNDS: Mapping[type[pl.DataType], tuple[int, int]] = {
    pl.Int32: (-(1 << 31), (1 << 31) - 1),
    pl.UInt32: (0, (1 << 32) - 1),
}
#: Columns that rise in small steps: stored as differences.
_RISING = ("start", "end", "timestamp", "correlationId", "graphNodeId", "originalGraphNodeId")


def check_target(out: Path, *inputs: Path) -> None:
    """Refuse to overwrite an input, or anything that is not an export.

    Raises:
        NvtxmoeError: ``out`` is one of the inputs, or exists and is not an export of the same kind.
    """
    as_file = is_sqlite(out)
    if any(os.path.realpath(out) == os.path.realpath(source) for source in inputs):
        raise NvtxmoeError("input and output are the same", where=out, remedy="Name another output")
    if out.suffix == REPORT_SUFFIX:
        raise NvtxmoeError(
            "reports can't be written, only exports",
            where=out,
            remedy="Name a .sqlite file, or a folder for Parquet files",
        )
    if not out.exists() or (out.is_dir() and not as_file and not any(out.iterdir())):
        return
    remedy = "Name another output"
    if out.is_dir() == as_file:
        existing = "a folder" if as_file else "a file"
        output = "a SQLite file" if as_file else "a folder of Parquet files (SQLite needs a name in .sqlite or .db)"
        raise NvtxmoeError(f"{existing}, where {output} would be written", where=out, remedy=remedy)
    try:
        open_export(out)
    except NvtxmoeError as error:
        raise NvtxmoeError(
            f"exists and isn't an export, so it isn't replaced ({error.what})", where=out, remedy=remedy
        ) from error
    # What a killed writer of ours left is hidden: it goes, or is finished.
    entries = [f for f in out.iterdir() if not f.name.startswith(STAGE_PREFIX)] if out.is_dir() else []
    strangers = [f.name for f in entries if f.suffix != ".parquet" or not f.is_file()]
    if strangers:
        raise NvtxmoeError(f"the folder holds other files too ({min(strangers)})", where=out, remedy=remedy)


def is_sqlite(out: Path) -> bool:
    """Return True if an output of this name is a SQLite file, False if it is a folder of Parquet files."""
    return out.suffix.lower() in SQLITE_SUFFIXES


def write_export(frames: Frames, out: Path) -> None:
    """Write all tables to ``out``, or nothing; an earlier export is replaced last.

    Parameters:
        frames: integers as Int64, text as String, ``binaryData`` as Binary.

    Raises:
        NvtxmoeError: ``out`` can't be written.
    """
    try:
        if is_sqlite(out):
            with whole_file(out) as stage:
                _write_sqlite(frames, stage)
        else:
            _write_folder(frames, out)
    except (OSError, sqlite3.Error, pa.ArrowException) as error:
        reason = getattr(error, "strerror", None) or error
        raise NvtxmoeError(f"cannot be written: {reason}", where=out, remedy="Name another output") from error


def _write_folder(frames: Frames, out: Path) -> None:
    """Write a folder of Parquet files. Of an earlier export in it all tables are replaced, or none."""
    if not out.is_dir():
        with whole_folder(out) as stage:
            stage.mkdir()
            _write_parquet(frames, stage)
        return
    with staging(out) as stage:
        _write_parquet(frames, stage)
        new = sorted(file.name for file in stage.iterdir())
        replace_set(out, stage, new, sorted({file.name for file in out.glob("*.parquet")} - set(new)))


def _write_sqlite(frames: Frames, path: Path) -> None:
    # Opened by Python first: sqlite3 would only say "unable to open database file".
    path.touch(exist_ok=False)
    connection = sqlite3.connect(path, isolation_level=None)
    try:
        database = sqlite_utils.Database(connection)
        database.execute("PRAGMA journal_mode = OFF")
        database.execute("PRAGMA synchronous = OFF")
        database.execute("BEGIN")
        for table, frame in frames.items():
            database.execute(f'CREATE TABLE "{table.name}" ({", ".join(_declared(table, frame))})')
            marks = ", ".join("?" * frame.width)
            connection.executemany(f'INSERT INTO "{table.name}" VALUES ({marks})', frame.iter_rows())
        database.execute("COMMIT")
        database.vacuum()
    finally:
        connection.close()


def _declared(table: Table, frame: pl.DataFrame) -> Iterator[str]:
    for column in frame.columns:
        # nsys calls the payload's bytes TEXT; what is stored are BLOBs.
        kind = "TEXT" if column in table.text or column == nsys_tables.NVTX_BLOB else "INTEGER"
        required = column in NOT_NULL.get(table, ()) and not frame[column].null_count()
        key = " PRIMARY KEY" if PRIMARY_KEYS.get(table) == column else ""
        yield f'"{column}" {kind}{" NOT NULL" if required else ""}{key}'


def _write_parquet(frames: Frames, folder: Path) -> None:
    for table, frame in frames.items():
        columns = {c: _arrow(table, frame[c]) for c in frame.columns}
        rising = [c for c in _RISING if c in columns]
        pq.write_table(
            pa.table(columns),
            folder / f"{table.name}.parquet",
            compression="zstd",
            compression_level=15,
            use_dictionary=[c for c in columns if c not in rising and c != nsys_tables.NVTX_BLOB],
            column_encoding=dict.fromkeys(rising, "DELTA_BINARY_PACKED"),
            write_statistics=[c for c in columns if c != nsys_tables.NVTX_BLOB],
        )


def _arrow(table: Table, column: pl.Series) -> pa.Array | pa.ChunkedArray:
    if column.name == nsys_tables.NVTX_BLOB:
        # Labelled text as nsys does, though it is not: nobody looks at the bytes.
        return pa.array(column.to_list(), pa.binary()).cast(pa.string(), safe=False)
    if column.name in table.text:
        return pa.array(column.to_list(), pa.large_string())
    kind = PARQUET_IDS[table] if column.name == "id" else PARQUET_TYPES.get(column.name, pl.UInt64)
    low, high = _BOUNDS.get(kind, (None, None))
    # A value too wide for nsys's type keeps its own; 64-bit ids change only their sign.
    if low is not None and not column.drop_nulls().is_between(low, high).all():
        kind = pl.Int64
    return column.cast(kind, wrap_numerical=True).to_arrow()
