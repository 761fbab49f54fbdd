"""Straggler cost and the split of collectives in totals: the content of moe_straggler.json.

Times are in us. Quantiles are linearly interpolated.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import polars as pl

from nvtxmoe_analysis.metrics.rank_speed import by_routing
from nvtxmoe_analysis.metrics.straggler import KEY, ROWS_AT_ONCE, once_a_step_ns, some_steps

QUANTILES = {"p50": 0.5, "p90": 0.9, "p99": 0.99, "max": 1.0}

#: What a reason of ``collectives.match.REASONS`` means.
MEANINGS = {
    "rank_or_step_unknown": "the kernel's rank or step has no number",
    "not_known_to_wait": "kernels of this name are not known to wait until every rank has begun",
    "no_group": "the rank works with no other, or its moe.meta is missing",
    "rank_not_captured": "a rank of the group is not in the inputs",
    "rank_not_in_step": "a rank of the group has no collective in this step: it was idle, or its step is missing",
    "numbers_differ": "the ranks have different numbers of this kernel in this place of the step",
    "order_differs": "outside layers, the ranks' collectives come in different orders in this step",
    "not_simultaneous": "the ranks' kernels of this name do not run at the same time, so they are not one collective",
    "clocks_not_aligned": "the reports' clocks could not be aligned well enough",
    "ends_before_last_start": "a rank ended before the last began, by more than the clocks may be off",
}


def cost(cells: pl.DataFrame, layers: pl.DataFrame, groups: pl.DataFrame) -> dict[str, Any]:
    """What imbalance costs.

    Parameters:
        cells: see ``straggler.stragglers``.
        layers: ``rank``, ``step``, ``layer_idx``, ``own_ns``, ``step_gpu_ns``; for ``by_routing`` the ranks' loads.
        groups: ``rank``, ``group``, ``size``.
    """
    whole_cells = cells.filter(pl.col("excess_ns").is_not_null())
    excess, slowest = float(whole_cells["excess_ns"].sum()), int(whole_cells["max_own_ns"].sum())
    steps = _step_time_ns(whole_cells, layers, groups)
    return {
        "cells": len(whole_cells),
        "cells_not_of_all_ranks": len(cells) - len(whole_cells),
        "mean_own_us": _us(whole_cells["mean_own_ns"].sum()),
        "max_own_us": _us(slowest),
        "excess_us": _us(excess),
        "perfect_balance": {
            "saves_us": _us(excess),
            "of_layers_pct": _pct(excess, slowest),
            "of_steps_pct": _pct(excess, steps),
            "steps_gpu_us": _us(steps),
            "saves_us_if_ranks_met_once_a_step": _us(once_a_step_ns(layers, groups, whole_cells)),
            "by_routing": by_routing(whole_cells, layers, groups),
            "bound": "upper: it assumes that ranks wait for the slowest after every layer and that nothing else runs "
            "meanwhile",
        },
        **_of_waiting(whole_cells),
        "slowest_rank": _shares(whole_cells["slowest_rank"], "cells"),
        "per_layer": _per_layer(whole_cells),
        "per_step": {
            "steps": whole_cells.select("step", "group").n_unique(),
            "excess_us": _quantiles(whole_cells.group_by("step", "group").agg(pl.col("excess_ns").sum())["excess_ns"]),
        },
    }


def _step_time_ns(whole_cells: pl.DataFrame, layers: pl.DataFrame, groups: pl.DataFrame) -> float:
    """GPU time of the steps that have an excess: the mean over the group's ranks, added up."""
    times = layers.lazy().select("rank", "step", "step_gpu_ns")
    parts = [times.filter(in_chunk).unique().collect() for in_chunk in some_steps(layers["step"])]
    of_rank = pl.concat([times.clear().collect(), *parts]).join(groups, on="rank")
    step_times = of_rank.join(whole_cells.select("step", "group").unique(), on=["step", "group"], how="semi")
    of_step = step_times.group_by("step", "group").agg(pl.col("step_gpu_ns").mean()).sort("step", "group")
    return float(of_step["step_gpu_ns"].sum())


