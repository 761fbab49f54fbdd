"""How much of each layer was ever used: experts that got a token, and how many hold half of all activations.

python examples/coverage.py RESULTS coverage.html  (or .svg, .png)
"""

import sys

import altair as alt
import polars as pl

from nvtxmoe.errors import NvtxmoeError
from nvtxmoe_analysis import load


def draw(results: str) -> alt.Chart:
    """Return two bars per layer."""
    count = pl.col("activation_count")
    ranked = load(results).activations.sort("layer_idx", count, descending=[False, True])
    # An expert is in the half when those before it hold less than half of the layer's activations.
    before = count.cum_sum().over("layer_idx") - count
    layers = ranked.group_by("layer_idx", maintain_order=True).agg(
        (100.0 * (count > 0).sum() / pl.len()).alias("used at all"),
        (100.0 * ((before < count.sum() / 2) & (count > 0)).sum() / pl.len()).alias("hold half of the activations"),
    )
    rows = layers.unpivot(index="layer_idx", variable_name="experts that", value_name="percent")
    chart: alt.Chart = (
        alt.Chart(rows, title="Coverage of experts", width=alt.Step(14))
        .mark_bar()
        .encode(
            x=alt.X("layer_idx:O", title="layer"),
            y=alt.Y("percent:Q", title="% of the layer's experts", scale=alt.Scale(domain=[0, 100])),
            color=alt.Color("experts that:N"),
            xOffset="experts that:N",
            tooltip=["layer_idx", "experts that", alt.Tooltip("percent", format=".1f")],
        )
    )
    return chart


def main(results: str, output: str) -> None:
    """Write the chart as HTML that needs no network, or as SVG or PNG, by the name of the output."""
    draw(results).save(output, inline=output.endswith(".html"))


if __name__ == "__main__":
    if len(sys.argv) != 3:
        sys.exit(__doc__)
    try:
        main(*sys.argv[1:])
    except NvtxmoeError as error:
        sys.exit(str(error))
