"""Ranks that share experts, made in a test, and rows of the balance metrics that come of them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import polars as pl
import pytest

from tests.support.export_builder import Export, Process
from tests.support.written_results import Written

STEM = "moe_balance_metrics"
#: (step, layer) -> counts
Cells = dict[tuple[int, int], list[int]]


def worker_of(
    export: Export, rank: int, world_size: int, cells: Cells, held: Sequence[int] | None, **process: Any
) -> Process:
    """A rank of expert parallelism that holds some experts, with its counts. ``meta`` may change what it says."""
    layers = 1 + max(layer for _, layer in cells)
    experts = max(map(len, cells.values()))
    meta = {"ep_rank": rank, "ep_size": world_size, **process.pop("meta", {})}
    worker = Process(
        export, pid=100 + rank, rank=rank, world_size=world_size, layers=layers, experts=experts, meta=meta, **process
    )
    for layer in worker.meta["layers"]:
        layer["local_experts"] = None if held is None else list(held)
    worker.send_meta()
    for step in sorted({step for step, _ in cells}):
        with worker.step(step):
            worker.kernel()
    for (step, layer), counts in cells.items():
        worker.counts(step, layer, counts, tokens=sum(counts) // worker.top_k)
    return worker


def expert_parallel(cells: Cells, ranks: Sequence[Sequence[int] | None], **process: Any) -> Export:
    """One tensor-parallel group whose ranks hold these experts."""
    export = Export()
    for rank, held in enumerate(ranks):
        worker_of(export, rank, len(ranks), cells, held, tp_size=len(ranks), **process)
    return export


def value(found: Written, layer: int | None, project: str, metric: str, over: str, window: str = "steps") -> Any:
    """Value, least and largest step, and samples of one row of the CSV."""
    row = one_row(found, layer, project, metric, over, window)
    return row["value"], row["step_min"], row["step_max"], row["samples"]


def one_row(found: Written, layer: int | None, project: str, metric: str, over: str, window: str) -> dict[str, Any]:
    table = pl.read_csv(found.folder / f"{STEM}.csv")
    of_layer = pl.col("layer_idx").is_null() if layer is None else pl.col("layer_idx") == layer
    rows = table.filter(of_layer, project=project, metric=metric, over=over, window=window)
    return rows.row(0, named=True) if len(rows) == 1 else pytest.fail(f"{len(rows)} rows")
