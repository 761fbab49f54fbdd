"""What MoE layers take per token in the batch that is usual in a capture, and in the largest one."""

from __future__ import annotations

from dataclasses import dataclass

import polars as pl

from nvtxmoe_analysis.report.ledger import Ledger
from nvtxmoe_analysis.report.numbers import SourcedNumber, ratio
from nvtxmoe_analysis.report.own_time import own_column
from nvtxmoe_analysis.report.sentences import Sentence, sentence
from nvtxmoe_analysis.report.steady import CORRELATION, LEAST_STEPS, STEP

#: A batch is larger if it has so many times the tokens.
LARGER = 2.0


@dataclass(frozen=True)
class Batches:
    """Two batch sizes of a capture.

    Attributes:
        tokens: of the usual batch (the median steady step). larger: of the largest with LEAST_STEPS steps; None if it
            is not LARGER.
    """

    tokens: int
    larger: int | None


def batches(ledger: Ledger) -> Batches:
    """Return the usual and the largest batch per rank of the steady steps."""
    assert ledger.steady is not None
    frame = ledger.source.loaded.frame(CORRELATION).select(*STEP, "num_tokens")
    steps = frame.filter(pl.col("step").is_in(ledger.steady.numbers)).unique(list(STEP))
    sizes = steps.group_by("num_tokens").agg(many=pl.col("step").n_unique()).sort("num_tokens")
    cumulated = sizes.filter(pl.col("many").cum_sum() >= pl.col("many").sum() / 2)
    tokens = int(cumulated["num_tokens"][0])
    enough = sizes.filter((pl.col("many") >= LEAST_STEPS) & (pl.col("num_tokens") >= LARGER * tokens))
    return Batches(tokens, int(enough["num_tokens"].max()) if len(enough) else None)  # type: ignore[arg-type]


def per_token(ledger: Ledger) -> Sentence:
    """Return what a token costs in the usual and in the largest batch of the capture."""
    sizes = batches(ledger)
    if sizes.larger is None:
        return sentence(
            "lower time per token: this capture has no batch of twice the {} tokens of its median step, so how "
            "much lower is not known.",
            str(sizes.tokens),
        )
    usual, larger = (_at(ledger, tokens) for tokens in (sizes.tokens, sizes.larger))
    text = (
        "less time per token. In this capture MoE layers take {} per step of {} tokens and {} per step of {}: {} times "
        "the time for {} times the tokens."
    )
    more = f"{sizes.larger / sizes.tokens:.2g}"
    return sentence(text, usual, str(sizes.tokens), larger, str(sizes.larger), ratio(larger, usual), more)


def _at(ledger: Ledger, tokens: int) -> SourcedNumber:
    column = own_column(ledger.source.loaded.frame(CORRELATION))
    return ledger.per_step(CORRELATION, column, where={"num_tokens": tokens}, by=STEP)
