"""moe_step_activations: the counts of every step themselves, from which all other tables of counts can be made."""

from __future__ import annotations

import numpy as np
import polars as pl
import pyarrow as pa

from nvtxmoe_analysis.core.grouping import in_order
from nvtxmoe_analysis.events.tables import CountTable
from nvtxmoe_analysis.metrics.run_metrics import RunMetrics


def build(results: RunMetrics) -> pl.DataFrame:
    """One row a (step, layer) of each group of ranks that shares tokens.

    Columns: ``rank`` (the lowest of the group), ``step``, ``layer_idx``, ``num_tokens`` (Int64), ``counts`` (lists of
    the smallest unsigned type that holds all counts, in the file List(UInt32): assignments of expert 0, 1, ..., as many
    as the cell has experts).
    """
    counts = results.routing.counts
    frame = counts.cells.select("rank", "step", pl.col("layer").alias("layer_idx"), "num_tokens")
    whole = frame.with_columns(counts=_lists(counts))
    by = ("rank", "step", "layer_idx")
    if in_order(*(frame[name].to_numpy() for name in by)):  # as a rule: a large table is not copied
        return whole
    return whole.sort(by, maintain_order=True)


def _lists(counts: CountTable) -> pl.Series:
    """A list a cell, without its padding; on the matrix's own memory where there is none."""
    number = counts.cells["num_experts"].to_numpy()
    width = counts.matrix.shape[1]
    full = bool(np.all(number == width))
    flat = counts.matrix.reshape(-1) if full else counts.matrix[np.arange(width) < number[:, None]]
    bounds = np.concatenate([np.zeros(1, dtype=np.int64), np.cumsum(number)])
    made: pl.Series = pl.from_arrow(pa.LargeListArray.from_arrays(pa.array(bounds), pa.array(flat)))  # type: ignore[assignment]
    return made
