"""Heatmap of assignments per layer and expert."""

from __future__ import annotations

import altair as alt
import polars as pl

from nvtxmoe_analysis.report.chart import ROUTING, Drawing, Missing
from nvtxmoe_analysis.report.chart_tools import base, id_axis, row_height, significant, table
from nvtxmoe_analysis.report.number_text import count, pct, times
from nvtxmoe_analysis.report.results import Source

TITLE = "Assignments by layer and expert"
SECTION = ROUTING
ORDER = 10

#: Most cells; if there are more, a cell is the mean of neighbouring experts.
MOST_CELLS = 24_000


def build(source: Source) -> Drawing | Missing:
    """Return one cell per (layer, expert), coloured by its share relative to the mean expert's."""
    frame = source.frame("activations")
    if frame is None:
        return Missing(f"Not drawn: {source.why('activations')}.")
    mean = pl.col("activation_count").mean().over("layer_idx")
    shares = frame.with_columns(times_mean=pl.when(mean > 0).then(pl.col("activation_count") / mean))
    if not shares["activation_count"].sum():
        return Missing("Not drawn: no expert got a token.")
    width = -(-len(shares) // MOST_CELLS)
    cells = _grouped(shares, width)
    layers, experts = shares["layer_idx"].n_unique(), len(shares["expert_id"].unique())
    top = float(cells["times_mean"].max() or 1.0)  # type: ignore[arg-type]
    chart = (
        base("cells")
        .mark_rect()
        .encode(
            x=alt.X("expert_id:O", axis=id_axis("expert" if width == 1 else f"experts, {width} a cell")),
            y=alt.Y("layer_idx:O", axis=id_axis()),
            color=alt.Color(
                "times_mean:Q",
                title="load (times the mean expert)",
                scale=alt.Scale(type="sqrt", domain=[0, max(2.0, top)], nice=False),
                legend=alt.Legend(orient="top", gradientLength=220),
            ),
            tooltip=[
                alt.Tooltip("layer_idx:O", title="layer"),
                alt.Tooltip("expert_id:O", title="expert" if width == 1 else "first expert"),
                alt.Tooltip("activation_count:Q", title="assignments", format=","),
                alt.Tooltip("times_mean:Q", title="times the mean expert", format=".3f"),
            ],
        )
        .properties(width="container", height=layers * row_height(layers))
    )
    file = source.file("activations")
    hottest = shares.sort("times_mean", descending=True, nulls_last=True)
    first = hottest.row(0, named=True)
    silent = shares.filter(pl.col("activation_count") == 0)
    grouped = (
        "" if width == 1 else f" A cell is the mean of {width} neighbouring experts, so that a hot one looks milder."
    )
    rows = [
        [r["layer_idx"], r["expert_id"], count(r["activation_count"]), pct(r["percentage"]), times(r["times_mean"])]
        for r in hottest.drop_nulls("times_mean").head(40).iter_rows(named=True)
    ]
    return Drawing(
        chart,
        {"cells": cells},
        f"{file}: activation_count over the mean of the layer's experts, all steps together. 1 is an even share; the "
        f"colours follow the square root, so that small shares can be told apart.{grouped}",
        f"Heatmap of {layers} layers by {experts} experts. The hottest is expert {first['expert_id']} of layer "
        f"{first['layer_idx']} with {times(first['times_mean'])} times the mean. {len(silent):,} of {len(shares):,} "
        "(layer, expert) got no token.",
        table(
            ("layer", "expert", "assignments", "share of the layer", "times the mean"),
            rows,
            file_name=file,
            total=len(shares),
            which="by times the mean",
        ),
    )


def _grouped(shares: pl.DataFrame, width: int) -> pl.DataFrame:
    """Combine neighbouring experts, ``width`` per cell."""
    return (
        shares.group_by("layer_idx", pl.col("expert_id") // width * width, maintain_order=True)
        .agg(pl.col("activation_count").sum(), pl.col("times_mean").mean())
        .with_columns(significant(pl.col("times_mean")))
    )
