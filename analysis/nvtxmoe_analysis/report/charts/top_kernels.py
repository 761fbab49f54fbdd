"""Bars of the operations in which MoE layers spend most time."""

from __future__ import annotations

import altair as alt
import polars as pl

from nvtxmoe_analysis.core.text import short_name
from nvtxmoe_analysis.report.chart import TIME, Drawing, Missing
from nvtxmoe_analysis.report.chart_tools import base, colours, significant, table, x_pixels
from nvtxmoe_analysis.report.number_text import duration, pct
from nvtxmoe_analysis.report.results import Source
from nvtxmoe_analysis.report.theme import MOST_NAME, PHASES

TITLE = "The longest operations in MoE layers"
SECTION = TIME
ORDER = 30

MOST = 12
#: Most characters of a name in the table.
TABLE_NAME = 200


def build(source: Source) -> Drawing | Missing:
    """Return one bar per operation."""
    frame = source.frame("kernel_timings")
    if frame is None:
        return Missing(f"Not drawn: {source.why('kernel_timings')}.")
    inside = frame.filter(pl.col("layer_idx").is_not_null())
    if inside.is_empty():
        return Missing("Not drawn: no operation was placed in a layer.")
    total = int(inside["total_ns"].sum())
    ranked = (
        inside.group_by("phase", "kernel_name")
        .agg(pl.col("count").sum(), pl.col("total_ns").sum(), pl.col("min_ns").min(), pl.col("max_ns").max())
        .sort(["total_ns", "kernel_name", "phase"], descending=[True, False, False])
    )
    top = (
        ranked.head(MOST)
        .with_row_index("place")
        .with_columns(
            # Names repeat between phases and may be cut to the same text: the place keeps the bars apart.
            name=pl.col("kernel_name").map_elements(lambda name: short_name(name, MOST_NAME), return_dtype=pl.String),
            ms=significant(pl.col("total_ns") / 1e6, 6),
            pct=significant(100.0 * pl.col("total_ns") / total),
            mean_us=significant(pl.col("total_ns") / pl.col("count") / 1e3),
        )
    )
    rows = top.select("place", "name", "phase", "ms", "pct", "count", "mean_us")
    names = rows["name"].to_list()
    bars = base("kernels").encode(
        y=alt.Y("place:O", title="operation", axis=alt.Axis(labels=False)),
        x=alt.X("ms:Q", title="time, sum of all layers, ranks and steps (ms)", axis=alt.Axis(tickCount=8)),
        tooltip=[
            alt.Tooltip("name:N", title="operation"),
            alt.Tooltip("phase:N"),
            alt.Tooltip("ms:Q", title="in all, ms", format=",.4f"),
            alt.Tooltip("pct:Q", title="of all in layers, %"),
            alt.Tooltip("count:Q", format=","),
            alt.Tooltip("mean_us:Q", title="mean, us", format=",.2f"),
        ],
    )
    colour = alt.Color(
        "phase:N",
        title=None,
        scale=colours(PHASES, rows["phase"].unique().to_list()),
        legend=alt.Legend(orient="top", columns=7),
    )
    chart = alt.layer(
        bars.mark_bar(height={"band": 0.34}, yOffset=7).encode(color=colour),
        bars.mark_text(align="left", baseline="bottom", dy=0, fontSize=11.5).encode(x=x_pixels(2), text="name:N"),
    ).properties(width="container", height=34 * len(rows))
    file = source.file("kernel_timings")
    cells = [
        [
            row["kernel_name"][:TABLE_NAME],
            row["phase"],
            f"{row['count']:,}",
            duration(row["total_ns"]),
            pct(100.0 * row["total_ns"] / total),
            duration(row["total_ns"] / row["count"]),
            duration(row["min_ns"]),
            duration(row["max_ns"]),
        ]
        for row in ranked.head(40).iter_rows(named=True)
    ]
    return Drawing(
        chart,
        {"kernels": rows},
        f"{file}: total_ns of rows with a layer, summed by name and phase over layers, ranks and ways of launch; the "
        f"{len(rows)} longest of {len(ranked):,}. Names without template arguments and parameters.",
        f"Bars, the longest first: {names[0]} takes {pct(100.0 * top['total_ns'][0] / total)} of the time in layers.",
        table(
            ("operation", "phase", "count", "in all", "of all in layers", "mean", "min", "max"),
            cells,
            file_name=file,
            total=len(ranked),
            which="by time",
        ),
    )
