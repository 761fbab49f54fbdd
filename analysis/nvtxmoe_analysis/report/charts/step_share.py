"""Bars of GPU time per kind of step and class of work."""

from __future__ import annotations

from collections.abc import Callable

import altair as alt
import polars as pl

from nvtxmoe_analysis.report.chart import TIME, Drawing, Missing
from nvtxmoe_analysis.report.chart_tools import STEP_KINDS, base, colours, table
from nvtxmoe_analysis.report.numbers import duration, pct
from nvtxmoe_analysis.report.results import Source
from nvtxmoe_analysis.report.theme import CLASSES, INK, PALE, is_light

TITLE = "Share of a step's GPU time by class of work"
SECTION = TIME
ORDER = 10

#: Least share that carries its number.
LABELLED_PCT = 4.0

#: Columns of moe_layer_correlation by class; the rest of step_gpu_ns is MoE layers.
OUTSIDE = {name: f"step_{name}_ns" for name in CLASSES if name != "moe layers"}


def build(source: Source) -> Drawing | Missing:
    """Return one bar per kind of step, divided by class."""
    frame = source.frame("layer_correlation", ["step_kind", "step_gpu_ns", *OUTSIDE.values()])
    if frame is None:
        return Missing(f"Not drawn: {source.why('layer_correlation')}.")
    shares = classes_by_kind(frame)
    if shares.is_empty():
        return Missing("Not drawn: no step has GPU work.")
    present = shares.filter(pl.col("ns") > 0)["class"].unique().to_list()
    kinds = shares["kind"].unique(maintain_order=True).to_list()
    order = {name: i for i, name in enumerate(CLASSES)}
    rows = shares.filter(pl.col("ns") > 0).with_columns(
        order=pl.col("class").replace_strict(order, return_dtype=pl.Int64),
        took=text_column("ns", duration),
        each=text_column("ns_per_step", duration),
        label=pl.when(pl.col("pct") >= LABELLED_PCT).then(text_column("pct", pct)).otherwise(pl.lit("")),
    )
    bars = base("shares").encode(
        y=alt.Y("kind:N", title="steps (number)", sort=kinds, axis=alt.Axis(labelFontSize=12, labelLimit=260)),
        x=alt.X("pct:Q", title="share of the steps' GPU time (%)", stack="zero", scale=alt.Scale(domain=[0, 100])),
        order=alt.Order("order:Q"),
    )
    chart = alt.layer(
        bars.mark_bar(height={"band": 0.76}).encode(
            color=alt.Color(
                "class:N", title=None, scale=colours(CLASSES, present), legend=alt.Legend(orient="top", columns=10)
            ),
            tooltip=[
                alt.Tooltip("kind:N", title="steps"),
                alt.Tooltip("class:N", title="class"),
                alt.Tooltip("pct:Q", title="share, %", format=".2f"),
                alt.Tooltip("took:N", title="in all"),
                alt.Tooltip("each:N", title="a step and rank"),
            ],
        ),
        bars.mark_text(fontSize=11, fontWeight=600).encode(
            x=alt.X("pct:Q", stack="zero", bandPosition=0.5),
            text="label:N",
            detail="class:N",
            color=alt.condition(
                alt.FieldOneOfPredicate(
                    "class", [name for name, colour in CLASSES.items() if name in present and is_light(colour)]
                ),
                alt.value(INK),
                alt.value(PALE),
            ),
        ),
    ).properties(width="container", height=42 * len(kinds))
    file = source.file("layer_correlation")
    lead = "; ".join(
        f"{kind}: " + ", ".join(f"{name} {pct(share)}" for name, share in _largest(shares, kind)) for kind in kinds
    )
    cells = [
        [row["kind"], row["class"], duration(row["ns"]), pct(row["pct"]), duration(row["ns_per_step"])]
        for row in rows.sort("pct", descending=True)
        .sort(pl.col("kind").replace_strict(kinds, range(len(kinds))), maintain_order=True)
        .iter_rows(named=True)
    ]
    return Drawing(
        chart,
        {"shares": rows},
        f"{file}: step_gpu_ns and the classes beside it, each (rank, step) once, summed by kind of step; in brackets "
        "their number. Kernels, copies and memsets launched in the step. The time of a collective holds its waiting "
        "for other ranks.",
        f"Stacked bars of GPU time by class of work. {lead}.",
        table(("steps", "class", "in all", "share", "a step and rank"), cells, file_name=file),
    )


def classes_by_kind(frame: pl.DataFrame) -> pl.DataFrame:
    """Return GPU time per kind of step and class: ``kind`` (as shown, with the number of steps), ``step_kind``,
    ``class``, ``ns``, ``pct``, ``ns_per_step`` (mean over (rank, step)); kinds in order, after ``all`` if there are
    several.

    Parameters:
        frame: moe_layer_correlation, which repeats a step's columns in each of its layers' rows.
    """
    steps = frame.filter(pl.col("step_gpu_ns") > 0).unique(["rank", "step"], keep="first", maintain_order=True)
    kinds = [kind for kind in STEP_KINDS if kind in set(steps["step_kind"])]
    groups = [(kind, steps.filter(pl.col("step_kind") == kind)) for kind in kinds]
    if len(kinds) > 1:
        groups.insert(0, ("all", steps))
    rows = []
    for kind, kind_steps in groups:
        total = int(kind_steps["step_gpu_ns"].sum())
        by_class = {name: int(kind_steps[column].sum()) for name, column in OUTSIDE.items()}
        by_class = {"moe layers": total - sum(by_class.values()), **by_class}
        number = len(kind_steps)
        label = f"{kind} ({number:,})"
        rows += [(label, kind, name, ns, 100.0 * ns / total, ns / number) for name, ns in by_class.items()]
    types = {"kind": pl.String, "step_kind": pl.String, "class": pl.String, "ns": pl.Int64, "pct": pl.Float64}
    return pl.DataFrame(rows, schema={**types, "ns_per_step": pl.Float64}, orient="row")


def text_column(name: str, write: Callable[[float], str]) -> pl.Expr:
    """Format a column of numbers as text."""
    return pl.col(name).map_elements(write, return_dtype=pl.String)


def _largest(shares: pl.DataFrame, kind: str) -> list[tuple[str, float]]:
    largest = shares.filter((pl.col("kind") == kind) & (pl.col("pct") > 0)).sort("pct", descending=True).head(3)
    return [(str(name), float(share)) for name, share in largest.select("class", "pct").iter_rows()]
