"""GPU operations of an export: kernels, copies, memsets, and whole graphs where only those were traced."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import polars as pl

from nvtxmoe_analysis.exports import tables
from nvtxmoe_analysis.exports.base import Export

KINDS = ("kernel", "memcpy", "memset", "graph")

_COLUMNS = ("start", "end", "globalPid", "correlationId")

#: Names of operations that have no kernel, as `nsys stats` spells them; their ids are negative.
MEMSET_NAME, GRAPH_NAME, COPY_NAMES = -1, -2, -16


@dataclass(frozen=True)
class Operations:
    """Operations of one kind.

    Attributes:
        kind: index into KINDS.
        frame: ``start``, ``end`` (ns), ``globalPid``, ``correlationId``, ``graphNodeId`` (null: launched eagerly),
            ``name`` (key of ``names``).
        names: by StringIds id for kernels, by a negative id otherwise.
    """

    kind: int
    frame: pl.DataFrame
    names: dict[int, str]


def read_operations(export: Export) -> Iterator[Operations]:
    """Yield the operations of each kind, one table in memory at a time."""
    kernels = export.read(tables.KERNEL, (*_COLUMNS, "graphNodeId", "demangledName"))
    names = export.strings(kernels["demangledName"].drop_nulls().unique().to_list())
    yield Operations(0, kernels.rename({"demangledName": "name"}), names)
    del kernels

    copies = export.read(tables.MEMCPY, (*_COLUMNS, "graphNodeId", "copyKind"))
    kinds = copies["copyKind"].drop_nulls().unique().to_list()
    labels = export.read(tables.COPY_KINDS)
    known = dict(zip(labels["id"].to_list(), labels["label"].to_list(), strict=True))
    yield Operations(
        1,
        copies.with_columns(name=COPY_NAMES - pl.col("copyKind")).drop("copyKind"),
        {COPY_NAMES - k: f"[CUDA memcpy {known.get(k) or f'kind {k}'}]" for k in kinds},
    )

    memsets = export.read(tables.MEMSET, (*_COLUMNS, "graphNodeId"))
    yield Operations(2, memsets.with_columns(name=pl.lit(MEMSET_NAME, pl.Int64)), {MEMSET_NAME: "[CUDA memset]"})

    graphs = export.read(tables.GRAPH_TRACE, _COLUMNS).with_columns(
        graphNodeId=pl.lit(None, pl.Int64), name=pl.lit(GRAPH_NAME, pl.Int64)
    )
    yield Operations(3, graphs, {GRAPH_NAME: "[CUDA graph]"})
