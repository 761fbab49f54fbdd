"""Share of each expert in each layer, over what it would be if all were chosen alike.

python examples/heatmap.py RESULTS heatmap.html  (or .svg, .png)
"""

import sys

import altair as alt
import polars as pl

from nvtxmoe.errors import NvtxmoeError
from nvtxmoe_analysis import load


def draw(results: str) -> alt.Chart:
    """Return a cell per expert of each layer: 1 is an even share, 0 was never chosen."""
    even = 100.0 / pl.len().over("layer_idx")
    cells = load(results).activations.with_columns(times_even=pl.col("percentage") / even)
    alt.data_transformers.disable_max_rows()
    chart: alt.Chart = (
        alt.Chart(cells, title="Experts by layer", width=max(320, min(1200, 4 * cells["expert_id"].n_unique())))
        .mark_rect()
        .encode(
            x=alt.X("expert_id:O", title="expert", axis=alt.Axis(labelOverlap=True)),
            y=alt.Y("layer_idx:O", title="layer"),
            color=alt.Color(
                "times_even:Q", title="times an even share", scale=alt.Scale(scheme="blueorange", domainMid=1)
            ),
            tooltip=["layer_idx", "expert_id", "activation_count", alt.Tooltip("percentage", format=".2f")],
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
