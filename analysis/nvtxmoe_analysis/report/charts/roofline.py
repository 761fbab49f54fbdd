"""Points of the experts' kernels under the GPU's roofline."""

from __future__ import annotations

import altair as alt
import polars as pl

from nvtxmoe_analysis.report.chart import WHY, Drawing, Missing
from nvtxmoe_analysis.report.chart_tools import STEP_KINDS, base, colours, significant, table, thinned
from nvtxmoe_analysis.report.results import Source
from nvtxmoe_analysis.report.theme import KINDS

TITLE = "Experts' kernels and the GPU's roofline"
SECTION = WHY
ORDER = 20

#: Points at most of each kind of step.
MOST_POINTS = 250
SHAPES = {"decode": "circle", "prefill": "triangle-up", "mixed": "square", "none": "cross"}
COLUMNS = (
    *("rank", "step", "layer_idx", "step_kind", "num_tokens", "flop_per_byte", "tflop_per_s", "gb_per_s", "mbu_pct"),
    *("mfu_pct", "limit", "roofline_pct"),
)


def build(source: Source) -> Drawing | Missing:
    """Return throughput against arithmetic intensity on logarithmic scales, under the roofs."""
    frame = source.frame("roofline", COLUMNS)
    if frame is None:
        return Missing(f"Not drawn: {source.why('roofline')}.")
    known = frame.filter(pl.col("roofline_pct").is_not_null() & (pl.col("tflop_per_s") > 0))
    if known.is_empty():
        return Missing(f"Not drawn: {_unknown(source)}.")
    points = thinned(known, ["step_kind"], MOST_POINTS).select(
        "step_kind",
        "num_tokens",
        "layer_idx",
        *(significant(pl.col(name)) for name in ("flop_per_byte", "tflop_per_s", "roofline_pct")),
    )
    present = [kind for kind in STEP_KINDS if kind in points["step_kind"].to_list()]
    x = alt.X(
        "flop_per_byte:Q", scale=alt.Scale(type="log"), title="arithmetic intensity (operations per byte, log scale)"
    )
    y = alt.Y("tflop_per_s:Q", scale=alt.Scale(type="log"), title="throughput (TFLOP/s, log scale)")
    roof = base("roof").mark_line(strokeWidth=1.5, color="#9aa0a6").encode(x=x, y=y, detail="roof:N")
    dots = (
        base("points")
        .mark_point(size=18, opacity=0.6)
        .encode(
            x=x,
            y=y,
            color=alt.Color("step_kind:N", title=None, scale=colours(KINDS, present), legend=alt.Legend(orient="top")),
            shape=alt.Shape("step_kind:N", title=None, scale=colours(SHAPES, present)),
            tooltip=[
                alt.Tooltip("num_tokens:Q", title="tokens"),
                alt.Tooltip("layer_idx:O", title="layer"),
                alt.Tooltip("flop_per_byte:Q", title="operations per byte", format=",.2f"),
                alt.Tooltip("tflop_per_s:Q", title="TFLOP/s", format=",.3f"),
                alt.Tooltip("roofline_pct:Q", title="of the roofline, %", format=",.2f"),
            ],
        )
    )
    file, summary = source.file("roofline"), source.frame("roofline_summary")
    left = len(known) - len(points)
    note = f" {left:,} of {len(known):,} points are left out, evenly." if left else ""
    best = known.sort("roofline_pct", descending=True).row(0, named=True)
    return Drawing(
        alt.layer(roof, dots).properties(width="container", height=300),
        {"points": points, "roof": _roofs(known)},
        f"{file}: a point per (rank, step, layer), throughput over the time of the matrix products. The lines are the "
        f"least time at the GPU's bandwidth and dense throughput. Both scales are logarithmic.{note}",
        f"Points under a roofline. The best one reaches {best['roofline_pct']:.1f} % of it, in a {best['step_kind']} "
        f"step of {best['num_tokens']:,} tokens.",
        table(*_cells(summary), file_name=file),
    )


def _roofs(known: pl.DataFrame) -> pl.DataFrame:
    """Return the roof of each pair of peaks: three points, the least and most intensity and where the limits meet."""
    bandwidth = (pl.col("gb_per_s") / pl.col("mbu_pct") * 100).round_sig_figs(6)
    throughput = (pl.col("tflop_per_s") / pl.col("mfu_pct") * 100).round_sig_figs(6)
    peaks = known.select(bandwidth.alias("gbs"), throughput.alias("tflops")).unique().sort("gbs", "tflops")
    intensity = known["flop_per_byte"].to_numpy()
    least, highest = float(intensity.min()), float(intensity.max())
    rows = []
    for number, (gbs, tflops) in enumerate(peaks.iter_rows()):
        ridge = 1e3 * tflops / gbs
        for at in (least / 2, ridge, max(2 * highest, 2 * ridge)):
            rows.append((str(number), at, min(tflops, at * gbs / 1e3)))
    return pl.DataFrame(rows, schema=["roof", "flop_per_byte", "tflop_per_s"], orient="row")


def _unknown(source: Source) -> str:
    """Return what is missing."""
    unknown = source.document("roofline_document").get("unknown") or []
    missing = [str(entry.get("meaning")) for entry in unknown if entry.get("what") in ("routed_flop", "weight_bytes")]
    return "; ".join(missing) or "no peak of this GPU is known"


def _cells(summary: pl.DataFrame | None) -> tuple[tuple[str, ...], list[list[object]]]:
    """Return the chart's data as text, by batch size."""
    heads = ("steps", "tokens", "bandwidth", "throughput", "limit", "of the roofline", "padding")
    if summary is None:
        return heads, []
    rows: list[list[object]] = []
    for row in summary.iter_rows(named=True):
        size = "all" if row["tokens_to"] is None else f"{row['tokens_from']:,} to {row['tokens_to']:,}"
        shares = [
            None if row[name] is None else f"{row[name]:.1f} %"
            for name in ("mbu_pct", "mfu_pct", "roofline_pct", "padding_pct")
        ]
        rows.append([row["step_kind"], size, *shares[:2], row["limit"], *shares[2:]])
    return heads, rows
