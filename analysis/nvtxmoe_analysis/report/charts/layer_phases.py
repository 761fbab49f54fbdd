"""Bars of kernel time per layer and phase."""

from __future__ import annotations

import altair as alt
import polars as pl

from nvtxmoe_analysis.report.chart import TIME, Drawing, Missing
from nvtxmoe_analysis.report.chart_tools import base, colours, id_axis, significant, table
from nvtxmoe_analysis.report.number_text import duration
from nvtxmoe_analysis.report.own_time import outlying
from nvtxmoe_analysis.report.results import Source
from nvtxmoe_analysis.report.steady import OUTLYING
from nvtxmoe_analysis.report.theme import INK, PALE, PHASES

TITLE = "Kernel time of each layer, by phase"
SECTION = TIME
ORDER = 20

#: The legend's words for a layer's time without outliers.
WITHOUT = "without outliers"


def build(source: Source) -> Drawing | Missing:
    """Return one bar per layer, stacked by phase."""
    columns = {phase: f"{phase}_ns" for phase in PHASES}
    frame = source.frame("layer_correlation", columns.values())
    if frame is None:
        return Missing(f"Not drawn: {source.why('layer_correlation')}.")
    sums = (
        frame.group_by("layer_idx")
        .agg(pl.col(list(columns.values())).sum(), pl.col("kernel_time_ns").sum())
        .sort("layer_idx")
    )
    if not sums["kernel_time_ns"].sum():
        return Missing("Not drawn: no layer has a kernel.")
    order = {phase: i for i, phase in enumerate(PHASES)}
    rows = (
        sums.rename({column: phase for phase, column in columns.items()})
        .unpivot(list(PHASES), index="layer_idx", variable_name="phase", value_name="ns")
        .filter(pl.col("ns") > 0)
        .with_columns(
            ms=significant(pl.col("ns") / 1e6, 6), order=pl.col("phase").replace_strict(order, return_dtype=pl.Int64)
        )
        .drop("ns")
    )
    chart = (
        base("phases")
        .mark_bar(width={"band": 0.72})
        .encode(
            x=alt.X("layer_idx:O", axis=id_axis()),
            y=alt.Y("ms:Q", title="kernel time, sum of all ranks and steps (ms)", stack="zero"),
            color=alt.Color(
                "phase:N",
                title=None,
                scale=colours(PHASES, rows["phase"].unique().to_list()),
                legend=alt.Legend(orient="top", columns=7),
            ),
            order=alt.Order("order:Q"),
            tooltip=[
                alt.Tooltip("layer_idx:O", title="layer"),
                alt.Tooltip("phase:N"),
                alt.Tooltip("ms:Q", title="kernel time, ms", format=",.4f"),
            ],
        )
    )
    steady = _steady(frame)
    if not steady.is_empty():
        diamonds = (
            base("steady")
            .transform_calculate(mark=f"'{WITHOUT}'")
            .mark_point(size=90, color=INK, fill=PALE, strokeWidth=1.5)
            .encode(
                x=alt.X("layer_idx:O"),
                y="ms:Q",
                shape=alt.Shape(
                    "mark:N",
                    scale=alt.Scale(domain=[WITHOUT], range=["diamond"]),
                    legend=alt.Legend(title=None, orient="top"),
                ),
                tooltip=[
                    alt.Tooltip("layer_idx:O", title="layer"),
                    alt.Tooltip("ms:Q", title="without outliers, ms", format=",.4f"),
                    alt.Tooltip("outliers:Q", title="outliers"),
                ],
            )
        )
        chart = alt.layer(chart, diamonds)
    chart = chart.properties(width="container", height=280)
    file = source.file("layer_correlation")
    ranked = sums.sort("kernel_time_ns", descending=True)
    longest, least = ranked.row(0, named=True), ranked.row(-1, named=True)
    cells = [
        [row["layer_idx"], *(duration(row[columns[phase]]) for phase in PHASES), duration(row["kernel_time_ns"])]
        for row in ranked.iter_rows(named=True)
    ]
    outliers = (
        ""
        if steady.is_empty()
        else f" Diamonds: the layer without its outliers, {int(steady['outliers'].sum()):,} (rank, step) in which it "
        f"took over {OUTLYING} times its usual, beside the other layers of the step."
    )
    return Drawing(
        chart,
        {"phases": rows} if steady.is_empty() else {"phases": rows, "steady": steady},
        f"{file}: the columns route_ns to other_ns, summed over ranks and steps. Kernels only, without copies and "
        'memsets. "other" is in the layer but in no phase: the gate\'s GEMM, for one.'
        f"{outliers}",
        f"Stacked bars, one a layer. Layer {longest['layer_idx']} takes most, {duration(longest['kernel_time_ns'])}; "
        f"layer {least['layer_idx']} least, {duration(least['kernel_time_ns'])}.",
        table(("layer", *PHASES, "in all"), cells, file_name=file, which="by time"),
    )


def _steady(frame: pl.DataFrame) -> pl.DataFrame:
    """Return the layers that have outliers: ``layer_idx``, ``ms`` (kernel time without them), ``outliers`` (number)."""
    outliers = outlying(frame).group_by("layer_idx").agg(pl.col("kernel_time_ns").sum().alias("off"), pl.len())
    return (
        frame.group_by("layer_idx")
        .agg(pl.col("kernel_time_ns").sum())
        .join(outliers, on="layer_idx")
        .select("layer_idx", ms=significant((pl.col("kernel_time_ns") - pl.col("off")) / 1e6, 6), outliers="len")
        .sort("layer_idx")
    )
