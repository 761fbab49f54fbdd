"""What imbalance between ranks costs: of each layer, the slowest rank's own work against the mean's.

Ranks that share a layer's experts meet in a collective after it, and the others wait for the slowest. Were the work
spread evenly, each would take the mean: ``excess = max - mean`` of the ranks' own time, that is of the layer's kernels
but its collectives.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import pairwise

import polars as pl

KEY = ("step", "layer_idx", "group")
CELL = ("rank", "step", "layer_idx")
#: Rows are looked at some steps at a time: about so many, or, of more, in so many parts.
ROWS_AT_ONCE = 1 << 18
PARTS = 16

SCHEMA = {
    "step": pl.Int64,
    "layer_idx": pl.Int64,
    "group": pl.Int64,
    "ranks": pl.Int64,
    "ranks_in_group": pl.Int64,
    "mean_own_ns": pl.Float64,
    "max_own_ns": pl.Int64,
    "excess_ns": pl.Float64,
    "slowest_rank": pl.Int64,
    "collectives": pl.Int64,
    "wait_ns": pl.Int64,
    "transfer_ns": pl.Int64,
}


def stragglers(layers: pl.DataFrame, groups: pl.DataFrame, split: pl.DataFrame | pl.LazyFrame) -> pl.DataFrame:
    """One row a (step, layer) of each group of several ranks that share the layer's experts.

    Parameters:
        layers: ``rank``, ``step``, ``layer_idx``, ``own_ns`` (null where unknown).
        groups: ``rank``, ``group``, ``size``: those that share experts, see ``rank_groups``.
        split: collectives, see ``wait_transfer.Split``.

    Returns:
        SCHEMA. ``ranks`` tells of how many ranks the layer's time in that step is known; where it is not of all of
        the group, ``excess_ns`` and ``slowest_rank`` (of equal ones the lowest) are null. ``collectives`` tied to the
        layer were split, ``wait_ns`` and ``transfer_ns`` are sums over them and the ranks; null where there are none.
    """
    several = groups.filter(pl.col("size") > 1).rename({"size": "ranks_in_group"})
    known = layers.lazy().select(*CELL, "own_ns").drop_nulls(["step", "own_ns"])
    tied = (
        split.lazy()
        .filter(pl.col("reason").is_null() & pl.col("layer").is_not_null())
        .rename({"layer": "layer_idx"})
        .select(*CELL, "group_kind", "group", "wait_ns", "transfer_ns")
    )
    # The lowest rank of each group that is there stands for its collectives.
    lowest = tied.group_by("group_kind", "group").agg(lowest=pl.col("rank").min()).collect()
    parts = [pl.DataFrame(schema=SCHEMA)]
    for in_chunk in some_steps(layers["step"]):
        cells = _cells(known.filter(in_chunk).collect(), several)
        joined = cells.join(_collective_sums(tied.filter(in_chunk).collect(), lowest, several), on=KEY, how="left")
        parts.append(joined.with_columns(pl.col("collectives").fill_null(0)).select(*SCHEMA).cast(SCHEMA))  # type: ignore[arg-type]
    return pl.concat(parts).sort(*KEY, "ranks_in_group")


def some_steps(steps: pl.Series) -> Iterator[pl.Expr]:
    """Filters by ``step``, each for as many of these steps; nulls are in none."""
    distinct = steps.drop_nulls().unique().sort()
    parts = min(PARTS, 1 + len(steps) // ROWS_AT_ONCE)
    edges = distinct.gather_every(max(1, -(-len(distinct) // parts))).to_list()
    for first, after in pairwise([*edges, None]):
        selected = pl.col("step") >= first
        yield selected if after is None else selected & (pl.col("step") < after)


def _cells(known: pl.DataFrame, several: pl.DataFrame) -> pl.DataFrame:
    """Of each (step, layer) of a group the ranks' own time."""
    all_ranks = pl.col("ranks") == pl.col("ranks_in_group")
    slowest = pl.col("own_ns") == pl.col("own_ns").max()
    return (
        known.join(several, on="rank")
        .group_by(*KEY, "ranks_in_group")
        .agg(
            pl.len().cast(pl.Int64).alias("ranks"),
            pl.col("own_ns").mean().alias("mean_own_ns"),
            pl.col("own_ns").max().alias("max_own_ns"),
            pl.col("rank").filter(slowest).min().alias("slowest_rank"),
        )
        .with_columns(
            excess_ns=pl.when(all_ranks).then(pl.col("max_own_ns") - pl.col("mean_own_ns")),
            slowest_rank=pl.when(all_ranks).then("slowest_rank"),
        )
    )


def _collective_sums(tied: pl.DataFrame, lowest: pl.DataFrame, several: pl.DataFrame) -> pl.DataFrame:
    """Of each (step, layer) of a group the collectives that were split."""
    return (
        tied.join(lowest, on=["group_kind", "group"])
        .with_columns(first=pl.col("rank") == pl.col("lowest"))
        .drop("group")
        .join(several, on="rank")
        .group_by(KEY)
        .agg(
            pl.col("first").sum().cast(pl.Int64).alias("collectives"),
            pl.col("wait_ns").sum(),
            pl.col("transfer_ns").sum(),
        )
    )


def once_a_step_ns(layers: pl.DataFrame, groups: pl.DataFrame, cells: pl.DataFrame) -> float:
    """The excess when ranks met once a step, not after every layer: max - mean of a step's own time, over all steps.

    What one layer takes longer, another may take shorter, so this is at most the sum of the layers' excess. It counts
    the cells that have an excess.

    Parameters:
        layers, groups: as of :func:`stragglers`; cells: what it gave.
    """
    own_times = layers.lazy().select(*CELL, "own_ns")
    known = cells.filter(pl.col("excess_ns").is_not_null()).select(KEY)
    parts = [pl.DataFrame(schema={"step": pl.Int64, "group": pl.Int64, "excess": pl.Float64})]
    for in_chunk in some_steps(layers["step"]):
        of_step = (
            own_times.filter(in_chunk)
            .collect()
            .join(groups.select("rank", "group"), on="rank")
            .join(known, on=KEY, how="semi")
            .group_by("step", "group", "rank")
            .agg(pl.col("own_ns").sum())
            .group_by("step", "group")
            .agg(excess=pl.col("own_ns").max() - pl.col("own_ns").mean())
        )
        parts.append(of_step)
    # Floats are added in one order, so that the last digit does not differ from run to run.
    return float(pl.concat(parts).sort("step", "group")["excess"].sum())
