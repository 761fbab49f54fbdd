"""Scatter plot of a layer's own time against the feature that explains it best, with the fitted line."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import altair as alt
import polars as pl

from nvtxmoe_analysis.report.chart import WHY, Drawing, Missing, Table
from nvtxmoe_analysis.report.chart_tools import (
    STEP_KINDS,
    base,
    colours,
    significant,
    table,
    thinned,
    x_pixels,
    y_pixels,
)
from nvtxmoe_analysis.report.number_text import duration
from nvtxmoe_analysis.report.own_time import outlying, own_column
from nvtxmoe_analysis.report.results import Source
from nvtxmoe_analysis.report.steady import OUTLYING, STEP

TITLE = "Own time against the feature that explains it best"
SECTION = WHY
ORDER = 10

#: Most points of all layers and kinds of step together; each layer and kind shows at least ``LEAST_POINTS``.
MOST_POINTS, LEAST_POINTS = 20_000, 40
#: Pixels of all panels together, and of the gaps between them.
WIDTH, GAP, HEIGHT = 950, 64, 260

MODEL = (
    *("layer_idx", "step_kind", "target", "feature", "role", "status", "rows", "slope_ns_per_unit", "slope_ci_low"),
    *("slope_ci_high", "intercept_ns", "r2", "sentence"),
)
#: The feature to draw if none was chosen.
FALLBACK = "local_activations"
#: Colours by the legend's words, on light and dark pages.
POINT, LINE, OUTLIER = "one rank and step", "fitted line", "outlier"
COLOURS = {POINT: "#3f78cc", LINE: "#e0703a", OUTLIER: "#c2327e"}
#: Most outliers drawn of each layer and kind of step, the longest.
MOST_OUTLIERS = 20
#: Units of features.
UNITS = {
    "local_activations": "assignments per step",
    "local_active_experts": "experts per step",
    "local_expert_tiles": "tiles per step",
    "local_max_count": "assignments per step",
    "active_experts": "experts per step",
    "cv": "standard deviation over mean",
    "max_mean_ratio": "times",
    "entropy_bits": "bits",
    "gini": "0 to 1",
}
#: Text instead of a line's numbers, by status.
NO_FIT = {
    "no_effect": "no feature explains the time",
    "refused": "not tested: too few rows",
    "explains": "no line: the feature is no column",
    "cannot_tell_apart": "features cannot be told apart",
}


def build(source: Source) -> Drawing | Missing:
    """Return one panel per kind of step, for a layer that readers choose."""
    model = source.frame("layer_model", MODEL)
    if model is None:
        return Missing(f"Not drawn: {source.why('layer_model')}.")
    rows = source.frame("layer_correlation", ["step_kind"])
    if rows is None:
        return Missing(f"Not drawn: {source.why('layer_correlation')}.")
    rows = rows.filter(pl.col("launched_by") != "none", pl.col("step_kind").is_in(STEP_KINDS))
    best = best_models(model, rows.columns)
    points = _points(rows, best)
    if points.is_empty():
        return Missing("Not drawn: no layer has both counts and kernel time in any kind of step.")
    layers = points["layer"].unique().sort().to_list()
    groups = points.select("layer", "kind").n_unique()
    outliers = points.filter("outlier")
    usual = points.filter(~pl.col("outlier"))
    drawn_points = thinned(usual, ["layer", "kind"], max(LEAST_POINTS, MOST_POINTS // groups))
    marks = pl.concat([drawn_points.drop("outlier"), _lines(points, best)], how="diagonal").with_columns(
        significant(pl.col("x", "us"), 5)
    )
    exceptions = _exceptions(outliers, usual)
    first = costliest(rows, layers)
    kinds = [kind for kind in STEP_KINDS if kind in set(points["kind"])]
    of_first = best.filter(pl.col("layer_idx") == first)
    sentences = of_first.unique("step_kind", keep="last", maintain_order=True)["sentence"].drop_nulls()
    thinning = (
        ""
        if len(drawn_points) == len(usual)
        else f" {len(drawn_points):,} of {len(usual):,} points are drawn, every k-th."
    )
    marking = (
        ""
        if outliers.is_empty()
        else f" Triangles: outliers, {len(outliers):,} (rank, step) in which a layer took over {OUTLYING} times its "
        f"usual, beside the other layers of the step, or over {OUTLYING} times the panel's 90th percentile"
        f"{_longest(exceptions, outliers)}; above the others they are drawn at the upper edge."
    )
    files = source.file("layer_correlation"), source.file("layer_model")
    return Drawing(
        _panels(kinds, layers, first, outliers=not outliers.is_empty()),
        {"points": marks, "words": _words(best, kinds, points)}
        | ({} if outliers.is_empty() else {"outliers": exceptions}),
        f"Points: own_ns of the rows of {files[0]}, a (rank, step) each. Line: role best of {files[1]}, fitted to "
        f"the rows that it counts, with an intercept of its own for each rank and way of launch; the line has their "
        f"mean.{thinning}{marking} No line: the text above says why.",
        f"Scatter plots of layer {first}, one a kind of step. {' '.join(sentences)}",
        _table(best, first, files[1]),
    )


def best_models(model: pl.DataFrame, columns: list[str]) -> pl.DataFrame:
    """Return the rows of role ``best``, one per layer and kind of step, with ``x`` (the column to draw against),
    ``fitted`` (Boolean: there is a line) and ``untested`` (number of features that could not be tested; null for
    none)."""
    drawn = pl.col("feature").is_in(columns)
    line = pl.col("status").is_in(["explains", "cannot_tell_apart"]) & pl.col("slope_ns_per_unit").is_not_null()
    key = ["layer_idx", "step_kind"]
    refused = model.filter(role="alternative", status="refused").group_by(key).agg(pl.len().alias("untested"))
    return (
        model.filter(pl.col("layer_idx").is_not_null(), pl.col("role") == "best", pl.col("target").is_in(columns))
        .unique(key, keep="first", maintain_order=True)
        .join(refused, on=key, how="left", maintain_order="left")
        .with_columns(x=pl.when(drawn).then("feature").otherwise(pl.lit(FALLBACK)), fitted=drawn & line)
    )


def costliest(rows: pl.DataFrame, layers: list[int]) -> int:
    """Return the layer with the most own time among ``layers``."""
    time = rows.filter(pl.col("layer_idx").is_in(layers)).group_by("layer_idx").agg(pl.col(own_column(rows)).sum())
    return int(time.sort([own_column(rows), "layer_idx"], descending=[True, False])["layer_idx"][0])


def _points(rows: pl.DataFrame, best: pl.DataFrame) -> pl.DataFrame:
    """Return the points of each model: ``layer``, ``kind``, ``x``, ``us``, ``step``, ``rank``, ``tokens``, ``part``,
    ``outlier``."""
    rows = rows.join(
        outlying(rows).select(*STEP, "layer_idx", outlier=pl.lit(True)),
        on=[*STEP, "layer_idx"],
        how="left",
        maintain_order="left",
    )
    grouped = rows.partition_by("layer_idx", "step_kind", as_dict=True)
    schema = {
        "layer": pl.Int64,
        "kind": pl.String,
        "x": pl.Float64,
        "us": pl.Float64,
        "step": pl.Int64,
        "rank": pl.Int64,
        "tokens": pl.Int64,
    }
    points_by_model = [pl.DataFrame(schema={**schema, "part": pl.String, "outlier": pl.Boolean})]
    for model in best.iter_rows(named=True):
        model_rows = grouped.get((model["layer_idx"], model["step_kind"]))
        if model_rows is not None:
            points = model_rows.select(
                pl.col("layer_idx").alias("layer"),
                pl.col("step_kind").alias("kind"),
                pl.col(model["x"]).cast(pl.Float64).alias("x"),
                (pl.col(model["target"]) / 1e3).alias("us"),
                "step",
                "rank",
                pl.col("num_tokens").alias("tokens"),
                part=pl.lit("point"),
                outlier=pl.col("outlier").fill_null(False),
            ).drop_nulls(["x", "us"])
            usual = pl.col("us").quantile(0.9, "lower")
            points = points.with_columns(outlier=pl.col("outlier") | (pl.col("us") > OUTLYING * usual))
            points_by_model.append(points.sort("step", "rank"))
    return pl.concat(points_by_model)


def _lines(points: pl.DataFrame, best: pl.DataFrame) -> pl.DataFrame:
    """Return both ends of each fitted line."""
    ends = points.group_by("layer", "kind").agg(pl.col("x").min().alias("from"), pl.col("x").max().alias("to"))
    model = best.filter("fitted").select(
        pl.col("layer_idx").alias("layer"), pl.col("step_kind").alias("kind"), "slope_ns_per_unit", "intercept_ns"
    )
    key = ["layer", "kind", "slope_ns_per_unit", "intercept_ns"]
    lines = ends.join(model, on=["layer", "kind"]).unpivot(["from", "to"], index=key, value_name="x")
    ns = pl.col("intercept_ns") + pl.col("slope_ns_per_unit") * pl.col("x")
    return lines.select("layer", "kind", "x", us=ns / 1e3, part=pl.lit("line")).sort("layer", "kind", "x")


def _exceptions(outliers: pl.DataFrame, usual: pl.DataFrame) -> pl.DataFrame:
    """Return the longest outliers of each panel, with ``took`` (us); ``us`` is where they are drawn, at most a little
    above the other points of the panel."""
    edge = usual.group_by("layer", "kind").agg((1.1 * pl.col("us").max()).alias("edge"))
    longest = (
        outliers.sort("us", descending=True, maintain_order=True)
        .group_by("layer", "kind", maintain_order=True)
        .head(MOST_OUTLIERS)
        .join(edge, on=["layer", "kind"], how="left", maintain_order="left")
    )
    return longest.select(
        *("layer", "kind", "step", "rank", "tokens"),
        significant(pl.col("x"), 5),
        significant(pl.min_horizontal("us", "edge"), 5).alias("us"),
        significant(pl.col("us"), 5).alias("took"),
    )


def _longest(drawn: pl.DataFrame, outliers: pl.DataFrame) -> str:
    return "" if len(drawn) == len(outliers) else f" (the {MOST_OUTLIERS} longest of each panel)"


def _words(best: pl.DataFrame, kinds: list[str], points: pl.DataFrame) -> pl.DataFrame:
    """Return the texts of each panel: ``layer``, ``kind``, ``axis`` (the feature), ``fit``; and ``zero``: 0 where the
    feature's axis begins at zero, null where that would waste half of it or more, which ``axis`` then says."""
    span = points.group_by("layer", "kind").agg(pl.col("x").min().alias("low"), pl.col("x").max().alias("high"))
    whole_panels = {(row[0], row[1]) for row in span.filter(2 * pl.col("low") <= pl.col("high")).rows()}
    rows = []
    for row in best.iter_rows(named=True):
        if row["step_kind"] in kinds:
            panel = row["layer_idx"], row["step_kind"]
            unit = f" ({UNITS[row['x']]})" if row["x"] in UNITS else ""
            cut = "" if panel in whole_panels else ", axis not from 0"
            fit = fit_words(row) if row["fitted"] else unfitted(row)
            rows.append((*panel, f"{row['x']}{unit}{cut}", fit, None if cut else 0))
    schema = {"layer": pl.Int64, "kind": pl.String, "axis": pl.String, "fit": pl.String, "zero": pl.Int64}
    return pl.DataFrame(rows, schema=schema, orient="row")


