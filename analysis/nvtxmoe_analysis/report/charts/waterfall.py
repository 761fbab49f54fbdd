"""Waterfall of the GPU time of MoE layers, a panel per kind of step."""

from __future__ import annotations

from itertools import accumulate
from math import isfinite

import altair as alt
import polars as pl

from nvtxmoe_analysis.report.chart import TIME, Drawing, Missing
from nvtxmoe_analysis.report.chart_tools import STEP_KINDS, base, table
from nvtxmoe_analysis.report.ledger import Ledger
from nvtxmoe_analysis.report.number_text import duration
from nvtxmoe_analysis.report.results import Source
from nvtxmoe_analysis.report.steady import CORRELATION, Steady
from nvtxmoe_analysis.report.theme import HOW
from nvtxmoe_analysis.report.waterfall_bars import COLUMNS, LABELS, bar

TITLE = "Where the GPU time of MoE layers goes"
SECTION = TIME
ORDER = 15

#: Pixels of a panel, and of a bar in it.
WIDTH, BAR = 620, 18


def build(source: Source) -> Drawing | Missing:
    """Return floating bars in the order of a waterfall, with the intervals of estimates."""
    if source.frame("waterfall", COLUMNS) is None:
        return Missing(f"Not drawn: {source.why('waterfall')}.")
    main = Ledger(source)
    if main.steady is None:
        return Missing(f"Not drawn: {source.absent.get(CORRELATION, 'no step is steady')}.")
    ledgers = {ledger.steady.kind: ledger for ledger in (main, *main.others) if ledger.steady is not None}
    kinds = [kind for kind in STEP_KINDS if kind in ledgers and len(_bars(ledgers[kind]))]
    if not kinds:
        return Missing("Not drawn: no kind of step is known.")
    rows = pl.concat([_placed(_bars(ledgers[kind])) for kind in kinds])
    panels = [_panel(ledgers[kind].steady, rows.filter(step_kind=kind)["label"].to_list()) for kind in kinds]
    file = source.file("waterfall")
    cells = [
        [
            row["step_kind"],
            row["label"],
            duration(row["time_ns"], row["unit"]),
            ""
            if row["low_ns"] is None
            else f"{duration(row['low_ns'], row['unit'])} to {duration(row['high_ns'], row['unit'])}",
            row["how"],
        ]
        for row in rows.iter_rows(named=True)
    ]
    largest = rows.sort("time_ns", descending=True).row(0, named=True)
    data = rows.select("step_kind", "label", "how", *(f"{name}_ms" for name in ("from", "to", "low", "high")), "ms")
    bases = "; ".join(steps.basis for kind in kinds if (steps := ledgers[kind].steady) is not None)
    return Drawing(
        alt.vconcat(*panels, spacing=24),
        {"waterfall": data},
        f"{file}: rows of steady steps, per step ({bases}). Each bar begins where the one above ends; together they "
        "are the layers' GPU time. Lines are 95 % intervals of estimates. Mind that the scales differ.",
        f"Waterfall by kind of step. The largest bar is {largest['label']} in {largest['step_kind']} steps, "
        f"{duration(largest['time_ns'], largest['unit'])} per steady step.",
        table(("steps", "bar", "time per steady step", "interval", "how"), cells, file_name=file),
    )


def _bars(ledger: Ledger) -> pl.DataFrame:
    """Return the bars with time per steady step of a ledger, in their order."""
    assert ledger.steady is not None
    frame = ledger.source.loaded.frame("waterfall")
    ways = dict(frame.drop_nulls("how").unique("bar").select("bar", "how").iter_rows())
    rows = []
    for name, label in LABELS.items():
        number = bar(ledger, name)
        if number is None or not number.value:
            continue
        low, high = number.interval if number.interval and all(map(isfinite, number.interval)) else (None, None)
        rows.append((ledger.steady.kind, label, float(number.value), low, high, ways.get(name), number.time_unit))
    floats = dict.fromkeys(("time_ns", "low_ns", "high_ns"), pl.Float64)
    schema = {"step_kind": pl.String, "label": pl.String, **floats, "how": pl.String, "unit": pl.String}
    return pl.DataFrame(rows, schema=schema, orient="row")


def _placed(bars: pl.DataFrame) -> pl.DataFrame:
    """Return bars of one kind of step with where they begin and end, in ms."""
    ends = list(accumulate(bars["time_ns"].to_list()))
    begins = [0.0, *ends[:-1]]
    return bars.with_columns(pl.Series("start", begins), pl.Series("end", ends)).with_columns(
        from_ms=pl.col("start") / 1e6,
        to_ms=pl.col("end") / 1e6,
        low_ms=(pl.col("start") + pl.col("low_ns")) / 1e6,
        high_ms=(pl.col("start") + pl.col("high_ns")) / 1e6,
        ms=pl.col("time_ns") / 1e6,
    )


def _panel(steps: Steady | None, order: list[str]) -> alt.LayerChart:
    """Return the bars of one kind of step."""
    assert steps is not None
    y = alt.Y("label:N", sort=order, title="part of the time", axis=alt.Axis(labelLimit=260))
    rows = base("waterfall").transform_filter(alt.FieldEqualPredicate(field="step_kind", equal=steps.kind))
    bars = rows.mark_bar().encode(
        y=y,
        x=alt.X("from_ms:Q", title=f"GPU time per {steps.noun} (ms)"),
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
        width=WIDTH, height=BAR * max(1, len(order)), title=f"{steps.kind} steps"
    )
    return layered
