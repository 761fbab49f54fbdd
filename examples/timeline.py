"""Imbalance of each layer over time: the hottest expert's tokens over the mean expert's, step by step.

python examples/timeline.py RESULTS timeline.html  (or .svg, .png)
"""

import sys

import altair as alt
import polars as pl

from nvtxmoe.errors import NvtxmoeError
from nvtxmoe_analysis import load

#: Points a line; more steps than that are averaged in equal spans of time.
MOST_POINTS = 300


def draw(results: str) -> alt.VConcatChart:
    """Return a line per layer, above the tokens of the steps."""
    steps = load(results).load_imbalance.drop_nulls(["timestamp_sec", "max_mean_ratio"])
    time = pl.col("timestamp_sec")
    span = (time.max() - time.min()) / MOST_POINTS
    at = pl.when(span > 0).then(((time - time.min()) / span).floor() * span + time.min()).otherwise(time)
    points = steps.group_by("layer_idx", at.alias("seconds")).agg(
        pl.col("max_mean_ratio").mean(), pl.col("num_tokens").sum(), pl.len().alias("steps")
    )
    # The more tokens a step has, the lower is the ratio even for the same router: the number is beside it.
    base = alt.Chart(points.sort("layer_idx", "seconds"), width=700).encode(x=alt.X("seconds:Q", title="seconds"))
    imbalance = base.mark_line().encode(
        y=alt.Y("max_mean_ratio:Q", title="max/mean"),
        color=alt.Color("layer_idx:Q", title="layer", scale=alt.Scale(scheme="viridis")),
        detail="layer_idx:N",
        tooltip=["layer_idx", "seconds", "max_mean_ratio", "num_tokens", "steps"],
    )
    tokens = base.mark_bar(color="gray").encode(y=alt.Y("max(num_tokens):Q", title="tokens"))
    alt.data_transformers.disable_max_rows()
    both = alt.vconcat(imbalance.properties(height=260, title="Imbalance over time"), tokens.properties(height=80))
    shared: alt.VConcatChart = both.resolve_scale(x="shared")
    return shared


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
