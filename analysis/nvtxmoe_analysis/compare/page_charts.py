"""Charts of the comparison's page: the change of each metric, and of each layer."""

from __future__ import annotations

import altair as alt
import polars as pl

from nvtxmoe_analysis.compare.many import RESULT, Comparisons
from nvtxmoe_analysis.compare.measures import METRICS
from nvtxmoe_analysis.compare.tables import ALL
from nvtxmoe_analysis.report.chart import Drawing, Table
from nvtxmoe_analysis.report.chart_tools import base, id_axis, significant

#: Pixels of a row of intervals, and the height and width of a panel of layers.
ROW, PANEL, LAYERS_WIDTH = 20, 150, 940
#: Points without a significant difference are pale.
PALE = alt.condition(alt.datum.differs == "yes", alt.value(1.0), alt.value(0.35))
#: Answer to "does it differ" by ``significant``.
DIFFERS = {True: "yes", False: "not seen", None: "can't tell"}
#: Rows of a table of layers.
LAYERS_LISTED = 40
_CHANGE = ("change_pct", "change_pct_ci_low", "change_pct_ci_high")


def metric_rows(comparisons: Comparisons) -> pl.DataFrame:
    """Return ``result`` and the columns of ``tables.METRICS`` of all layers together, metrics in their order."""
    order = {name: number for number, name in enumerate(METRICS)}
    rows = pl.concat([
        comparison.metrics.filter(pl.col("layer_idx").is_null(), pl.col("value_b").is_not_null())
        .select(pl.lit(name).alias(RESULT), pl.all())
        for name, comparison in comparisons.results.items()
    ])  # fmt: skip
    return rows.sort(pl.col("metric").replace_strict(order, return_dtype=pl.Int64), maintain_order=True)


def change_chart(compared: Comparisons) -> Drawing | None:
    """Return the change of each metric with its interval, a panel per metric; None without a change to draw."""
    rows = metric_rows(compared).filter(pl.col("step_kind") == ALL, pl.col("change_pct").is_not_null())
    if rows.is_empty():
        return None
    data = rows.select(RESULT, "metric", *(significant(pl.col(name)) for name in _CHANGE), differs=_differs())
    names, metrics = list(compared.results), data["metric"].unique(maintain_order=True).to_list()
    tooltips = [alt.Tooltip("metric:N"), alt.Tooltip(f"{RESULT}:N"), alt.Tooltip("change_pct:Q", title="change (%)")]
    panels = []
    for metric in metrics:
        of_metric = base("changes").transform_filter(alt.datum.metric == metric)
        x = alt.X("change_pct:Q", title=f"change of {metric} (%)", scale=alt.Scale(zero=True))
        y = alt.Y(f"{RESULT}:N", sort=names, title=None, axis=alt.Axis(labelLimit=220))
        intervals = of_metric.mark_rule(strokeWidth=2).encode(x=_CHANGE[1] + ":Q", x2=_CHANGE[2] + ":Q", y=y)
        points = of_metric.mark_point(size=70).encode(x=x, y=y, tooltip=tooltips, opacity=PALE)
        zero = of_metric.mark_rule(strokeDash=[4, 3], opacity=0.6).encode(x=alt.datum(0))
        panels.append(alt.layer(zero, intervals, points).properties(width=620, height=ROW * max(2, len(names))))
    largest = rows.sort(pl.col("change_pct").abs(), descending=True).row(0, named=True)
    return Drawing(
        alt.vconcat(*panels, spacing=12),
        {"changes": data},
        f"All layers together and all kinds of step, against {compared.baseline}. Lines are intervals of each result "
        "by itself. Pale points: no difference was seen after the adjustment for all results. The scales differ.",
        f"Change of each metric against {compared.baseline}. The largest is {largest['metric']} of {largest[RESULT]}, "
        f"{largest['change_pct']:+.2f} %.",
        Table(
            (RESULT, "metric", "change (%)", "interval (%)", "differs"),
            [
                [row[RESULT], row["metric"], f"{row['change_pct']:+.2f}", _interval(row), row["differs"]]
                for row in data.iter_rows(named=True)
            ],
        ),
    )


def layer_chart(comparisons: Comparisons, metric: str) -> Drawing | None:
    """Return a metric's change by layer, all kinds of step; None without layers to draw."""
    rows = pl.concat([
        comparison.metrics.filter(
            pl.col("metric") == metric, pl.col("step_kind") == ALL,
            pl.col("layer_idx").is_not_null(), pl.col("change_pct").is_not_null(),
        ).select(pl.lit(name).alias(RESULT), pl.all())
        for name, comparison in comparisons.results.items()
    ])  # fmt: skip
    if rows.is_empty():
        return None
    data = rows.select(
        RESULT, "layer_idx", *(significant(pl.col(name)) for name in _CHANGE), "p_adjusted", differs=_differs()
    )
    names, layers = list(comparisons.results), data["layer_idx"].unique().sort().to_list()
    x = alt.X("layer_idx:O", sort=layers, axis=id_axis("layer"))
    colour = alt.Color(f"{RESULT}:N", sort=names, title=None, legend=alt.Legend(orient="top", labelLimit=260))
    offset = alt.XOffset(f"{RESULT}:N", sort=names)
    points = base("layers").mark_point(size=36).encode(
        x=x, xOffset=offset, color=colour,
        y=alt.Y("change_pct:Q", title=f"change of {metric} (%)"),
        opacity=PALE,
        tooltip=[
            alt.Tooltip(f"{RESULT}:N"), alt.Tooltip("layer_idx:O", title="layer"),
            alt.Tooltip("change_pct:Q", title="change (%)"), alt.Tooltip("differs:N"),
        ],
    )  # fmt: skip
    intervals = base("layers").mark_rule(opacity=0.4).encode(
        x=x, xOffset=offset, color=colour, y=f"{_CHANGE[1]}:Q", y2=f"{_CHANGE[2]}:Q"
    )  # fmt: skip
    shown = data.sort([pl.col("differs") == "yes", pl.col("change_pct").abs()], descending=True).head(LAYERS_LISTED)
    note = (
        f"The first {len(shown)} of {len(data)} rows by size, significant ones first." if len(shown) < len(data) else ""
    )
    return Drawing(
        alt.layer(intervals, points).properties(width=LAYERS_WIDTH, height=PANEL),
        {"layers": data},
        f"Change of {metric} of each layer against {comparisons.baseline}, all kinds of step. Pale points: no "
        "difference was seen after the adjustment for all layers and results.",
        f"Change of {metric} by layer. {int((data['differs'] == 'yes').sum())} of {len(data)} differ significantly.",
        Table(
            (RESULT, "layer", "change (%)", "interval (%)", "differs"),
            [
                [row[RESULT], str(row["layer_idx"]), f"{row['change_pct']:+.2f}", _interval(row), row["differs"]]
                for row in shown.iter_rows(named=True)
            ],
            note,
        ),
    )


def _differs() -> pl.Expr:
    yes = pl.col("significant")
    return pl.when(yes.is_null()).then(pl.lit(DIFFERS[None])).when(yes).then(pl.lit(DIFFERS[True])).otherwise(
        pl.lit(DIFFERS[False])
    )  # fmt: skip


def _interval(row: dict[str, float | None]) -> str:
    low, high = row[_CHANGE[1]], row[_CHANGE[2]]
    return "-" if low is None or high is None else f"{low:+.2f} to {high:+.2f}"
