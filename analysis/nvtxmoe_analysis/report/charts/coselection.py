"""Chart of pairs of experts that tokens choose together."""

from __future__ import annotations

from typing import Any

import altair as alt
import polars as pl

from nvtxmoe_analysis.report.chart import ROUTING, Drawing, Missing
from nvtxmoe_analysis.report.chart_tools import base, id_axis, significant, table
from nvtxmoe_analysis.report.number_text import count, pct, times
from nvtxmoe_analysis.report.pairs import with_lift
from nvtxmoe_analysis.report.results import Source

TITLE = "Experts that are chosen together"
SECTION = ROUTING
ORDER = 30

#: Most pairs of all layers together; least and most experts per layer.
MOST_PAIRS, LEAST_EXPERTS, MOST_EXPERTS = 24_000, 16, 64
SIDE = 470
#: Pairs shown as bars.
TOP_PAIRS = 18


def build(source: Source) -> Drawing | Missing:
    """Return a matrix of experts by experts, for a layer that readers choose."""
    frame = source.frame("coselection")
    if frame is None:
        return Missing(f"Not drawn: {source.why('coselection')}; pairs need sampled tokens with two experts or more.")
    pairs = with_lift(frame, source)
    layers = pairs["layer_idx"].unique().sort().to_list()
    number = _experts_shown(len(layers))
    shown_pairs = _busiest(pairs, number)
    strongest = pairs.sort(["pct", "layer_idx"], descending=[True, False])
    first = strongest.row(0, named=True)
    shown_layer = int(first["layer_idx"])
    cells = shown_pairs.select(
        "layer_idx", "a", "b", pl.col("coselection_count").alias("n"), significant(pl.col("pct", "lift"))
    )
    cells = cells.with_columns(pair=pl.format("{} and {}", "a", "b"))
    file = source.file("coselection")
    cut = len(shown_pairs) < len(pairs)
    more_text = (
        f" Of each layer the {number} experts with the most pairs: {len(shown_pairs):,} of {len(pairs):,} pairs."
        if cut
        else ""
    )
    rows = [
        [
            r["layer_idx"],
            f"{r['expert_id_1']} and {r['expert_id_2']}",
            count(r["coselection_count"]),
            pct(r["pct"]),
            "" if r["lift"] is None else times(r["lift"]),
        ]
        for r in strongest.head(40).iter_rows(named=True)
    ]
    return Drawing(
        _chart(layers, shown_layer),
        {"pairs": cells},
        f"{file}: coselection_count over tokens, the tokens looked at ({_range(pairs['tokens'])} a layer). Pairs that "
        f"never occurred are empty; the colours follow the square root.{more_text} The pointer also shows how often a "
        "pair occurs against what independent choices give.",
        f"Matrix of layer {shown_layer}. The pair chosen together most often in any layer is {first['expert_id_1']} "
        f"and {first['expert_id_2']}: {pct(first['pct'])} of its tokens.",
        table(
            ("layer", "experts", "tokens with both", "of the tokens", "times independence"),
            rows,
            file_name=file,
            total=len(pairs),
            which="by share of the tokens",
        ),
    )


def _chart(layers: list[int], first: int) -> alt.HConcatChart:
    """Return the matrix, each pair on both sides of the diagonal, and the layer's strongest pairs as bars."""
    chosen = alt.param(name="layer", value=first, bind=alt.binding_select(options=layers, name="layer "))
    layer_pairs = base("pairs").transform_filter("datum.layer_idx == layer")
    tips = [
        alt.Tooltip("pair:N", title="experts"),
        alt.Tooltip("n:Q", title="tokens that chose both", format=","),
        alt.Tooltip("pct:Q", title="of the tokens, %"),
        alt.Tooltip("lift:Q", title="times what independence gives"),
    ]
    colour = alt.Color(
        "pct:Q",
        title="share of the layer's tokens (%)",
        scale=alt.Scale(type="sqrt", domainMin=0, nice=False),
        legend=alt.Legend(orient="top", gradientLength=220),
    )

    def half(x: str, y: str) -> Any:
        axes = {"x": alt.X(f"{x}:O", axis=id_axis("expert")), "y": alt.Y(f"{y}:O", axis=id_axis("expert"))}
        return layer_pairs.mark_rect().encode(**axes, color=colour, tooltip=tips)

    matrix = alt.layer(half("a", "b"), half("b", "a")).properties(width=SIDE, height=SIDE)
    top = (
        layer_pairs.transform_window(place="row_number()", sort=[alt.SortField("pct", order="descending")])
        .transform_filter(f"datum.place <= {TOP_PAIRS}")
        .encode(
            y=alt.Y("pair:N", title="pair of experts", sort=alt.SortField("place"), axis=alt.Axis(labelLimit=120)),
            x=alt.X("pct:Q", title="share of the layer's tokens (%)"),
            tooltip=tips,
        )
    )
    bars = top.mark_bar(height={"band": 0.7}).properties(width=SIDE - 130, height=SIDE, title="its strongest pairs")
    panels: alt.HConcatChart = alt.hconcat(matrix, bars, spacing=36).add_params(chosen)
    return panels


def _experts_shown(layers: int) -> int:
    """Return the number of experts shown per layer, so that all pairs stay within ``MOST_PAIRS``."""
    return max(LEAST_EXPERTS, min(MOST_EXPERTS, int((2 * MOST_PAIRS / layers) ** 0.5)))


def _busiest(pairs: pl.DataFrame, number: int) -> pl.DataFrame:
    """Return the pairs among each layer's ``number`` experts with the most pairs; ``a`` and ``b`` are the experts."""
    both = pl.concat(
        [
            pairs.select("layer_idx", pl.col(column).alias("expert"), "coselection_count")
            for column in ("expert_id_1", "expert_id_2")
        ]
    )
    ranked = (
        both.group_by("layer_idx", "expert")
        .agg(pl.col("coselection_count").sum())
        .sort(["coselection_count", "expert"], descending=[True, False])
    )
    top = ranked.group_by("layer_idx", maintain_order=True).head(number).select("layer_idx", "expert")
    for column in ("expert_id_1", "expert_id_2"):
        pairs = pairs.join(top.rename({"expert": column}), on=["layer_idx", column], how="semi", maintain_order="left")
    return pairs.with_columns(a=pl.col("expert_id_1"), b=pl.col("expert_id_2"))


def _range(values: pl.Series) -> str:
    ordered = values.unique().sort().to_list()
    return f"{ordered[0]:,}" if len(ordered) == 1 else f"{ordered[0]:,} to {ordered[-1]:,}"
