"""The GPU time of MoE layers per step, divided into bars that add up to it exactly. docs/explanation/waterfall.md.

The whole is the time of kernels, copies and memsets in layers, and of collectives tied to them, summed over the ranks
of a group. Measured parts are integer sums. Estimated parts are rounded, and the remainders take what is left, so no
nanosecond is lost or counted twice.
"""

from __future__ import annotations

from collections.abc import Mapping

import polars as pl

from nvtxmoe_analysis.metrics.waterfall.matmul_bars import BARS as MATMUL_BARS
from nvtxmoe_analysis.metrics.waterfall.matmul_bars import matmul_bars
from nvtxmoe_analysis.metrics.waterfall.rank_bars import NOT_SPLIT, rank_bars

MEASURED, ESTIMATED, REMAINDER = "measured", "estimated", "remainder"
TOTAL = "total"
#: Bars in their order, and how each is found.
BARS: Mapping[str, str] = {
    "ideal": ESTIMATED,
    "further_experts": ESTIMATED,
    "padding": ESTIMATED,
    "rest": REMAINDER,
    "other_work": MEASURED,
    "uneven_ranks": ESTIMATED,
    "unequal_speed": ESTIMATED,
    "waiting": REMAINDER,
    "transfer": MEASURED,
    "collectives_not_split": MEASURED,
}
ESTIMATES = tuple(bar for bar, how in BARS.items() if how == ESTIMATED)
#: Bars of ranks that meet: null where a group has one rank.
OF_RANKS = ("uneven_ranks", "unequal_speed", "waiting", "transfer")
ONE_RANK = "one rank: it meets no other in its layers"

SCHEMA = {
    "group": pl.Int64,
    "step": pl.Int64,
    "step_kind": pl.String,
    "bar": pl.String,
    "time_ns": pl.Int64,
    "low_ns": pl.Int64,
    "high_ns": pl.Int64,
    "how": pl.String,
    "reason": pl.String,
}
STEP = ("group", "step")


def waterfall(
    cells: pl.DataFrame,
    stragglers: pl.DataFrame,
    correlation: pl.DataFrame,
    groups: pl.DataFrame,
    *,
    filtered: bool = False,
) -> pl.DataFrame:
    """Return SCHEMA: a row per group, step and bar, and ``total``. Rows with a null step are sums over steps, by kind
    of step and (null) of all kinds; they alone have reasons, and rows of bars that are unknown.

    Parameters:
        cells: ``rank``, ``step``, ``step_kind``, ``kernel_time_ns``, ``memcpy_time_ns``, ``memset_time_ns``,
            ``collective_inferred_ns``, ``own_ns``, and what ``matmul_bars`` needs.
        stragglers: see ``straggler.stragglers``; correlation: moe_layer_correlation.
        groups: ``rank``, ``group``, ``size`` of ranks that share experts. A rank without a group is one by itself.
        filtered: True if captured ranks were filtered out.
    """
    grouped = (
        cells.filter(pl.col("rank").is_not_null() & pl.col("step").is_not_null())
        .join(groups, on="rank", how="left", maintain_order="left")
        .with_columns(group=pl.coalesce("group", "rank"), size=pl.col("size").fill_null(1))
    )
    products = matmul_bars(grouped)
    ranks = rank_bars(stragglers, correlation, groups, filtered=filtered)
    steps = (
        _measured(grouped)
        .join(products.frame, on=STEP, how="left", maintain_order="left")
        .join(ranks.frame, on=STEP, how="left", maintain_order="left")
    )
    divided = _divided(steps)
    reasons = _reasons(divided, products.reasons, ranks.reasons)
    sums = [_sums(divided, ["group"]), _sums(divided, ["group", "step_kind"])]
    return _long(pl.concat([*sums, divided], how="diagonal"), reasons)


def _measured(cells: pl.DataFrame) -> pl.DataFrame:
    """Return the measured sums by (group, step), in ns."""
    own_ns = pl.col("own_ns").fill_null(0)
    product = pl.col("matmul_ns").fill_null(0)
    copies = pl.col("memcpy_time_ns") + pl.col("memset_time_ns")
    collectives = pl.col("kernel_time_ns") - own_ns + pl.col("collective_inferred_ns")
    return (
        cells.group_by(STEP)
        .agg(
            step_kind=pl.when(pl.col("step_kind").drop_nulls().n_unique() > 1)
            .then(pl.lit("mixed"))
            .otherwise(pl.col("step_kind").drop_nulls().first()),
            size=pl.col("size").max(),
            matmul_ns=product.sum(),
            other_work_ns=(own_ns - product + copies).sum(),
            collectives_ns=collectives.sum(),
            total_ns=(pl.col("kernel_time_ns") + copies + pl.col("collective_inferred_ns")).sum(),
        )
        .sort(STEP)
    )


