"""GPU time of every (step, layer) of one export: sums, unions of intervals, kernels by name."""

from __future__ import annotations

import numpy as np
import polars as pl

from nvtxmoe_analysis.attribution.ranges import PHASE_NAMES
from nvtxmoe_analysis.core.arrays import Ints
from nvtxmoe_analysis.core.grouping import MOST_KEYS, dense, sums
from nvtxmoe_analysis.core.parallel import ordered_map

LAUNCHED_BY = ("none", "eager", "graph", "mixed")
TIMED_KINDS = ("kernel", "memcpy", "memset")

TIMING_COLUMNS = {
    **{f"{kind}_{what}": pl.Int64 for kind in TIMED_KINDS for what in ("count", "time_ns")},
    "busy_ns": pl.Int64,
    "gpu_start_ns": pl.Int64,
    "gpu_end_ns": pl.Int64,
    "launched_by": pl.String,
}

#: Kernel time by phase; they add up to ``kernel_time_ns``.
PHASE_COLUMNS = tuple(f"{phase}_ns" for phase in (*PHASE_NAMES[1:], PHASE_NAMES[0]))


def cell_timings(in_layer: pl.DataFrame) -> pl.DataFrame:
    """GPU work by (step_row, layer): the columns of TIMING_COLUMNS, then those of PHASE_COLUMNS.

    Parameters:
        in_layer: see ``Attribution.in_layer``.
    """
    if in_layer.is_empty():
        return pl.DataFrame(
            schema={"step_row": pl.Int32, "layer": pl.Int32, **TIMING_COLUMNS, **dict.fromkeys(PHASE_COLUMNS, pl.Int64)}
        )
    layers, layer = dense(in_layer["layer"].to_numpy())
    key = in_layer["step_row"].to_numpy().astype(np.int64) * len(layers) + layer
    cells, cell = dense(key)
    start, end = in_layer["start"].to_numpy(), in_layer["end"].to_numpy()
    kind, graph = in_layer["kind"].to_numpy(), in_layer["graph"].to_numpy()
    timed: dict[str, Ints] = {}
    for code, name in enumerate(TIMED_KINDS):
        operations = np.flatnonzero(kind == code)
        timed[f"{name}_count"] = np.bincount(cell[operations], minlength=len(cells))
        timed[f"{name}_time_ns"] = sums(cell[operations], end[operations] - start[operations], len(cells))
    by_graph = np.bincount(cell[graph], minlength=len(cells)) > 0
    by_call = np.bincount(cell[~graph], minlength=len(cells)) > 0
    return pl.DataFrame(
        {
            "step_row": (cells // len(layers)).astype(np.int32),
            "layer": layers[cells % len(layers)],
            **timed,
            **_extent(cell, len(cells), start, end),
            "launched_by": pl.Series(by_graph * 2 + by_call).replace_strict(
                dict(enumerate(LAUNCHED_BY)), return_dtype=pl.String
            ),
            **_phase_times(cell, len(cells), in_layer),
        }
    )


def _phase_times(cell: Ints, cells: int, in_layer: pl.DataFrame) -> dict[str, Ints]:
    """Kernel time of each cell by phase: the columns of PHASE_COLUMNS."""
    phases = len(PHASE_NAMES)
    kernels = np.flatnonzero(in_layer["kind"].to_numpy() == TIMED_KINDS.index("kernel"))
    lasted = (in_layer["end"] - in_layer["start"]).to_numpy()[kernels]
    key = cell[kernels] * phases + in_layer["phase"].to_numpy()[kernels]
    table = sums(key, lasted, cells * phases).reshape(cells, phases)
    return {f"{phase}_ns": table[:, code] for code, phase in enumerate(PHASE_NAMES)}


def _extent(cell: Ints, cells: int, start: Ints, end: Ints) -> dict[str, Ints]:
    """First start, last end and length of the union of intervals of each cell.

    With a cell's starts and ends each sorted, a gap lies before the i-th start exactly when it comes after the
    (i-1)-th end: so many intervals have begun and ended. The union is the extent less the gaps. An interval that ends
    before it starts has no length. A union is at most 2^63 - 1.
    """
    first = np.full(cells, _INT64.max)
    np.minimum.at(first, cell, start)
    end = np.maximum(end, start)
    # Times since the cell's first start: two times of 64 bits are up to 2^64 - 1 apart.
    begins, stops = ((time - first[cell]).view(np.uint64) for time in (start, end))
    span = int(stops.max()) + 1
    if cells * span <= MOST_KEYS:
        base = cell * span
        keys = ordered_map(np.sort, (base + begins.view(np.int64), base + stops.view(np.int64)))
        starts, ends = ((key % span).view(np.uint64) for key in keys)
    else:
        starts, ends = (times[np.lexsort((times, cell))] for times in (begins, stops))
    size = np.bincount(cell, minlength=cells)
    last = np.cumsum(size) - 1
    gaps = np.where(starts[1:] > ends[:-1], starts[1:] - ends[:-1], np.uint64(0))
    gaps[last[:-1]] = 0  # from one cell to the next
    idle = np.add.reduceat(np.append(np.uint64(0), gaps), last - size + 1)
    busy = np.minimum(ends[last] - idle, np.uint64(_INT64.max)).astype(np.int64)
    return {"busy_ns": busy, "gpu_start_ns": first, "gpu_end_ns": ends[last].view(np.int64) + first}


_INT64 = np.iinfo(np.int64)


def kernel_timings(in_layer: pl.DataFrame, names: dict[int, str], ranks: pl.Series) -> pl.DataFrame:
    """In-layer operations by rank, layer, phase, name and way of launch.

    Parameters:
        names: texts of ``in_layer["name"]``.
        ranks: rank of each step row.

    Returns:
        ``rank``, ``layer_idx``, ``phase``, ``kernel_name``, ``launched_by``, ``count``, ``total_ns``, ``min_ns``,
        ``max_ns``; the caller merges reports and adds the mean.
    """
    grouped = (
        in_layer.lazy()
        .select(
            ranks.gather(in_layer["step_row"]).alias("rank"),
            "layer",
            "phase",
            "name",
            "graph",
            (pl.col("end") - pl.col("start")).alias("ns"),
        )
        .group_by("rank", "layer", "phase", "name", "graph")
        .agg(
            pl.len().cast(pl.Int64).alias("count"),
            pl.col("ns").sum().alias("total_ns"),
            pl.col("ns").min().alias("min_ns"),
            pl.col("ns").max().alias("max_ns"),
        )
        .collect()
    )
    return grouped.select(
        "rank",
        pl.col("layer").cast(pl.Int64).alias("layer_idx"),
        pl.col("phase").replace_strict(dict(enumerate(PHASE_NAMES)), return_dtype=pl.String),
        pl.col("name").replace_strict(names, default="", return_dtype=pl.String).alias("kernel_name"),
        pl.when("graph").then(pl.lit("graph")).otherwise(pl.lit("eager")).alias("launched_by"),
        "count",
        "total_ns",
        "min_ns",
        "max_ns",
    )
