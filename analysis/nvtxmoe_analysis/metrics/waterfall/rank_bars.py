"""Divide what ranks wait in the layers' collectives: uneven ranks, unequal speed, launch skew; and their transfer."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import polars as pl

from nvtxmoe_analysis.metrics.rank_speed import cells_by_routing

KEY = ("step", "layer_idx", "group")
#: Of a normal distribution, 95 % on both sides.
Z = 1.96
NO_LOADS = "what each rank's experts got is unknown: counted as waiting"
FILTERED_OUT = "other ranks were filtered out, so their loads are not here: counted as waiting"
NOT_SPLIT = "no collective of the layers could be split into waiting and transfer (moe_straggler.json says why)"

#: Columns of the frame, ns by (group, step).
COLUMNS = (
    *("wait_ns", "transfer_ns", "uneven_ranks_ns", "uneven_ranks_low_ns", "uneven_ranks_high_ns"),
    *("unequal_speed_ns", "unequal_speed_low_ns", "unequal_speed_high_ns"),
)


@dataclass(frozen=True)
class RankBars:
    """Bars of ranks that wait for one another.

    Attributes:
        frame: ``group``, ``step`` and COLUMNS of steps in which collectives of layers were split; Int64 of measured
            times, Float64 of estimated ones. ``unequal_speed_ns`` is null where the ranks' speeds are unknown.
        reasons: why a bar is unknown or uncertain, by bar.
    """

    frame: pl.DataFrame
    reasons: Mapping[str, str]


def rank_bars(
    stragglers: pl.DataFrame, correlation: pl.DataFrame, groups: pl.DataFrame, *, filtered: bool = False
) -> RankBars:
    """Divide the waiting of each (step, layer).

    Were all ranks to begin a layer together, they would wait ``ranks x (max - mean of own time)``. So much of what they
    did wait, at most, is counted to unequal own time, and by ``rank_speed`` divided into routing and speed.

    Parameters:
        stragglers: see ``straggler.stragglers``.
        correlation: moe_layer_correlation; groups: of ranks that share experts.
        filtered: True if captured ranks were filtered out.
    """
    matched = stragglers.filter(pl.col("wait_ns").is_not_null())
    if matched.is_empty():
        schema = {"group": pl.Int64, "step": pl.Int64} | dict.fromkeys(COLUMNS, pl.Float64)
        return RankBars(pl.DataFrame(schema=schema), {})
    whole_cells = stragglers.filter(pl.col("excess_ns").is_not_null())
    by_routing, speed = cells_by_routing(whole_cells, correlation, groups)
    unknown = next((row["reason"] for row in speed if "reason" in row), None)
    cells = _cells(matched, by_routing)
    frame = (
        cells.group_by("group", "step")
        .agg(
            pl.col("wait_ns").sum(),
            pl.col("transfer_ns").sum(),
            *(_known(name) for name in COLUMNS[2:]),
        )
        .sort("group", "step")
    )
    return RankBars(frame, _reasons(frame, unknown, FILTERED_OUT if filtered else NO_LOADS))


def _known(name: str) -> pl.Expr:
    return pl.when(pl.col(name).count() > 0).then(pl.col(name).sum()).alias(name)


def _cells(matched: pl.DataFrame, by_routing: pl.DataFrame) -> pl.DataFrame:
    """Return each (step, layer) with its part of waiting by routing, by speed, and their bounds."""
    wait = pl.col("wait_ns").cast(pl.Float64)
    if by_routing.is_empty():
        nothing = [pl.lit(None, pl.Float64).alias(name) for name in COLUMNS[2:]]
        return matched.select(*KEY, "wait_ns", "transfer_ns", *nothing)
    unequal = pl.min_horizontal(pl.col("ranks_in_group") * pl.col("excess_ns"), wait)
    share = pl.when("even").then(0.0).when(pl.col("excess_ns") > 0).then(pl.col("excess") / pl.col("excess_ns"))
    routing = pl.col("unequal") * share.fill_null(0.0).clip(0.0, 1.0)
    estimable = pl.col("even") | pl.col("error").is_not_null()
    # Without speeds, all of it may be either's.
    off = (
        pl.when(pl.col("error").is_null())
        .then(pl.col("unequal"))
        .otherwise(Z * pl.col("ranks_in_group") * pl.col("error"))
    )
    off = pl.when("even").then(0.0).otherwise(off)
    joined = matched.join(by_routing, on=KEY, how="left", maintain_order="left").with_columns(unequal=unequal)
    return joined.with_columns(uneven_ranks_ns=pl.when(pl.col("even").is_not_null()).then(routing), off=off).select(
        *KEY,
        "wait_ns",
        "transfer_ns",
        "uneven_ranks_ns",
        (pl.col("uneven_ranks_ns") - pl.col("off")).clip(0.0).alias("uneven_ranks_low_ns"),
        pl.min_horizontal(pl.col("uneven_ranks_ns") + pl.col("off"), "unequal").alias("uneven_ranks_high_ns"),
        *(
            pl.when(estimable).then(expression).alias(name)
            for name, expression in (
                ("unequal_speed_ns", pl.col("unequal") - pl.col("uneven_ranks_ns")),
                ("unequal_speed_low_ns", (pl.col("unequal") - pl.col("uneven_ranks_ns") - pl.col("off")).clip(0.0)),
                (
                    "unequal_speed_high_ns",
                    pl.min_horizontal(pl.col("unequal") - pl.col("uneven_ranks_ns") + pl.col("off"), "unequal"),
                ),
            )
        ),
    )


def _reasons(frame: pl.DataFrame, speed_unknown: str | None, no_loads: str) -> dict[str, str]:
    if frame["uneven_ranks_ns"].null_count() == len(frame):
        return dict.fromkeys(("uneven_ranks", "unequal_speed"), no_loads)
    if speed_unknown is None:
        return {}
    return {
        "uneven_ranks": f"it may hold unequal speed of GPUs: {speed_unknown}",
        "unequal_speed": speed_unknown,
    }