def _divided(steps: pl.DataFrame) -> pl.DataFrame:
    """Return every bar by (group, step), Int64: what is estimated rounded, the remainders exact."""
    rounded_bars = [
        pl.col(f"{bar}{end}_ns").round().cast(pl.Int64) for bar in ESTIMATES for end in ("", "_low", "_high")
    ]
    measured = [pl.col(name).cast(pl.Int64) for name in ("wait_ns", "transfer_ns")]

    def added(*bars: str) -> pl.Expr:
        return pl.sum_horizontal(pl.col(f"{bar}_ns").fill_null(0) for bar in bars)

    return (
        steps.with_columns(*rounded_bars, *measured)
        .with_columns(
            rest_ns=pl.col("matmul_ns") - added(*MATMUL_BARS),
            waiting_ns=pl.col("wait_ns") - added("uneven_ranks", "unequal_speed"),
            collectives_not_split_ns=pl.col("collectives_ns") - added("wait", "transfer"),
        )
        .with_columns(
            collectives_not_split_ns=pl.when((pl.col("size") > 1) | (pl.col("collectives_not_split_ns") != 0)).then(
                "collectives_not_split_ns"
            )
        )
        .select(
            *STEP,
            "step_kind",
            "size",
            *(f"{bar}{end}_ns" for bar in ESTIMATES for end in ("", "_low", "_high")),
            *(f"{bar}_ns" for bar in BARS if bar not in ESTIMATES),
            "total_ns",
        )
    )


def _sums(steps: pl.DataFrame, by: list[str]) -> pl.DataFrame:
    """Return the sums over steps: null where a bar is null in all of them."""
    names = [name for name in steps.columns if name.endswith("_ns")]
    known = [pl.when(pl.col(name).count() > 0).then(pl.col(name).sum()).alias(name) for name in names]
    return steps.drop_nulls(by).group_by(by).agg(*known, pl.col("size").max()).sort(by)


def _reasons(
    steps: pl.DataFrame, of_products: Mapping[tuple[str, str | None], str], of_ranks: Mapping[str, str]
) -> pl.DataFrame:
    """Return why bars are unknown or uncertain: ``group``, ``step_kind`` (null: of all kinds, each reason once),
    ``bar``, ``reason``."""
    rows = []
    kinds = steps.select("group", "step_kind", "size").unique(maintain_order=True)
    groups_with_split = steps.filter(pl.col("transfer_ns").is_not_null())["group"].unique().to_list()
    for group, kind, size in kinds.iter_rows():
        for bar in BARS:
            reason = of_products.get((bar, kind))
            if bar in OF_RANKS:
                reason = ONE_RANK if size == 1 else of_ranks.get(bar) if group in groups_with_split else NOT_SPLIT
            elif bar == "collectives_not_split" and size == 1:
                reason = ONE_RANK
            if reason:
                rows.append((group, kind, bar, reason))
    schema = {"group": pl.Int64, "step_kind": pl.String, "bar": pl.String, "reason": pl.String}
    reasons = pl.DataFrame(rows, schema=schema, orient="row")
    of_all_kinds = reasons.group_by("group", "bar", maintain_order=True).agg(
        pl.col("reason").unique(maintain_order=True).str.join("; ")
    )
    of_all = of_all_kinds.select("group", pl.lit(None, pl.String).alias("step_kind"), "bar", "reason")
    return pl.concat([of_all, reasons.drop_nulls("step_kind")])


def _long(wide: pl.DataFrame, reasons: pl.DataFrame) -> pl.DataFrame:
    """Return a row per bar."""
    parts = []
    for number, (bar, how) in enumerate([*BARS.items(), (TOTAL, MEASURED)]):
        bounds = bar in ESTIMATES
        parts.append(
            wide.select(
                *STEP,
                "step_kind",
                pl.lit(bar).alias("bar"),
                pl.col(f"{bar}_ns").alias("time_ns"),
                (pl.col(f"{bar}_low_ns") if bounds else pl.lit(None, pl.Int64)).alias("low_ns"),
                (pl.col(f"{bar}_high_ns") if bounds else pl.lit(None, pl.Int64)).alias("high_ns"),
                pl.when(pl.col(f"{bar}_ns").is_not_null()).then(pl.lit(how)).alias("how"),
                pl.lit(number).alias("number"),
            )
        )
    long = pl.concat(parts).filter(pl.col("step").is_null() | pl.col("time_ns").is_not_null())
    sums = pl.col("step").is_null()
    totals = long.filter(sums).join(
        reasons, on=["group", "step_kind", "bar"], how="left", nulls_equal=True, maintain_order="left"
    )
    rows = pl.concat([totals, long.filter(~sums).with_columns(reason=pl.lit(None, pl.String))])
    return rows.sort("step", "group", "step_kind", "number").select(*SCHEMA).cast(SCHEMA)  # type: ignore[arg-type]
