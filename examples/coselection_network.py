"""Which experts of a layer are chosen for one token more often than their popularity explains.

python examples/coselection_network.py RESULTS network.html [LAYER]  (or .svg, .png)
"""

import sys

import altair as alt
import numpy as np
import polars as pl

from nvtxmoe.errors import NvtxmoeError
from nvtxmoe_analysis import load

#: Pairs that are drawn.
MOST_PAIRS = 120
#: Pairs that chance would bring together less often than this say little.
LEAST_EXPECTED = 5.0


def draw(results: str, layer: str = "0") -> alt.LayerChart:
    """Return experts on a circle, those that go together near each other, and lines between pairs."""
    loaded = load(results)
    if not layer.isdecimal():
        raise NvtxmoeError(f"a layer is a number, not {layer!r}")
    pairs = loaded.coselection.filter(layer_idx=int(layer))
    experts = len(loaded.activations.filter(layer_idx=int(layer)))
    if not experts:
        raise NvtxmoeError(f"no layer {layer} among these results", where=results)
    count = np.zeros((experts, experts))
    first, other = pairs["expert_id_1"].to_numpy(), pairs["expert_id_2"].to_numpy()
    count[first, other] = count[other, first] = pairs["coselection_count"].to_numpy()
    # Expected if partners were drawn by popularity alone, as in the configuration model of networks.
    degree = count.sum(axis=1)
    expected = np.outer(degree, degree) / max(degree.sum(), 1.0)
    lift = np.divide(count, expected, out=np.zeros_like(count), where=expected >= LEAST_EXPECTED)
    at = np.argsort(_order(lift))
    angle = 2.0 * np.pi * at / experts
    nodes = pl.DataFrame({"expert": np.arange(experts), "x": np.cos(angle), "y": np.sin(angle), "partners": degree})
    rows, columns = np.triu_indices(experts, 1)
    top = np.argsort(-lift[rows, columns], kind="stable")[:MOST_PAIRS]
    rows, columns = rows[top], columns[top]
    lines = pl.DataFrame(
        {
            "pair": [f"{a} and {b}" for a, b in zip(rows, columns, strict=True)],
            "lift": lift[rows, columns],
            "count": count[rows, columns],
            **{"x": np.cos(angle)[rows], "y": np.sin(angle)[rows]},
            **{"x2": np.cos(angle)[columns], "y2": np.sin(angle)[columns]},
        }
    ).filter(pl.col("lift") > 1.0)
    tokens = int(pairs["tokens"].max() or 0)
    title = f"Layer {layer}: experts chosen for one token, {tokens:,} tokens looked at"
    scale = alt.Scale(domain=[-1.1, 1.1])
    axes = {"x": alt.X("x:Q", axis=None, scale=scale), "y": alt.Y("y:Q", axis=None, scale=scale)}
    drawn = (
        alt.Chart(lines, title=title, width=600, height=600)
        .mark_rule()
        .encode(
            **axes,
            x2="x2:Q",
            y2="y2:Q",
            opacity=alt.Opacity("lift:Q", title="times chance", scale=alt.Scale(range=[0.15, 0.9])),
            size=alt.Size("count:Q", title="times together", scale=alt.Scale(range=[0.5, 6])),
            tooltip=["pair", "lift", "count"],
        )
    )
    circles = (
        alt.Chart(nodes)
        .mark_circle(color="orange", opacity=1.0)
        .encode(**axes, size=alt.Size("partners:Q", legend=None), tooltip=["expert", "partners"])
    )
    labels = alt.Chart(nodes).mark_text(fontSize=9).encode(**axes, text="expert:N")
    network: alt.LayerChart = alt.layer(drawn, circles, labels).resolve_scale(size="independent")
    return network


def _order(weights: np.ndarray) -> np.ndarray:
    """Experts by the Fiedler vector of their network, which puts near each other what is tied."""
    laplacian = np.diag(weights.sum(axis=1)) - weights
    return np.argsort(np.linalg.eigh(laplacian)[1][:, min(1, len(weights) - 1)], kind="stable")


def main(results: str, output: str, layer: str = "0") -> None:
    """Write the chart as HTML that needs no network, or as SVG or PNG, by the name of the output."""
    draw(results, layer).save(output, inline=output.endswith(".html"))


if __name__ == "__main__":
    if len(sys.argv) not in (3, 4):
        sys.exit(__doc__)
    try:
        main(*sys.argv[1:])
    except NvtxmoeError as error:
        sys.exit(str(error))
