"""Finding: expert kernels compute many rows that no token needs."""

from __future__ import annotations

from nvtxmoe_analysis.report.batches import per_token
from nvtxmoe_analysis.report.finding import COST, Finding, NextStep, stake
from nvtxmoe_analysis.report.ledger import Ledger, rows_where
from nvtxmoe_analysis.report.numbers import Where, interval_words
from nvtxmoe_analysis.report.sentences import Sentence, sentence
from nvtxmoe_analysis.report.waterfall_bars import bar

ID = "tile-padding"
ORDER = 7
MEANING = (
    "Expert kernels work on tiles that are mostly empty, and the rows that pad them cost time in this capture. At "
    "stake: the estimated cost of those rows (`padding` of `moe_waterfall`)."
)

SUMMARY = "roofline_summary"


def find(ledger: Ledger) -> list[Finding]:
    """Return what padding costs per steady step, if the estimate's lower end is above 0."""
    padding = bar(ledger, "padding")
    if padding is None or ledger.step_time is None or ledger.steady is None:
        return []
    at_stake = stake(padding, ledger.step_time)
    if not at_stake.matters or padding.interval is None or padding.interval[0] <= 0:
        return []
    text = "Rows that pad the experts' tiles cost {} per {}, {}{}."
    headline = sentence(text, padding, ledger.steady.noun, at_stake.share, interval_words(padding))
    next_step = NextStep(
        "larger batches",
        "Send more requests at a time, so that experts get fuller tiles; or tune the kernel's tiles for this batch.",
        per_token(ledger),
        "vllm serve MODEL --max-num-seqs N",
    )
    confidence = sentence("a model of the matrix products' time by active experts and rows of tiles.")
    return [Finding("Padding of tiles", headline, _share(ledger), confidence, COST, "waterfall", at_stake, next_step)]


def _share(ledger: Ledger) -> list[Sentence]:
    """Return how much of the tiles is padding."""
    frame = ledger.source.frame(SUMMARY, ["padding_pct", "tokens_to"])
    if frame is None or ledger.steady is None:
        return []
    where: Where = {"step_kind": ledger.steady.kind, "tokens_to": None}
    rows = rows_where(frame, where)
    if len(rows) != 1 or rows["padding_pct"][0] is None:
        return []
    return [sentence("{} of the rows of tiles are padding.", ledger.take(SUMMARY, "padding_pct", where=where))]