def _of_waiting(whole_cells: pl.DataFrame) -> dict[str, float | None]:
    """What ranks wait in the layers' collectives, and how much of that the excess explains.

    Were the ranks to begin a layer together, the mean rank would wait just the excess: what it waits beyond that comes
    from before the layer (attention, launches that come late), not from the layer's work.
    """
    matched = whole_cells.filter(pl.col("collectives") > 0)
    wait = float((matched["wait_ns"] / matched["ranks"]).sum())
    return {
        "wait_us_a_rank": _us(wait) if len(matched) else None,
        "excess_of_wait_pct": _pct(float(matched["excess_ns"].sum()), wait) if len(matched) else None,
    }


def _per_layer(whole_cells: pl.DataFrame) -> list[dict[str, Any]]:
    rows = []
    for (layer,), layer_cells in whole_cells.sort(*KEY).group_by("layer_idx", maintain_order=True):
        excess, slowest = float(layer_cells["excess_ns"].sum()), int(layer_cells["max_own_ns"].sum())
        matched = layer_cells.filter(pl.col("collectives") > 0)
        rows.append(
            {
                "layer_idx": layer,
                "cells": len(layer_cells),
                "mean_own_us": _us(layer_cells["mean_own_ns"].sum()),
                "max_own_us": _us(slowest),
                "excess_us": _us(excess),
                "excess_us_a_step": _quantiles(layer_cells["excess_ns"]),
                "largest": _largest(layer_cells),
                "of_layer_pct": _pct(excess, slowest),
                "slowest_rank": _shares(layer_cells["slowest_rank"], "cells")[0],
                "collectives": int(layer_cells["collectives"].sum()),
                "wait_us": _us(matched["wait_ns"].sum()) if len(matched) else None,
                "transfer_us": _us(matched["transfer_ns"].sum()) if len(matched) else None,
                **_of_waiting(layer_cells),
            }
        )
    return sorted(rows, key=lambda row: row["layer_idx"])


def _largest(cells: pl.DataFrame) -> dict[str, Any]:
    """The cell with the largest excess: one outlier is not a property of the layer."""
    top = cells.sort("excess_ns", "step", descending=[True, False]).row(0, named=True)
    return {"step": top["step"], "excess_us": _us(top["excess_ns"]), "rank": top["slowest_rank"]}


def waiting(all_kernels: pl.DataFrame) -> dict[str, Any]:
    """Waiting and transfer of the collectives inside the selection (``kept``).

    Parameters:
        all_kernels: of the whole capture, see ``wait_transfer.Split.frame``.
    """
    parts = list(all_kernels.iter_slices(ROWS_AT_ONCE)) or [all_kernels]
    split = _totals(parts)
    return {
        **_sums(split),
        **_of_all(split),
        "not_split": [
            {"reason": reason, **_left(rows), "meaning": MEANINGS[reason]}
            for (reason,), rows in _grouped(split.filter(pl.col("reason").is_not_null()), "reason")
        ],
        "in_layers": _sums(split.filter("in_layer")),
        "outside_layers": _sums(split.filter(~pl.col("in_layer"))),
        # There the ranks meet after launching the step.
        "first_of_step": _sums(split.filter("first")),
        "launched_eagerly": _sums(split.filter(~pl.col("graph"))),
        "launched_by_graphs": _sums(split.filter("graph")),
        "by_kernel": [
            {"kernel_name": name, "group_kind": kind, "ranks": ranks, **_sums(rows)}
            for (name, kind, ranks), rows in _grouped(split, "kernel_name", "group_kind", "ranks")
        ],
        "last_rank": _last_ranks(parts),
    }


