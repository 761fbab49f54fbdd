"""SQLite exports: large tables by connectorx, the rest by sqlite3. The file stays as it is.

Reading 1,000,000 rows of 8 integers in two spans at a time takes 0.84 s of CPU with connectorx 0.4.6, 1.15 s with
adbc-driver-sqlite 1.13 and 3.8 s with sqlite3 and polars (Python 3.11). connectorx opens what it is given as a URI, so
``mode=ro`` keeps it from writing; without that it would fold a write-ahead log beside the file into it, and delete it.
"""

from __future__ import annotations

import shutil
import sqlite3
import tempfile
import threading
from collections.abc import Collection, Iterator, Sequence
from contextlib import closing
from pathlib import Path
from typing import Any
from urllib.parse import quote

import polars as pl

from nvtxmoe.errors import NvtxmoeError
from nvtxmoe.special_files import refuse_companions
from nvtxmoe_analysis.core.parallel import ordered_map
from nvtxmoe_analysis.readers import nsys_tables
from nvtxmoe_analysis.readers.base import BATCH_ROWS, Export

MAGIC = b"SQLite format 3\0"
#: Longer paths SQLite does not open (MAX_PATHNAME of its os_unix.c).
MOST_PATH_BYTES = 512
#: What reading a damaged file raises: sqlite3 decodes even the messages of its errors.
SQLITE_ERRORS = (sqlite3.Error, UnicodeDecodeError)
#: Name of a database in a folder of our own.
_COPY = "export.sqlite"
#: Tables and their columns, in order. sqlite-utils would ask for the same and takes half a second to import.
_COLUMNS = """
SELECT t.name, c.name FROM sqlite_master t, pragma_table_info(t.name) c WHERE t.type = 'table' ORDER BY t.rowid, c.cid
"""
#: From this many rows on connectorx takes less CPU time than sqlite3: each of its queries takes 0.06 s at least.
LARGE_ROWS = 30_000
#: First bytes of compressed files, and what unpacks them.
PACKED = {b"\xfd7zXZ\x00": "xz -dk", b"\x1f\x8b": "gzip -dk", b"\x28\xb5\x2f\xfd": "zstd -d"}