def unfitted(row: Mapping[str, Any]) -> str:
    """Return why a panel has no line. "No feature explains the time" needs that every feature was tested."""
    if row["status"] == "no_effect" and row["untested"]:
        return "none explains it; some vary too little to test"
    return NO_FIT[row["status"]]


def fit_words(row: Mapping[str, Any]) -> str:
    """Return slope, confidence interval and R2 of a model as text."""
    ci = (
        "" if row["slope_ci_low"] is None else f" ({duration(row['slope_ci_low'])} to {duration(row['slope_ci_high'])})"
    )
    r2 = "" if row["r2"] is None else f", R2 {row['r2']:.2f}"
    return f"{duration(row['slope_ns_per_unit'])} a unit{ci}{r2}"


def _panels(kinds: list[str], layers: list[int], first: int, *, outliers: bool) -> alt.HConcatChart:
    chosen = alt.param(name="layer", value=first, bind=alt.binding_select(options=layers, name="layer "))
    present = [POINT, LINE, *([OUTLIER] if outliers else [])]
    x = alt.X("x:Q", title=None, scale=alt.Scale(zero=False), axis=alt.Axis(format=",~r", tickCount=6))
    y = alt.Y("us:Q", title="own time without collectives (us)")
    tips = [
        alt.Tooltip("step:Q"),
        alt.Tooltip("rank:Q"),
        alt.Tooltip("tokens:Q"),
        alt.Tooltip("x:Q", title="feature"),
    ]
    took = alt.Tooltip("us:Q", title="own time, us", format=",.2f")

    colour = alt.Color(
        "mark:N", title=None, scale=colours(COLOURS, present), legend=alt.Legend(title=None, orient="top")
    )

    def named(rows: alt.Chart, name: str) -> alt.Chart:
        """Return rows with a legend's words, which the colour follows."""
        coloured: alt.Chart = rows.transform_calculate(mark=f"'{name}'").encode(color=colour)
        return coloured

    width = min(560, (WIDTH - GAP * (len(kinds) - 1)) // len(kinds))
    panels = []
    for kind in kinds:
        panel_filter = f"datum.kind == '{kind}' && datum.layer == layer"
        points, words = (
            base("points").transform_filter(panel_filter).encode(x=x, y=y),
            base("words").transform_filter(panel_filter),
        )
        marks = [
            named(points.transform_filter("datum.part == 'point'"), POINT)
            .mark_point(size=28, opacity=0.5)
            .encode(tooltip=[*tips, took]),
            named(points.transform_filter("datum.part == 'line'"), LINE).mark_line(strokeWidth=2.5),
            words.transform_filter("isValid(datum.zero)").mark_point(opacity=0).encode(x=alt.X("zero:Q", title=None)),
            words.mark_text(fontSize=12, fontWeight=500).encode(
                x=x_pixels(width / 2), y=y_pixels(HEIGHT + 34), text="axis:N"
            ),
            words.mark_text(align="left", fontSize=11, color=COLOURS[LINE]).encode(
                x=x_pixels(6), y=y_pixels(-8), text="fit:N"
            ),
        ]
        if outliers:
            triangles = named(base("outliers").transform_filter(panel_filter), OUTLIER)
            spent = alt.Tooltip("took:Q", title="own time, us", format=",.2f")
            marks.insert(
                2,
                triangles.mark_point(size=60, shape="triangle-up").encode(x=x, y=y, tooltip=[*tips, spent]),
            )
        panel = alt.layer(*marks).properties(width=width, height=HEIGHT)
        panels.append(panel.properties(title=alt.TitleParams(f"{kind} steps", offset=22)))
    chart: alt.HConcatChart = alt.hconcat(*panels, spacing=24).add_params(chosen)
    return chart


def _table(best: pl.DataFrame, first: int, file: str) -> Table:
    """Return every model in words, those of layer ``first`` first."""
    ranked = best.sort(pl.col("layer_idx") != first, "layer_idx", maintain_order=True)
    rows = [
        [
            row["layer_idx"],
            row["step_kind"],
            row["status"].replace("_", " "),
            row["sentence"],
            row["rows"],
            "" if row["r2"] is None else f"{row['r2']:.3f}",
        ]
        for row in ranked.iter_rows(named=True)
    ]
    return table(("layer", "steps", "status", "in words", "rows", "R2"), rows, file_name=file)
