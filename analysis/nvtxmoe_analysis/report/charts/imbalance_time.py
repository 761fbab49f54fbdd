"""Heatmap of imbalance per layer and step."""

from __future__ import annotations

import altair as alt
import polars as pl

from nvtxmoe_analysis.report.chart import ROUTING, Drawing, Missing
from nvtxmoe_analysis.report.chart_tools import base, id_axis, log_ticks, row_height, significant, table
from nvtxmoe_analysis.report.number_text import times
from nvtxmoe_analysis.report.results import Source

TITLE = "Imbalance over time, by layer"
SECTION = ROUTING
ORDER = 20

#: Most columns; if there are more steps, a column is the mean of neighbouring steps.
MOST_COLUMNS = 160
#: Pixels of the heatmap's width, and of the height of the strip above it.
WIDTH, STRIP = 940, 76


def build(source: Source) -> Drawing | Missing:
    """Return one row per layer, one column per step in order; colour: tokens of the hottest expert over the mean."""
    frame = source.frame("load_imbalance")
    if frame is None:
        return Missing(f"Not drawn: {source.why('load_imbalance')}.")
    has_tokens = pl.col("num_tokens") > 0  # a damaged payload may say less
    known = frame.filter(pl.col("max_mean_ratio").is_not_null() & pl.col("step").is_not_null() & has_tokens)
    if known.is_empty():
        return Missing("Not drawn: no step has both a number and tokens.")
    steps = known["step"].unique().sort()
    width = -(-len(steps) // MOST_COLUMNS)
    column = steps.to_frame().with_row_index("place").with_columns(column=pl.col("place") // width)
    placed = known.join(column, on="step")
    cells = (
        placed.group_by("layer_idx", "column")
        .agg(pl.col("max_mean_ratio").mean().alias("ratio"), pl.col("max_mean_ratio").max().alias("worst"))
        .sort("layer_idx", "column")
        .with_columns(significant(pl.col("ratio", "worst")))
    )
    over_time = (
        placed.group_by("column")
        .agg(
            pl.col("num_tokens").mean().alias("tokens"),
            pl.col("step").min(),
            pl.col("timestamp_sec").min().alias("sec"),
        )
        .sort("column")
        .with_columns(significant(pl.col("tokens")), significant(pl.col("sec"), 6))
    )
    cells = cells.join(over_time, on="column")
    layers = cells["layer_idx"].n_unique()
    name = "step" if width == 1 else f"step, {width} a column"
    axis_x = id_axis(name)
    tip = [
        alt.Tooltip("step:Q", title="step" if width == 1 else "from step"),
        alt.Tooltip("sec:Q", title="seconds since the first step"),
        alt.Tooltip("tokens:Q", title="tokens a step"),
    ]
    ticks = log_ticks(float(over_time["tokens"].min() or 1.0), float(over_time["tokens"].max() or 1.0))  # type: ignore[arg-type]
    x_scale = alt.Scale(paddingInner=0, paddingOuter=0)
    strip = (
        base("tokens")
        .mark_tick(thickness=2.5, orient="horizontal")
        .encode(
            x=alt.X("step:O", axis=None, scale=x_scale),
            y=alt.Y(
                "tokens:Q",
                title=["tokens per", "step (log)"],
                scale=alt.Scale(type="log", domain=[ticks[0], ticks[-1]]),
                axis=alt.Axis(values=ticks, format=",d", labelOverlap=True),
            ),
            tooltip=tip,
        )
        .properties(width=WIDTH, height=STRIP)
    )
    heat = (
        base("cells")
        .mark_rect()
        .encode(
            x=alt.X("step:O", axis=axis_x, scale=x_scale),
            y=alt.Y("layer_idx:O", axis=id_axis()),
            color=alt.Color(
                "ratio:Q",
                title="hottest expert (times the mean, 1 is even)",
                scale=alt.Scale(domainMin=1, nice=False),
                legend=alt.Legend(orient="top", gradientLength=220),
            ),
            tooltip=[
                alt.Tooltip("layer_idx:O", title="layer"),
                alt.Tooltip("ratio:Q", title="max/mean, mean"),
                alt.Tooltip("worst:Q", title="max/mean, worst"),
                *tip,
            ],
        )
        .properties(width=WIDTH, height=layers * row_height(layers, total=460))
    )
    file = source.file("load_imbalance")
    by_layer = (
        known.group_by("layer_idx")
        .agg(
            pl.col("max_mean_ratio").median().alias("median"),
            pl.col("max_mean_ratio").quantile(0.95, "nearest").alias("p95"),
            pl.col("max_mean_ratio").max().alias("worst"),
            pl.len().alias("steps"),
        )
        .sort("median", "layer_idx", descending=[True, False])
    )
    first = by_layer.row(0, named=True)
    rows = [
        [r["layer_idx"], times(r["median"]), times(r["p95"]), times(r["worst"]), f"{r['steps']:,}"]
        for r in by_layer.iter_rows(named=True)
    ]
    grouped = "" if width == 1 else f" A column is the mean of {width} neighbouring steps."
    return Drawing(
        alt.vconcat(strip, heat, spacing=6).resolve_scale(x="shared"),
        {"cells": cells, "tokens": over_time},
        f"{file}: max_mean_ratio by step and layer, steps in their order; groups of ranks with tokens of their own "
        f"are averaged.{grouped} Above it the tokens per step, on a logarithmic scale: with few tokens the ratio is "
        "high even when routing is even.",
        f"Heatmap of {layers} layers over {len(steps):,} steps. Layer {first['layer_idx']} is the least even, its "
        f"median max/mean is {times(first['median'])}, its worst {times(first['worst'])}.",
        table(
            ("layer", "median max/mean", "95th percentile", "worst", "rows"), rows, file_name=file, which="by median"
        ),
    )
