"""Heatmap of routing weights per layer."""

from __future__ import annotations

import altair as alt
import polars as pl

from nvtxmoe_analysis.report.chart import ROUTING, Drawing, Missing
from nvtxmoe_analysis.report.chart_tools import base, id_axis, row_height, significant, table
from nvtxmoe_analysis.report.number_text import pct
from nvtxmoe_analysis.report.results import Source

TITLE = "Distribution of routing weights"
SECTION = ROUTING
ORDER = 40

BINS = 25


def build(source: Source) -> Drawing | Missing:
    """Return one row per layer, one column per range of weight; colour: share of the layer's weights."""
    frame = source.frame("routing_weights")
    if frame is None:
        return Missing(f"Not drawn: {source.why('routing_weights')}; weights are recorded of sampled tokens only.")
    known = frame.lazy().filter(pl.col("weight").is_not_null() & pl.col("weight").is_finite())
    low, high = known.select(pl.col("weight").min().alias("a"), pl.col("weight").max().alias("b")).collect().row(0)
    if low is None:
        return Missing("Not drawn: no weight is a number.")
    low, high = min(0.0, low), max(1.0, high)
    step = (high - low) / BINS
    place = ((pl.col("weight") - low) / step).floor().clip(0, BINS - 1).cast(pl.Int64)
    counted = (
        known.group_by("layer_idx", place.alias("bin")).agg(pl.len().alias("n")).collect().sort("layer_idx", "bin")
    )
    cells = counted.with_columns(
        pct=significant(100.0 * pl.col("n") / pl.col("n").sum().over("layer_idx")),
        a=(low + pl.col("bin") * step).round(4),
        b=(low + (pl.col("bin") + 1) * step).round(4),
    )
    layers = cells["layer_idx"].n_unique()
    chart = (
        base("weights")
        .mark_rect()
        .encode(
            x=alt.X(
                "a:Q", bin="binned", title="routing weight (no unit)", scale=alt.Scale(domain=[low, high], nice=False)
            ),
            x2="b:Q",
            y=alt.Y("layer_idx:O", axis=id_axis()),
            color=alt.Color(
                "pct:Q",
                title="share of the layer's weights (%)",
                scale=alt.Scale(type="sqrt", domainMin=0, nice=False),
                legend=alt.Legend(orient="top", gradientLength=220),
            ),
            tooltip=[
                alt.Tooltip("layer_idx:O", title="layer"),
                alt.Tooltip("a:Q", title="weight from"),
                alt.Tooltip("b:Q", title="to"),
                alt.Tooltip("n:Q", title="weights", format=","),
                alt.Tooltip("pct:Q", title="share, %"),
            ],
        )
        .properties(width="container", height=layers * row_height(layers))
    )
    file = source.file("routing_weights")
    by_layer = (
        known.group_by("layer_idx")
        .agg(
            pl.len().alias("n"),
            pl.col("weight").mean().alias("mean"),
            *(pl.col("weight").quantile(q, "nearest").alias(f"q{q}") for q in (0.05, 0.5, 0.95)),
        )
        .collect()
        .sort("layer_idx")
    )
    rows = [
        [r["layer_idx"], f"{r['n']:,}", *(f"{r[c]:.4g}" for c in ("mean", "q0.05", "q0.5", "q0.95"))]
        for r in by_layer.iter_rows(named=True)
    ]
    small = int(cells.filter(pl.col("bin") == 0)["n"].sum())
    share = pct(100.0 * small / int(cells["n"].sum()))
    return Drawing(
        chart,
        {"weights": cells},
        f"{file}: weight, in {BINS} ranges. Sampled tokens, all their experts; rows add up to 100 %. The colours "
        "follow the square root. Weights are as the router gave them: whether they add up to one a token depends on "
        "the model.",
        f"Heatmap of {layers} layers by {BINS} ranges of weight. {share} of all weights are below {low + step:.3g}.",
        table(("layer", "weights", "mean", "5th percentile", "median", "95th percentile"), rows, file_name=file),
    )
