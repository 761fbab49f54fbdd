"""moe_capacity: what a fixed capacity of the experts would drop, and leave empty."""

from __future__ import annotations

from collections.abc import Iterable
from fractions import Fraction
from typing import TYPE_CHECKING

import numpy as np
import polars as pl

from nvtxmoe.errors import NvtxmoeError
from nvtxmoe_analysis.core.arrays import Ints
from nvtxmoe_analysis.core.parallel import CHUNK
from nvtxmoe_analysis.outputs.spec import FLOAT, INTEGER, Column, Table

if TYPE_CHECKING:
    from nvtxmoe_analysis.events.tables import CountTable
    from nvtxmoe_analysis.metrics.run_metrics import RunMetrics

TABLE = Table(
    name="capacity",
    stem="moe_capacity",
    order=70,
    meaning="tokens over capacity and empty slots, by capacity factor",
    recipe="moe_expert_sum",
    columns=(
        Column("layer_idx", INTEGER, "MoE layer; null: all layers"),
        Column("capacity_factor", FLOAT, "1, 1.25, 1.5, 2 and the values of `--capacity-factor`"),
        Column("cells", INTEGER, "cells with tokens (a step of a group in a layer)"),
        Column("assignments", INTEGER, "tokens x top_k"),
        Column("slots", INTEGER, "experts x capacity"),
        Column("over_capacity", INTEGER, "assignments beyond their expert's capacity"),
        Column("over_capacity_pct", FLOAT, "share of the assignments"),
        Column("empty_slots", INTEGER, "slots without an assignment"),
        Column("empty_slots_pct", FLOAT, "share of the slots"),
        Column("cells_over", INTEGER, "cells in which any expert is over its capacity"),
    ),
    whole=("capacity_factor", "cells", "assignments", "slots", "over_capacity", "empty_slots", "cells_over"),
    key=("layer_idx", "capacity_factor"),
    note="see [capacity](../explanation/capacity-and-paths.md#capacity) for the definition",
)

#: A factor is taken as a fraction with no larger denominator, so that capacities are computed in integers.
MOST_DENOMINATOR = 1_000_000
MOST_FACTOR = 1000.0
SUMS = ("cells", "assignments", "slots", "over_capacity", "empty_slots", "cells_over")


def factors(extra_factors: Iterable[float]) -> tuple[float, ...]:
    """``CAPACITY_FACTORS`` and those given, rising.

    Raises:
        NvtxmoeError: one is not above 0 and at most ``MOST_FACTOR``.
    """
    from nvtxmoe_analysis.run.run_facts import CAPACITY_FACTORS  # noqa: PLC0415  see registry

    every = {*CAPACITY_FACTORS, *(float(factor) for factor in extra_factors)}
    for factor in every:
        if not 0 < factor <= MOST_FACTOR:
            raise NvtxmoeError(f"{factor:g} is no capacity factor", remedy=f"Give one up to {MOST_FACTOR:g}, as 1.1")
    return tuple(sorted(every))


def build(results: RunMetrics) -> pl.DataFrame:
    """One row per (layer, capacity factor), then those of all layers together (``layer_idx`` null).

    Percentages of nothing are null.
    """
    counts = results.routing.counts
    parts = [
        counts.cells.select(pl.col("layer").alias("layer_idx"))
        .with_columns(capacity_factor=pl.lit(factor, pl.Float64), **_cells(counts, results.features["total"], factor))
        .group_by("layer_idx", "capacity_factor")
        .agg(pl.col(SUMS).sum())
        for factor in results.capacity_factors
    ]
    by_layer = pl.concat(parts).sort("layer_idx", "capacity_factor")
    all_layers = by_layer.group_by("capacity_factor").agg(pl.col(SUMS).sum()).sort("capacity_factor")
    both = pl.concat([by_layer, all_layers.select(pl.lit(None, pl.Int64).alias("layer_idx"), pl.all())])
    return both.select(
        "layer_idx",
        "capacity_factor",
        "cells",
        "assignments",
        "slots",
        "over_capacity",
        _pct("over_capacity", "assignments").alias("over_capacity_pct"),
        "empty_slots",
        _pct("empty_slots", "slots").alias("empty_slots_pct"),
        "cells_over",
    )


def _pct(part: str, total: str) -> pl.Expr:
    return pl.when(pl.col(total) > 0).then(100.0 * pl.col(part) / pl.col(total))


def capacity(assignments: Ints, experts: Ints, factor: float) -> Ints:
    """Slots of each expert of a cell: ceil(factor x assignments / experts), exact.

    The definition of Megatron-LM (``get_capacity`` with tokens x top_k), which for top-1 is the Switch Transformer's.
    It may be more than the cell has tokens.
    """
    fraction = Fraction(repr(factor)).limit_denominator(MOST_DENOMINATOR)
    return -(-assignments * fraction.numerator // (experts * fraction.denominator))


def _cells(counts: CountTable, total: pl.Series, factor: float) -> dict[str, pl.Series]:
    """``SUMS`` of every cell; ``total`` is its assignments."""
    experts = counts.cells["num_experts"].to_numpy()
    assignments = total.to_numpy()
    slots = capacity(assignments, experts, factor)
    served = np.zeros(len(counts), dtype=np.int64)
    for at in range(0, len(counts), CHUNK):
        rows = slice(at, at + CHUNK)
        block = counts.matrix[rows]
        # A count fits its own type: so does the smaller of it and the capacity.
        limit = np.minimum(slots[rows], np.iinfo(block.dtype).max).astype(block.dtype)
        served[rows] = np.minimum(block, limit[:, None]).sum(axis=1, dtype=np.int64)
    over = assignments - served
    return {
        "cells": pl.Series((assignments > 0).astype(np.int64)),
        "assignments": pl.Series(assignments),
        "slots": pl.Series(slots * experts),
        "over_capacity": pl.Series(over),
        "empty_slots": pl.Series(slots * experts - served),
        "cells_over": pl.Series((over > 0).astype(np.int64)),
    }
