"""Bars of the slowest rank's excess, and of wait and transfer time in collectives, per layer."""

from __future__ import annotations

from collections.abc import Mapping

import altair as alt
import polars as pl

from nvtxmoe_analysis.report.chart import RANKS, Drawing, Missing
from nvtxmoe_analysis.report.chart_tools import base, id_axis, significant, table
from nvtxmoe_analysis.report.number_text import duration
from nvtxmoe_analysis.report.results import Source
from nvtxmoe_analysis.report.theme import PHASES

TITLE = "Waiting for the slowest rank, by layer"
SECTION = RANKS
ORDER = 10

#: Names in the chart and colours of columns of moe_straggler, by panel.
EXCESS = {"excess_ns": ("slowest rank over the mean", "#e08a1e")}
COLLECTIVES = {
    "wait_ns": ("waiting for the last rank", PHASES["collective"]),
    "transfer_ns": ("transfer", PHASES["other"]),
}
PARTS = {**EXCESS, **COLLECTIVES}
#: Pixels of a panel.
WIDTH, HEIGHT = 425, 240


def build(source: Source) -> Drawing | Missing:
    """Return bars per layer, side by side: excess of own work, wait time, transfer time."""
    frame = source.frame("straggler", ["layer_idx", "slowest_rank", *PARTS])
    if frame is None:
        return Missing(f"Not drawn: {_reason(source)}.")
    known = [pl.when(pl.col(column).count() > 0).then(pl.col(column).sum()).alias(column) for column in PARTS]
    sums = frame.group_by("layer_idx").agg(*known, pl.len().alias("steps")).sort("layer_idx")
    names = {column: name for column, (name, _) in PARTS.items()}
    rows = (
        sums.unpivot(list(PARTS), index=["layer_idx", "steps"], variable_name="column", value_name="ns")
        .drop_nulls("ns")
        .with_columns(
            part=pl.col("column").replace_strict(names, return_dtype=pl.String),
            ms=significant(pl.col("ns") / 1e6, 6),
            us=significant(pl.col("ns") / pl.col("steps") / 1e3, 5),
        )
        .select("layer_idx", "part", "ms", "us")
    )
    panels = [
        _panel("Own work of the layer: slowest rank over the ranks' mean", EXCESS, "excess, sum of all steps (ms)"),
        _panel("Collectives tied to the layer", COLLECTIVES, "time, sum of all steps and ranks (ms)"),
    ]
    file = source.file("straggler")
    unknown = frame["excess_ns"].null_count()
    left_out = f" {unknown:,} of {len(frame):,} rows have no excess: not all their ranks are known." if unknown else ""
    ranked = sums.sort("excess_ns", descending=True, nulls_last=True)
    first = ranked.row(0, named=True)
    cells = [
        [
            row["layer_idx"],
            f"{row['steps']:,}",
            *("" if row[column] is None else duration(row[column]) for column in PARTS),
        ]
        for row in ranked.iter_rows(named=True)
    ]
    return Drawing(
        alt.hconcat(*panels, spacing=40).resolve_scale(color="independent"),
        {"ranks": rows},
        f"{file}: excess_ns, wait_ns and transfer_ns, sums over steps. The first is what perfect balance could save at "
        "most. Waiting also comes from before the layer: the first collective of a step takes the whole delay of a "
        f"late rank. Mind that the scales differ.{left_out}",
        f"Bars by layer. Layer {first['layer_idx']} has the most excess, {duration(first['excess_ns'] or 0)} over "
        f"{first['steps']:,} steps.",
        table(("layer", "steps", *(name for name, _ in PARTS.values())), cells, file_name=file, which="by excess"),
    )


def _panel(title: str, parts: Mapping[str, tuple[str, str]], axis: str) -> alt.Chart:
    """Return bars per layer; several parts are side by side."""
    order = [name for name, _ in parts.values()]
    bars: alt.Chart = (
        base("ranks")
        .transform_filter(alt.FieldOneOfPredicate(field="part", oneOf=order))
        .mark_bar(width={"band": 0.8} if len(order) > 1 else {"band": 0.5})
        .encode(
            x=alt.X("layer_idx:O", axis=id_axis()),
            **({"xOffset": alt.XOffset("part:N", sort=order)} if len(order) > 1 else {}),
            y=alt.Y("ms:Q", title=axis),
            color=alt.Color(
                "part:N",
                title=None,
                scale=alt.Scale(domain=order, range=[colour for _, colour in parts.values()]),
                legend=alt.Legend(orient="top", labelLimit=260) if len(order) > 1 else None,
            ),
            tooltip=[
                alt.Tooltip("layer_idx:O", title="layer"),
                alt.Tooltip("part:N", title="what"),
                alt.Tooltip("ms:Q", title="in all, ms", format=",.4f"),
                alt.Tooltip("us:Q", title="a step, us", format=",.2f"),
            ],
        )
        .properties(width=WIDTH, height=HEIGHT, title=title)
    )
    return bars


def _reason(source: Source) -> str:
    """Return why there are no rows: the reason in the document, if it has one."""
    reason = source.document("straggler_document").get("reason")
    return reason.rstrip(".") if isinstance(reason, str) and reason else source.why("straggler")
