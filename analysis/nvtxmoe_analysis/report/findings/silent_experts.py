"""Finding: experts that no token chose."""

from __future__ import annotations

import polars as pl

from nvtxmoe_analysis.core.text import listed
from nvtxmoe_analysis.report.finding import COST, NOTE, Finding, NextStep
from nvtxmoe_analysis.report.ledger import Ledger
from nvtxmoe_analysis.report.numbers import percent
from nvtxmoe_analysis.report.sentences import sentence

ID = "silent-experts"
ORDER = 10
MEANING = (
    "5 % of the experts or more got no token, although the mean expert of their layer got 20: they hold memory for "
    "nothing. No time is at stake. It is consistent with a collapsed router, dummy weights or traffic of one kind."
)

COUNTS = "activations"
#: Assignments of the mean expert from which an expert without any is no chance, and their share to be a problem.
LEAST_MEAN, LEAST_SHARE_PCT = 20, 5.0


def find(ledger: Ledger) -> list[Finding]:
    """Return the experts without a token."""
    frame = ledger.source.frame(COUNTS)
    if frame is None or not frame["activation_count"].sum():
        return []
    silent = frame.filter(pl.col("activation_count") == 0)
    if silent.is_empty():
        return []
    means = frame.group_by("layer_idx").agg(mean=pl.col("activation_count").mean())
    telling = silent.join(means, on="layer_idx").filter(pl.col("mean") >= LEAST_MEAN)
    layers = [str(n) for n in silent["layer_idx"].unique().sort().to_list()]
    rows = ledger.take(COUNTS, "activation_count", "rows")
    many = ledger.take(COUNTS, "activation_count", "rows", where={"activation_count": 0})
    text = "{} of {} (layer, expert) got no token ({}), in {} {}."
    headline = sentence(
        text, many, rows, percent(many, rows), "layer" if len(layers) == 1 else "layers", listed(layers)
    )
    tokens = ledger.take(COUNTS, "activation_count", "sum")
    confidence = sentence("every token is counted, {} assignments in all.", tokens)
    if 100 * len(telling) < LEAST_SHARE_PCT * len(frame):
        return [Finding("Experts never hit", headline, [], confidence, NOTE, "expert_heatmap")]
    next_step = NextStep(
        "check weights and load",
        "Check that the model has its trained weights and the load is like your users'; experts that real load never "
        "hits can be left out of placements' replicas, or pruned.",
        sentence("with real weights and load every expert gets tokens; the GPU time stays as it is."),
        "nvtxmoe profile --num-requests 1000 -- vllm serve MODEL",
    )
    return [Finding("Experts never hit", headline, [], confidence, COST, "expert_heatmap", next_step=next_step)]
