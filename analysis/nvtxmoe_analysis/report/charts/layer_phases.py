"""Bars of kernel time per layer and phase."""

from __future__ import annotations

import altair as alt
import polars as pl

from nvtxmoe_analysis.report.chart import TIME, Drawing, Missing
from nvtxmoe_analysis.report.chart_tools import base, colours, id_axis, significant, table
from nvtxmoe_analysis.report.numbers import duration
from nvtxmoe_analysis.report.results import Source
from nvtxmoe_analysis.report.theme import PHASES

TITLE = "Kernel time of each layer, by phase"
SECTION = TIME
ORDER = 20


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
            y=alt.Y("ms:Q", title="kernel time, ms (all ranks and steps)", stack="zero"),
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
        .properties(width="container", height=280)
    )
    file = source.file("layer_correlation")
    ranked = sums.sort("kernel_time_ns", descending=True)
    most, least = ranked.row(0, named=True), ranked.row(-1, named=True)
    cells = [
        [row["layer_idx"], *(duration(row[columns[phase]]) for phase in PHASES), duration(row["kernel_time_ns"])]
        for row in ranked.iter_rows(named=True)
    ]
    return Drawing(
        chart,
        {"phases": rows},
        f"{file}: the columns route_ns to other_ns, summed over ranks and steps. Kernels only, without copies and "
        'memsets. "other" is in the layer but in no phase: the gate\'s GEMM, for one.',
        f"Stacked bars, one a layer. Layer {most['layer_idx']} takes most, {duration(most['kernel_time_ns'])}; layer "
        f"{least['layer_idx']} least, {duration(least['kernel_time_ns'])}.",
        table(("layer", *PHASES, "in all"), cells, whole=file, which="by time"),
    )