class SqliteExport(Export):
    """An export made by ``nsys export --type sqlite``."""

    kind = "sqlite"

    def __init__(self, path: Path, source: Path | None = None) -> None:
        self._lock = threading.Lock()
        self._spans: dict[str, tuple[int, int]] = {}
        super().__init__(path, source)
        self._check_is_export()

    def _open(self) -> None:
        refuse_companions(self.path)
        check_whole(self.path, self.source)
        try:
            self._private = _private_copy(self.path)
            self._uri = _read_only_uri(self.path if self._private is None else Path(self._private.name, _COPY))
            self._db = sqlite3.connect(self._uri, uri=True, check_same_thread=False)
        except (*SQLITE_ERRORS, OSError) as error:
            remedy = f"Check who may read it; SQLite takes paths of {MOST_PATH_BYTES} bytes"
            raise NvtxmoeError(f"cannot be opened: {error}", where=self.source, remedy=remedy) from error

    def _read_layout(self) -> dict[str, tuple[str, ...]]:
        try:
            rows = self._db.execute(_COLUMNS).fetchall()
        except SQLITE_ERRORS as error:
            raise self._damaged(error) from error
        layout: dict[str, tuple[str, ...]] = {}
        for table, column in rows:
            layout[table] = (*layout.get(table, ()), column)
        return layout

    def _read(
        self, name: str, columns: Sequence[str], only: tuple[str, Collection[int]] | None, row: bool
    ) -> pl.DataFrame:
        columns = [*columns, "row"] if row else columns
        query = self._query(name, columns, only)
        low, high = self._rowid_span(name)
        if high - low < LARGE_ROWS:
            return self._read_small(query, columns, name)
        return pl.concat(self._read_spans(name, query, -(-(high - low + 1) // 2)), rechunk=True)

    def _batches(
        self, name: str, columns: Sequence[str], only: tuple[str, Collection[int]] | None
    ) -> Iterator[pl.DataFrame]:
        return self._read_spans(name, self._query(name, columns, only), BATCH_ROWS)

    def _read_spans(self, name: str, query: str, rows: int) -> Iterator[pl.DataFrame]:
        """The query's rows in file order, in spans of so many rowids, several being read at once."""
        spans = (f"{query} AND rowid BETWEEN {at} AND {at + rows - 1}" for at in self._span_starts(name, rows))
        return ordered_map(lambda span: self._read_large(span, name), spans)

    def _span_starts(self, name: str, rows: int) -> Iterator[int]:
        """First rowid of each span of so many that holds any: a damaged one may be 2^60 past the others."""
        at, high = self._rowid_span(name)
        while at <= high:
            yield at
            (following,) = self._first_row(f'SELECT min(rowid) FROM "{name}" WHERE rowid >= {at + rows}', name)
            at = high + 1 if following is None else following

    def _query(self, name: str, columns: Sequence[str], only: tuple[str, Collection[int]] | None) -> str:
        where = "TRUE"
        if only is not None:
            column, values = only
            where = f"{_quoted(column)} IN ({', '.join(str(int(v)) for v in values)})"
        return f'SELECT {self._selected(columns)} FROM "{name}" WHERE {where}'

    def _read_small(self, query: str, columns: Sequence[str], name: str) -> pl.DataFrame:
        try:
            with self._lock:
                rows = self._db.execute(query).fetchall()
            return pl.DataFrame(rows, schema=list(columns), orient="row", infer_schema_length=None)
        except (*SQLITE_ERRORS, pl.exceptions.PolarsError, TypeError) as error:  # several types in a column
            raise self._damaged(error, name) from error

    def _read_large(self, query: str, name: str) -> pl.DataFrame:
        import connectorx  # noqa: PLC0415  small exports need neither it nor pyarrow, which it loads

        try:
            # One query a call: of several, connectorx returns the rows in the order in which they finish.
            arrow = connectorx.read_sql("sqlite://" + quote(self._uri), query, return_type="arrow")
        except RuntimeError as error:  # connectorx raises nothing more particular
            raise self._damaged(error, name) from error
        frame = pl.from_arrow(arrow)
        assert isinstance(frame, pl.DataFrame)
        return frame

    @staticmethod
    def _selected(columns: Sequence[str]) -> str:
        return ", ".join('rowid AS "row"' if c == "row" else _quoted(c) for c in columns)

    def _row_count(self, name: str) -> int:
        # nsys numbers rows from 1 without gaps; a trimmed table keeps that. Exact where it counts: len(frame).
        low, high = self._rowid_span(name)
        return high - low + 1

    def _rowid_span(self, name: str) -> tuple[int, int]:
        if name not in self._spans:
            self._spans[name] = self._find_span(name)
        return self._spans[name]

    def _find_span(self, name: str) -> tuple[int, int]:
        # Asked for apart, each end is one step in the tree; together they scan the table.
        query = f'SELECT (SELECT min(rowid) FROM "{name}"), (SELECT max(rowid) FROM "{name}")'
        low, high = self._first_row(query, name)
        return (1, 0) if low is None else (low, high)

    def _first_row(self, query: str, name: str) -> tuple[Any, ...]:
        try:
            with self._lock:
                row: tuple[Any, ...] = self._db.execute(query).fetchone()
        except SQLITE_ERRORS as error:
            raise self._damaged(error, name) from error
        return row

    def read_blobs(self, domain_ids: Collection[int]) -> pl.DataFrame:
        """See :class:`Export`."""
        schema = {"row": pl.Int64, "blob": pl.Binary}
        if not self.has_blob_column():
            return pl.DataFrame(schema=schema)
        inside = ", ".join(str(int(d)) for d in domain_ids)
        # The column is declared TEXT; only cast to what it holds do readers take it.
        query = (
            f'SELECT rowid AS "row", CAST("{nsys_tables.NVTX_BLOB}" AS BLOB) AS "blob" FROM "{nsys_tables.NVTX.name}" '
            f'WHERE "{nsys_tables.NVTX_BLOB}" IS NOT NULL AND domainId IN ({inside})'
        )
        low, high = self._rowid_span(nsys_tables.NVTX.name)
        if high - low >= LARGE_ROWS:
            parts = self._read_spans(nsys_tables.NVTX.name, query, -(-(high - low + 1) // 2))
            return pl.concat([part.cast(schema) for part in parts])  # type: ignore[arg-type]
        try:
            with self._lock:
                rows = self._db.execute(query).fetchall()
        except SQLITE_ERRORS as error:
            raise self._damaged(error, nsys_tables.NVTX.name) from error
        return pl.DataFrame(rows, schema=schema, orient="row")

    def _damaged(self, error: Exception, table: str | None = None) -> NvtxmoeError:
        where = f"{self.source}, table {table}" if table else str(self.source)
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        return NvtxmoeError(
            f"SQLite cannot read it: {reason}",
            where=where,
            remedy="Another program has it open: close that, or copy the file"
            if "database is locked" in reason
            else "Export the report again, or copy the file again",
        )


def check_whole(path: Path, source: Path) -> None:
    """Refuse what is not SQLite and what is shorter than its own header says (a copy that broke off).

    Source: the header's page size (bytes 16-17, 1 meaning 65536) and page count (28-31), SQLite file format 1.3.
    """
    with path.open("rb") as file:
        header = file.read(100)
    remedy = "Expected a .nsys-rep, a SQLite export, or a folder of Parquet files"
    if not header:
        raise NvtxmoeError("the file is empty", where=source, remedy=remedy)
    packed = next((program for magic, program in PACKED.items() if header.startswith(magic)), None)
    if packed is not None:
        raise NvtxmoeError("a compressed file", where=source, remedy=f"Unpack it first: {packed} {source}")
    if header[:16] != MAGIC:
        raise NvtxmoeError("not a SQLite database", where=source, remedy=remedy)
    if len(header) < 100:
        raise NvtxmoeError("truncated within the SQLite header", where=source, remedy="Copy or export it again")
    page_bytes = int.from_bytes(header[16:18], "big")
    page_bytes = 65536 if page_bytes == 1 else page_bytes
    expected_bytes = page_bytes * int.from_bytes(header[28:32], "big")
    actual_bytes = path.stat().st_size
    if actual_bytes < expected_bytes:
        raise NvtxmoeError(
            f"truncated: {actual_bytes} bytes of the {expected_bytes} that its header says",
            where=source,
            remedy="Copy or export it again",
        )


def _read_only_uri(path: Path) -> str:
    """Return the URI with which SQLite neither changes a database nor makes a file beside it.

    A database in WAL mode needs ``immutable=1``: SQLite would make an empty log and its index even to read. For others
    ``mode=ro`` does, and sees a lock and the journal of a program that was killed.
    """
    uri = f"file:{quote(str(path.resolve()))}?mode=ro"
    return f"{uri}&immutable=1" if _is_in_wal_mode(path) and not _log_bytes(path) else uri


def _private_copy(path: Path) -> tempfile.TemporaryDirectory[str] | None:
    """Copy a database whose write-ahead log holds changes, with these changes, into a folder of its own; else None.

    SQLite cannot read the log without making or changing its index, which is beside the database. The copy has no log:
    Python and connectorx have an SQLite each, and two in one process must not share an index, which one of them may cut
    while the other reads it (https://www.sqlite.org/howtocorrupt.html, 2.2.1).

    Raises:
        OSError: there is no room for the copy.
        sqlite3.OperationalError: another program wrote meanwhile.
    """
    if not _is_in_wal_mode(path) or not _log_bytes(path):
        return None
    originals = (path.resolve(), _log(path))
    before = [(file.stat().st_size, file.stat().st_mtime_ns) for file in originals]
    folder = tempfile.TemporaryDirectory(prefix="nvtxmoe-")
    for file, name in zip(originals, (_COPY, f"{_COPY}-wal"), strict=True):
        shutil.copyfile(file, Path(folder.name, name))
    if before != [(file.stat().st_size, file.stat().st_mtime_ns) for file in originals]:
        raise sqlite3.OperationalError("another program is writing it")
    with closing(sqlite3.connect(Path(folder.name, _COPY))) as database:
        database.execute("PRAGMA journal_mode = DELETE")
    return folder


def _is_in_wal_mode(path: Path) -> bool:
    """Whether the header's read version (byte 19) is 2, SQLite file format 1.3.1."""
    with path.open("rb") as file:
        return file.read(20)[19:] == b"\x02"


def _log(path: Path) -> Path:
    resolved = path.resolve()
    return resolved.with_name(f"{resolved.name}-wal")


def _log_bytes(path: Path) -> int:
    log = _log(path)
    return log.stat().st_size if log.is_file() else 0


def _quoted(column: str) -> str:
    return '"' + column.replace('"', '""') + '"'
