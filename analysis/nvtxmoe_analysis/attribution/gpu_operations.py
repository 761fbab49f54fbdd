"""GPU operations of an export: kernels, copies, memsets, and whole graphs where only those were traced."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator
from dataclasses import dataclass

import polars as pl

from nvtxmoe_analysis.core.progress import Progress
from nvtxmoe_analysis.readers import nsys_tables
from nvtxmoe_analysis.readers.base import Export
from nvtxmoe_analysis.readers.nsys_tables import Table

KINDS = ("kernel", "memcpy", "memset", "graph")

_COLUMNS = ("start", "end", "globalPid", "correlationId")

#: Within a process, where an operation ran.
STREAM = ("deviceId", "contextId", "streamId")

#: Names of operations that have no kernel, as `nsys stats` spells them; their ids are negative.
MEMSET_NAME, GRAPH_NAME, COPY_NAMES = -1, -2, -16


@dataclass(frozen=True)
class Operations:
    """A batch of operations of one kind.

    Attributes:
        kind: index into KINDS.
        frame: ``start``, ``end`` (ns), ``globalPid``, ``correlationId``, ``graphNodeId`` (null: launched eagerly),
            ``name`` (StringIds id of a kernel, a negative id otherwise; see :func:`operation_names`), ``at`` (Int64,
            the row's position among those of its kind), and STREAM, but for whole graphs.
    """

    kind: int
    frame: pl.DataFrame


def read_operations(export: Export, progress: Progress) -> Iterator[Operations]:
    """Yield the operations of every kind in batches."""
    rows = sum(
        export.rows(table)
        for table in (nsys_tables.KERNEL, nsys_tables.MEMCPY, nsys_tables.MEMSET, nsys_tables.GRAPH_TRACE)
    )
    progress.begin(f"{export.source.name}: {rows:,} GPU operations", rows)

    def batches(table: Table, columns: tuple[str, ...]) -> Iterator[pl.DataFrame]:
        return _numbered(progress.over(export.batches(table, columns)))

    for batch in batches(nsys_tables.KERNEL, (*_COLUMNS, *STREAM, "graphNodeId", "demangledName")):
        yield Operations(0, batch.rename({"demangledName": "name"}))
    for batch in batches(nsys_tables.MEMCPY, (*_COLUMNS, *STREAM, "graphNodeId", "copyKind")):
        yield Operations(1, batch.with_columns(name=COPY_NAMES - pl.col("copyKind")).drop("copyKind"))
    for batch in batches(nsys_tables.MEMSET, (*_COLUMNS, *STREAM, "graphNodeId")):
        yield Operations(2, batch.with_columns(name=pl.lit(MEMSET_NAME, pl.Int64)))
    for batch in batches(nsys_tables.GRAPH_TRACE, _COLUMNS):
        yield Operations(3, batch.with_columns(graphNodeId=pl.lit(None, pl.Int64), name=pl.lit(GRAPH_NAME, pl.Int64)))


def read_streams(export: Export) -> Iterator[Operations]:
    """Yield the times, launches and streams of all operations: ``at``, ``start``, ``end``, ``globalPid``,
    ``correlationId`` and STREAM."""
    for kind, table in enumerate(nsys_tables.OPERATIONS):
        for batch in _numbered(export.batches(table, (*_COLUMNS, *STREAM))):
            yield Operations(kind, batch)


def _numbered(batches: Iterable[pl.DataFrame]) -> Iterator[pl.DataFrame]:
    """Batches of one table with ``at``."""
    first = 0
    for batch in batches:
        yield batch.with_columns(at=pl.int_range(first, first + len(batch), dtype=pl.Int64))
        first += len(batch)


def operation_names(export: Export, ids: Collection[int]) -> dict[int, str]:
    """Texts of ``Operations.frame["name"]``: demangled kernels, and copies and memsets as `nsys stats` has them."""
    labels = export.read(nsys_tables.COPY_KINDS)
    known = dict(zip(labels["id"].to_list(), labels["label"].to_list(), strict=True))
    names = export.strings([i for i in ids if i >= 0])
    for ident in ids:
        if ident <= COPY_NAMES:
            kind = COPY_NAMES - ident
            names[ident] = f"[CUDA memcpy {known.get(kind) or f'kind {kind}'}]"
    return names | {MEMSET_NAME: "[CUDA memset]", GRAPH_NAME: "[CUDA graph]"}
