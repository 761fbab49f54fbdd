"""Waterfall of the GPU time of MoE layers, a panel per kind of step."""

from __future__ import annotations

from itertools import accumulate

import altair as alt
import polars as pl

from nvtxmoe_analysis.report.chart import TIME, Drawing, Missing
from nvtxmoe_analysis.report.chart_tools import STEP_KINDS, base, table
from nvtxmoe_analysis.report.numbers import duration
from nvtxmoe_analysis.report.results import Source
from nvtxmoe_analysis.report.theme import HOW
from nvtxmoe_analysis.report.waterfall_bars import COLUMNS, LABELS

TITLE = "Where the GPU time of MoE layers goes"
SECTION = TIME
ORDER = 15

#: Pixels of a panel, and of a bar in it.
WIDTH, BAR = 620, 18


def build(source: Source) -> Drawing | Missing:
    """Return floating bars in the order of a waterfall, with the intervals of estimates."""
    frame = source.frame("waterfall", COLUMNS)
    if frame is None:
        return Missing(f"Not drawn: {source.why('waterfall')}.")
    sums = _sums(frame)
    kinds = [kind for kind in STEP_KINDS if kind in sums["step_kind"].to_list()]
    if not kinds:
        return Missing("Not drawn: no kind of step is known.")
    rows = pl.concat([_placed(sums.filter(step_kind=kind)) for kind in kinds])
    panels = [_panel(kind, rows.filter(step_kind=kind)["label"].to_list()) for kind in kinds]
    file = source.file("waterfall")
    cells = [
        [
            row["step_kind"],
            row["label"],
            duration(row["time_ns"]),
            "" if row["low_ns"] is None else f"{duration(row['low_ns'])} to {duration(row['high_ns'])}",
            row["how"],
        ]
        for row in rows.iter_rows(named=True)
    ]
    largest = rows.sort("time_ns", descending=True).row(0, named=True)
    data = rows.select("step_kind", "label", "how", *(f"{name}_ms" for name in ("from", "to", "low", "high")), "ms")
    return Drawing(
        alt.vconcat(*panels, spacing=24),
        {"waterfall": data},
        f"{file}: rows without a step, summed over groups of ranks. Each bar begins where the one above ends; together "
        "they are the layers' GPU time. Lines are 95 % intervals of estimates. Mind that the scales differ.",
        f"Waterfall by kind of step. The largest bar is {largest['label']} in {largest['step_kind']} steps, "
        f"{duration(largest['time_ns'])}.",
        table(("steps", "bar", "time", "interval", "how"), cells, file_name=file),
    )


def _sums(frame: pl.DataFrame) -> pl.DataFrame:
    """Return the bars with time by kind of step, in their order."""
    order = {bar: number for number, bar in enumerate(LABELS)}
    return (
        frame.filter(
            pl.col("step").is_null()
            & pl.col("step_kind").is_not_null()
            & pl.col("bar").is_in(list(LABELS))
            & pl.col("time_ns").is_not_null()
        )
        .group_by("step_kind", "bar")
        .agg(
            pl.col("time_ns").sum(),
            *(pl.when(pl.col(name).count() > 0).then(pl.col(name).sum()).alias(name) for name in ("low_ns", "high_ns")),
            pl.col("how").drop_nulls().first(),
        )
        .filter(pl.col("time_ns") != 0)
        .sort("step_kind", pl.col("bar").replace_strict(order, return_dtype=pl.Int64))
        .with_columns(label=pl.col("bar").replace_strict(dict(LABELS), return_dtype=pl.String))
    )


def _placed(bars: pl.DataFrame) -> pl.DataFrame:
    """Return bars of one kind of step with where they begin and end, in ms."""
    ends = list(accumulate(bars["time_ns"].to_list()))
    begins = [0, *ends[:-1]]
    start = pl.Series("start", begins, dtype=pl.Int64)
    return bars.with_columns(start, pl.Series("end", ends, dtype=pl.Int64)).with_columns(
        from_ms=pl.col("start") / 1e6,
        to_ms=pl.col("end") / 1e6,
        low_ms=(pl.col("start") + pl.col("low_ns")) / 1e6,
        high_ms=(pl.col("start") + pl.col("high_ns")) / 1e6,
        ms=pl.col("time_ns") / 1e6,
    )


def _panel(kind: str, order: list[str]) -> alt.LayerChart:
    y = alt.Y("label:N", sort=order, title="part of the time", axis=alt.Axis(labelLimit=260))
    rows = base("waterfall").transform_filter(alt.FieldEqualPredicate(field="step_kind", equal=kind))
    bars = rows.mark_bar().encode(
        y=y,
        x=alt.X("from_ms:Q", title="GPU time of all ranks (ms)"),
        x2="to_ms:Q",
        color=alt.Color(
            "how:N",
            title=None,
            scale=alt.Scale(domain=list(HOW), range=list(HOW.values())),
            legend=alt.Legend(orient="top"),
        ),
        tooltip=[
            alt.Tooltip("label:N", title="bar"),
            alt.Tooltip("ms:Q", title="ms", format=",.4f"),
            alt.Tooltip("how:N", title="found"),
        ],
    )
    intervals = rows.mark_rule(strokeWidth=1.5).encode(y=y, x="low_ms:Q", x2="high_ms:Q")
    layered: alt.LayerChart = alt.layer(bars, intervals).properties(
        width=WIDTH, height=BAR * max(1, len(order)), title=f"{kind} steps"
    )
    return layered
