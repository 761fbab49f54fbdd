"""Finding: the expert that gets most, and how even the least even layer is step by step."""

from __future__ import annotations

import polars as pl

from nvtxmoe_analysis.report.finding import Finding
from nvtxmoe_analysis.report.ledger import Ledger
from nvtxmoe_analysis.report.numbers import ratio
from nvtxmoe_analysis.report.sentences import Sentence, sentence

ID = "hottest-expert"
ORDER = 44
MEANING = "The expert with the largest share of its layer's assignments. What it costs, if anything, is `uneven-ranks`."

COUNTS = "activations"


def find(ledger: Ledger) -> list[Finding]:
    """Return the hottest expert and the least even layer."""
    frame = ledger.source.frame(COUNTS)
    if frame is None or not frame["activation_count"].sum():
        return []
    hottest = (
        frame.with_columns(times_mean=pl.col("activation_count") / pl.col("activation_count").mean().over("layer_idx"))
        .sort(["times_mean", "layer_idx", "expert_id"], descending=[True, False, False], nulls_last=True)
        .row(0, named=True)
    )
    layer, expert = hottest["layer_idx"], hottest["expert_id"]
    cell = {"layer_idx": layer, "expert_id": expert}
    hottest_count = ledger.take(COUNTS, "activation_count", where=cell)
    mean = ledger.take(COUNTS, "activation_count", "mean", where={"layer_idx": layer})
    share = ledger.take(COUNTS, "percentage", where=cell)
    times_mean = ratio(hottest_count, mean)
    text = "The hottest expert is expert {} of layer {}: {} times the mean, {} of the layer's assignments."
    headline = sentence(text, expert, layer, times_mean, share)
    if times_mean.text == "1.00":
        headline = sentence("Routing is even: no expert has more than {} times its layer's mean.", times_mean)
    return [Finding("Balance of experts", headline, _by_step(ledger), _sure(ledger), chart="expert_heatmap")]


def _by_step(ledger: Ledger) -> list[Sentence]:
    """Return the layer that is least even from step to step."""
    frame = ledger.source.frame("load_imbalance")
    known = None if frame is None else frame.drop_nulls("max_mean_ratio")
    if known is None or known.is_empty():
        return []
    by_layer = known.group_by("layer_idx").agg(pl.col("max_mean_ratio").median())
    layer = int(by_layer.sort(["max_mean_ratio", "layer_idx"], descending=[True, False])["layer_idx"][0])
    where = {"layer_idx": layer}
    median = ledger.take("load_imbalance", "max_mean_ratio", "median", where=where)
    worst = ledger.take("load_imbalance", "max_mean_ratio", "max", where=where)
    return [
        sentence(
            "Step by step layer {} is the least even: the median of max/mean is {}, the worst {}.", layer, median, worst
        )
    ]


def _sure(ledger: Ledger) -> Sentence:
    tokens = ledger.take(COUNTS, "activation_count", "sum")
    return sentence(
        "every token is counted, {} assignments in all. Steps with few tokens look uneven even when routing is even.",
        tokens,
    )
