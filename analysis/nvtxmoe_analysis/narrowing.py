"""Facts of a report narrowed to the selection."""

from __future__ import annotations

from dataclasses import replace

import polars as pl

from nvtxmoe_analysis.events import Events
from nvtxmoe_analysis.payload_tables import CountTable, TopkTable
from nvtxmoe_analysis.selection import Selection


def of_operations(in_layer: pl.DataFrame, steps: pl.DataFrame, selection: Selection) -> pl.DataFrame:
    """Operations inside the selection."""
    if selection.layers is not None:
        in_layer = in_layer.filter(pl.col("layer").is_in(list(selection.layers)))
    if not steps["kept"].all():
        in_layer = in_layer.filter(steps["kept"].gather(in_layer["step_row"]))
    return in_layer


def marked(collectives: pl.DataFrame, steps: pl.DataFrame, selection: Selection) -> pl.DataFrame:
    """Operations with ``kept``: whether they are inside the selection."""
    wanted = pl.lit(True) if selection.layers is None else pl.col("layer").is_in(list(selection.layers))
    return collectives.with_columns(kept=wanted & steps["kept"].gather(collectives["step_row"]))


def of_counts(counts: CountTable, steps: pl.DataFrame, selection: Selection) -> CountTable:
    """Counts inside the selection; the very table where nothing is selected."""
    if not selection.active:
        return counts
    return counts.take(selection.of_cells(counts.cells, steps.filter("kept")))


def of_topk(events: Events, steps: pl.DataFrame, selection: Selection) -> TopkTable:
    """Sampled tokens inside the selection, their runs with ``rank``."""
    known = pl.col("pid").replace_strict(ranks_of(events, steps), default=None, return_dtype=pl.Int64)
    topk = replace(events.topk, runs=events.topk.runs.with_columns(rank=known))
    if not selection.active:
        return topk
    return topk.take(selection.of_cells(topk.runs, steps.filter("kept")))


def ranks_of(events: Events, steps: pl.DataFrame) -> dict[int, int]:
    """Rank by process, where an event has none itself: its moe.meta tells, else its steps or counts."""
    ranks = {pid: meta.rank for pid, meta in events.metas.items()}
    for told in (steps, events.counts.cells):
        by_pid = told.drop_nulls("rank").unique("pid", keep="first")
        ranks |= dict(zip(by_pid["pid"].to_list(), by_pid["rank"].to_list(), strict=True))
    return ranks
