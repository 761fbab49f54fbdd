"""What every kind of export offers to the analysis, whatever file stands behind it."""

from __future__ import annotations

import re
from abc import ABC, abstractmethod
from collections.abc import Collection, Iterator, Sequence
from pathlib import Path

import polars as pl

from nvtxmoe.errors import NvtxmoeError
from nvtxmoe_analysis.readers import nsys_tables as tables
from nvtxmoe_analysis.readers.nsys_tables import Table

#: Rows worked on at a time. Small enough that temporaries are reused instead of mapped anew.
BATCH_ROWS = 1 << 18


class Export(ABC):
    """A read-only Nsight Systems export.

    Attributes:
        path: the file or folder that is read.
        source: what the user named; differs from ``path`` for a report exported to a cache.
        kind: ``sqlite`` or ``parquet``.
    """

    kind: str

    def __init__(self, path: Path, source: Path | None = None) -> None:
        self.path = path
        self.source = source or path
        self._before = self._stamps()
        self._open()
        self._columns = self._read_layout()

    def _open(self) -> None:  # noqa: B027  not every kind has something to open
        """Open what is read from later."""

    def _files(self) -> Sequence[Path]:
        """The files whose content must stay as it is while it is read."""
        return [self.path]

    def _stamps(self) -> list[tuple[int, ...]]:
        statuses = [file.stat() for file in self._files()]
        return [(status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns) for status in statuses]

    def require_unchanged(self) -> None:
        """Refuse what was read if a file was replaced or changed meanwhile: it may be of two captures.

        Raises:
            NvtxmoeError: it was.
        """
        try:
            if self._stamps() == self._before:
                return
        except FileNotFoundError:
            pass
        raise NvtxmoeError(
            "it changed while it was read", where=self.source, remedy="Run it again on a file that stays"
        )

    @abstractmethod
    def _read_layout(self) -> dict[str, tuple[str, ...]]:
        """Column names of every table that is there."""

    @abstractmethod
    def _read(
        self, name: str, columns: Sequence[str], only: tuple[str, Collection[int]] | None, row: bool
    ) -> pl.DataFrame:
        """The columns of a table in file order; see :meth:`read`."""

    @abstractmethod
    def _batches(
        self, name: str, columns: Sequence[str], only: tuple[str, Collection[int]] | None
    ) -> Iterator[pl.DataFrame]:
        """The same in parts of about BATCH_ROWS rows."""

    @abstractmethod
    def _row_count(self, name: str) -> int:
        """Number of rows of a table that is there."""

    @abstractmethod
    def read_blobs(self, domain_ids: Collection[int]) -> pl.DataFrame:
        """Binary NVTX payloads of the given domains: ``row`` (Int64, index in file order) and ``blob`` (Binary)."""

    def tables(self) -> tuple[str, ...]:
        """Names of the tables in the export."""
        return tuple(self._columns)

    def columns(self, table: Table) -> tuple[str, ...]:
        """Columns of a table as they stand in the file; empty when it is absent (exports are lazy)."""
        name = self._find(table)
        return self._columns[name] if name else ()

    def has(self, table: Table) -> bool:
        """Whether the table is there. nsys leaves out tables without rows."""
        return self._find(table) is not None

    def rows(self, table: Table) -> int:
        """Number of rows, 0 for an absent table; without reading them, so in SQLite the span of the rowids."""
        name = self._find(table)
        return self._row_count(name) if name else 0

    def read(
        self,
        table: Table,
        columns: Sequence[str] | None = None,
        *,
        only: tuple[str, Collection[int]] | None = None,
        row: bool = False,
    ) -> pl.DataFrame:
        """Read a table's columns, integers as Int64 and text as String, rows in file order.

        An absent table gives an empty frame, an absent optional column nulls.

        Parameters:
            columns: the wanted ones, by default all that are declared.
            only: (column, values): keep the rows whose integer column is one of the values.
            row: add ``row`` (Int64), the row's number in the file, which :meth:`read_blobs` uses too.

        Raises:
            NvtxmoeError: a required column is missing, or the file is damaged.
        """
        name, present, schema = self._plan(table, columns, only[:1] if only else ())
        if row:
            schema["row"] = pl.Int64
        if name is None:
            return pl.DataFrame(schema=schema)
        return self._conform(table, self._read(name, present, only, row), schema)

    def batches(
        self, table: Table, columns: Sequence[str], *, only: tuple[str, Collection[int]] | None = None
    ) -> Iterator[pl.DataFrame]:
        """Yield what :meth:`read` would return in parts of about BATCH_ROWS rows. An absent table yields nothing."""
        name, present, schema = self._plan(table, columns, only[:1] if only else ())
        if name is None:
            return
        if self._row_count(name) <= BATCH_ROWS:
            yield self.read(table, columns, only=only)
            return
        for part in self._batches(name, present, only):
            yield self._conform(table, part, schema)

    def _plan(
        self, table: Table, columns: Sequence[str] | None, filtered: Collection[str] = ()
    ) -> tuple[str | None, list[str], dict[str, type[pl.DataType]]]:
        """Name of the table in the file (None: absent), the wanted columns it has, and the types of all wanted.

        Columns that rows are ``filtered`` by must be there too.
        """
        selected_columns = list(columns) if columns is not None else [*table.columns, *table.optional]
        schema: dict[str, type[pl.DataType]] = {c: pl.String if c in table.text else pl.Int64 for c in selected_columns}
        name = self._find(table)
        if name is None:
            return None, [], schema
        present = self._columns[name]
        missing = [c for c in dict.fromkeys((*selected_columns, *filtered)) if c in table.columns and c not in present]
        if missing:
            raise NvtxmoeError(
                f"table {name} lacks the column{'s' if len(missing) > 1 else ''} {', '.join(missing)} "
                f"(it has {', '.join(present)})",
                where=self.source,
                remedy="Is it an Nsight Systems export of version 2023.4 or newer?",
            )
        return name, [c for c in selected_columns if c in present], schema

    def strings(self, ids: Collection[int]) -> dict[int, str]:
        """Texts of the given StringIds; unknown ids are left out."""
        frame = self.read(tables.STRINGS, only=("id", ids))
        return dict(zip(frame["id"].to_list(), frame["value"].to_list(), strict=True))

    def metadata(self, table: Table) -> dict[str, str]:
        """A name/value table as a dictionary (the last of repeated names)."""
        frame = self.read(table)
        return {n: v or "" for n, v in zip(frame["name"].to_list(), frame["value"].to_list(), strict=True)}

    def has_blob_column(self) -> bool:
        """Whether NVTX_EVENTS has a binaryData column at all (export schema 3.13 and newer)."""
        return tables.NVTX_BLOB in self.columns(tables.NVTX)

    def other_tables(self) -> tuple[str, ...]:
        """Names of tables whose name is that of an absent table and a version, as NVTX_EVENTS_V2."""
        absent = [table.name for table in tables.VERSIONED if not self.has(table)]
        return tuple(
            name
            for name in sorted(self._columns)
            if any(re.fullmatch(rf"{table}_?[vV]?[0-9]+", name) for table in absent)
        )

    def cuda_asked(self) -> bool | None:
        """Whether the capture was asked to trace CUDA; None where the export does not contain that."""
        settings = self.read(tables.CAPTURE_META).filter(pl.col("name").str.ends_with("COLLECT_CUDA_TRACE"))
        return None if settings.is_empty() else bool((settings["value"] == "true").any())

    def _find(self, table: Table) -> str | None:
        for name in (table.name, *table.aliases):
            if name in self._columns and set(table.columns) <= set(self._columns[name]):
                return name
        # A table of the right name that lacks columns is damage, not absence: read() names what is missing.
        return table.name if table.name in self._columns else None

    def _check_is_export(self) -> None:
        if tables.EXPORT_META.name not in self._columns and tables.STRINGS.name in self._columns:
            raise NvtxmoeError(
                f"an unfinished export: table {tables.EXPORT_META.name} is missing",
                where=self.source,
                remedy="`nsys export` failed: export again with an nsys at least as new as the one that captured",
            )
        if tables.EXPORT_META.name not in self._columns and tables.STRINGS.name not in self._columns:
            names = ", ".join(sorted(self._columns)[:8]) or "no table"
            raise NvtxmoeError(
                f"not an Nsight Systems export: neither {tables.EXPORT_META.name} nor {tables.STRINGS.name} is there "
                f"(found {names})",
                where=self.source,
                remedy="Make one with `nsys export --type sqlite --include-blobs=true -o OUT.sqlite REPORT.nsys-rep`",
            )

    def _conform(self, table: Table, frame: pl.DataFrame, schema: dict[str, type[pl.DataType]]) -> pl.DataFrame:
        """The columns of ``schema`` in its types; unsigned 64-bit ids of Parquet wrap to what SQLite stores."""
        columns = []
        for name, dtype in schema.items():
            values = frame[name] if name in frame.columns else None
            if values is None or values.null_count() == len(values):
                column = pl.repeat(None, len(frame), dtype=dtype, eager=True).alias(name)
            elif values.dtype.is_integer() if dtype == pl.Int64 else values.dtype == dtype:
                column = values.cast(dtype, wrap_numerical=True)
            else:
                expected_type = "integers belong" if dtype == pl.Int64 else "text belongs"
                raise self._bad_column(table, name, f"holds {values.dtype} where {expected_type}")
            if name in table.filled and column.null_count():
                raise self._bad_column(table, name, f"lacks a value in {column.null_count():,} of {len(column):,} rows")
            if name in tables.TIMES and not column.is_between(tables.LEAST_NS, tables.MOST_NS).all():
                raise self._bad_column(table, name, "has times beyond any capture's")
            columns.append(column)
        return pl.DataFrame(columns)

    def _bad_column(self, table: Table, column: str, what: str) -> NvtxmoeError:
        where = f"{self.source}, table {self._find(table)}"
        return NvtxmoeError(
            f"damaged: column {column} {what}", where=where, remedy="Export the report again, or copy it again"
        )
