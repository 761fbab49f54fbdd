"""Bars of GPU time per kind of step and class of work."""

from __future__ import annotations

from collections.abc import Callable

import altair as alt
import polars as pl

from nvtxmoe_analysis.report.chart import TIME, Drawing, Missing
from nvtxmoe_analysis.report.chart_tools import STEP_KINDS, base, colours, table
from nvtxmoe_analysis.report.ledger import Ledger
from nvtxmoe_analysis.report.number_text import duration, pct, unit_for
from nvtxmoe_analysis.report.results import Source
from nvtxmoe_analysis.report.theme import CLASSES, INK, PALE, is_light

TITLE = "Share of a step's GPU time by class of work"
SECTION = TIME
ORDER = 10

#: Least share that carries its number.
LABELLED_PCT = 4.0

#: Columns of moe_layer_correlation by class; the rest of step_gpu_ns is MoE layers, and waiting in them and outside.
OUTSIDE = {name: f"step_{name}_ns" for name in CLASSES if name not in ("moe layers", "waiting")}


_WAITING = "Waiting for other ranks is apart, except for that for uneven ranks, which is in moe layers."
_WITH_WAITING = "The time of a collective contains its waiting for other ranks."


def build(source: Source) -> Drawing | Missing:
    """Return one bar per kind of step, divided by class."""
    frame = source.frame("layer_correlation", ["step_kind", "step_gpu_ns", *OUTSIDE.values()])
    if frame is None:
        return Missing(f"Not drawn: {source.why('layer_correlation')}.")
    shares = classes_by_kind(source, frame)
    if shares.is_empty():
        return Missing("Not drawn: no step has GPU work.")
    present = shares.filter(pl.col("ns") > 0)["class"].unique().to_list()
    kinds = shares["kind"].unique(maintain_order=True).to_list()
    order = {name: i for i, name in enumerate(CLASSES)}
    unit, unit_per_step = (unit_for(max(shares[name].to_list(), default=0)) for name in ("ns", "ns_per_step"))
    rows = shares.filter(pl.col("ns") > 0).with_columns(
        order=pl.col("class").replace_strict(order, return_dtype=pl.Int64),
        took=text_column("ns", lambda ns: duration(ns, unit)),
        each=text_column("ns_per_step", lambda ns: duration(ns, unit_per_step)),
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
                alt.Tooltip("took:N", title="sum of steps and ranks"),
                alt.Tooltip("each:N", title="per step, mean of steps and ranks"),
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
        [row["kind"], row["class"], row["took"], pct(row["pct"]), row["each"]]
        for row in rows.sort("pct", descending=True)
        .sort(pl.col("kind").replace_strict(kinds, range(len(kinds))), maintain_order=True)
        .iter_rows(named=True)
    ]
    return Drawing(
        chart,
        {"shares": rows},
        f"{file}: step_gpu_ns and the classes beside it, each (rank, step) once, sums over ranks and steps; in "
        "brackets the number of steps. Start-up, eager and outlying steps are left out of the steady ones. "
        f"{_WAITING if 'waiting' in present else _WITH_WAITING}",
        f"Stacked bars of GPU time by class of work. {lead}.",
        table(
            ("steps", "class", "sum of steps and ranks", "share", "per step, mean of steps and ranks"),
            cells,
            file_name=file,
        ),
    )


def classes_by_kind(source: Source, frame: pl.DataFrame) -> pl.DataFrame:
    """Return GPU time per group of steps and class: ``kind`` (as shown, with the number of steps), ``class``, ``ns``,
    ``pct``, ``ns_per_step`` (mean over (rank, step)). Groups are the steady steps of each kind, then the steps left
    out, after ``all`` if there are several.

    Parameters:
        frame: moe_layer_correlation, which repeats a step's columns in each of its layers' rows.
    """
    steps = frame.filter(pl.col("step_gpu_ns") > 0).unique(["rank", "step"], keep="first", maintain_order=True)
    main = Ledger(source)
    ledgers = {ledger.steady.kind: ledger for ledger in (main, *main.others) if ledger.steady is not None}
    sets = {f"steady {kind}": ledgers[kind].steady for kind in STEP_KINDS if kind in ledgers}
    groups = [(name, steps.filter(pl.col("step").is_in(chosen.numbers))) for name, chosen in sets.items() if chosen]
    steady = frozenset().union(*(chosen.numbers for chosen in sets.values() if chosen))
    groups.append(("left out", steps.filter(~pl.col("step").is_in(steady) | pl.col("step").is_null())))
    groups = [(name, chosen) for name, chosen in groups if len(chosen)]
    if len(groups) > 1:
        groups.insert(0, ("all", steps))
    waits = _waits(source)
    rows = []
    for name, chosen in groups:
        total = int(chosen["step_gpu_ns"].sum())
        by_class = {class_: int(chosen[column].sum()) for class_, column in OUTSIDE.items()}
        by_class = {"moe layers": total - sum(by_class.values()), **by_class}
        if waits is not None:
            in_layers, outside = (
                waits.join(chosen.select("step").unique(), on="step").select("layers", "outside").sum().row(0)
            )
            by_class["moe layers"] -= in_layers or 0
            by_class["collective"] -= outside or 0
            by_class["waiting"] = (in_layers or 0) + (outside or 0)
        label = f"{name} ({chosen['step'].n_unique():,})"
        rows += [(label, class_, ns, 100.0 * ns / total, ns / len(chosen)) for class_, ns in by_class.items()]
    types = {"kind": pl.String, "class": pl.String, "ns": pl.Int64, "pct": pl.Float64, "ns_per_step": pl.Float64}
    return pl.DataFrame(rows, schema=types, orient="row")


def _waits(source: Source) -> pl.DataFrame | None:
    """Return what ranks wait per step for reasons other than uneven ranks, in ns: ``step``, ``layers`` (in collectives
    of MoE layers), ``outside``. None if it is unknown."""
    collectives = source.frame("collectives", ["step", "layer_idx", "wait_ns"])
    if collectives is None or not collectives["wait_ns"].count():
        return None
    inside = pl.col("layer_idx").is_not_null()
    waits = collectives.group_by("step").agg(
        layers=pl.col("wait_ns").filter(inside).sum(), outside=pl.col("wait_ns").filter(~inside).sum()
    )
    bars = source.frame("waterfall", ["step", "bar", "time_ns"])
    if bars is None:
        return waits
    uneven = bars.filter(pl.col("step").is_not_null() & (pl.col("bar") == "uneven_ranks"))
    by_step = uneven.group_by("step").agg(uneven=pl.col("time_ns").sum())
    return waits.join(by_step, on="step", how="left").with_columns(
        layers=(pl.col("layers") - pl.col("uneven").fill_null(0)).clip(0)
    )


def text_column(name: str, write: Callable[[float], str]) -> pl.Expr:
    """Format a column of numbers as text."""
    return pl.col(name).map_elements(write, return_dtype=pl.String)


def _largest(shares: pl.DataFrame, kind: str) -> list[tuple[str, float]]:
    largest = shares.filter((pl.col("kind") == kind) & (pl.col("pct") > 0)).sort("pct", descending=True).head(3)
    return [(str(name), float(share)) for name, share in largest.select("class", "pct").iter_rows()]