def _totals(parts: Sequence[pl.DataFrame]) -> pl.DataFrame:
    """Kernels, their time, wait and transfer by all that :func:`waiting` tells them apart by."""
    step, start = ["rank", "step"], pl.col("start").min()
    begin_times = pl.concat([part.group_by(step).agg(start) for part in parts]).group_by(step).agg(begun=start)
    by = ["in_layer", "first", "graph", "kernel_name", "group_kind", "ranks", "reason"]
    sums = ["kernels", "time_ns", "wait_ns", "transfer_ns"]
    sums_of_parts = [
        part.filter("kept")
        .join(begin_times, on=step, how="left", nulls_equal=True)
        .select(
            *("graph", "kernel_name", "group_kind", "ranks", "reason", "wait_ns", "transfer_ns"),
            in_layer=pl.col("layer").is_not_null(),
            first=pl.col("start") == pl.col("begun"),
            kernels=pl.lit(1, pl.Int64),
            time_ns=pl.col("end") - pl.col("start"),
        )
        .group_by(by)
        .agg(pl.col(sums).sum())
        for part in parts
    ]
    return pl.concat(sums_of_parts).group_by(by).agg(pl.col(sums).sum())


def _last_ranks(parts: Sequence[pl.DataFrame]) -> list[dict[str, Any]]:
    """Which rank began last how often: as the lowest rank of each group that is there has it."""
    by = ["group_kind", "group", "rank", "last_rank"]
    counts = pl.concat(
        [part.filter(pl.col("kept") & pl.col("reason").is_null()).group_by(by).len("n") for part in parts]
    )
    lowest = counts.filter(pl.col("rank") == pl.col("rank").min().over("group_kind", "group"))
    return _by_number(lowest.group_by("last_rank").agg(pl.col("n").sum()), "collectives")


def _of_all(split: pl.DataFrame) -> dict[str, Any]:
    """Time of all collectives, of those that were split, of the others, and the share of waiting in all of it."""
    done = split.filter(pl.col("reason").is_null())
    time, known = int(split["time_ns"].sum()), int(done["time_ns"].sum())
    return {
        "all_us": _us(time),
        "split_us": _us(known),
        "not_split_us": _us(time - known),
        "wait_pct_of_all": _pct(int(done["wait_ns"].sum()), time),
    }


def _sums(kernels: pl.DataFrame) -> dict[str, Any]:
    done = kernels.filter(pl.col("reason").is_null())
    wait, transfer = int(done["wait_ns"].sum()), int(done["transfer_ns"].sum())
    return {
        "kernels": int(kernels["kernels"].sum()),
        "split": int(done["kernels"].sum()),
        "wait_us": _us(wait),
        "transfer_us": _us(transfer),
        "wait_pct": _pct(wait, wait + transfer),
    }


def _left(kernels: pl.DataFrame) -> dict[str, Any]:
    count, time = int(kernels["kernels"].sum()), kernels["time_ns"].sum()
    return {"kernels": count, "time_us": _us(time), "names": sorted(kernels["kernel_name"].unique().to_list())}


def _grouped(totals: pl.DataFrame, *by: str) -> list[tuple[tuple[Any, ...], pl.DataFrame]]:
    """Groups, those with the most kernels first."""
    groups = [(key, rows) for key, rows in totals.sort(by).group_by(by, maintain_order=True)]
    return sorted(groups, key=lambda item: -int(item[1]["kernels"].sum()))


def _shares(ranks: pl.Series, what: str) -> list[dict[str, Any]]:
    """How often each rank is there, most often first."""
    return _by_number(ranks.value_counts(name="n"), what)


def _by_number(counts: pl.DataFrame, what: str) -> list[dict[str, Any]]:
    """Shares of a rank each (null: of none) and its number ``n``, those with the most first."""
    rank, total = counts.columns[0], int(counts["n"].sum())
    ranked = counts.drop_nulls().sort(["n", rank], descending=[True, False])
    return [{"rank": rank, what: n, "pct": _pct(n, total)} for rank, n in ranked.iter_rows()]


def _quantiles(ns: pl.Series) -> dict[str, float | None]:
    return {name: _us(ns.quantile(q, "linear")) for name, q in QUANTILES.items()}


def _us(ns: Any) -> float | None:
    return None if ns is None else round(float(ns) / 1e3, 3)


def _pct(part: float, total: float) -> float | None:
    return 100.0 * part / total if total else None
