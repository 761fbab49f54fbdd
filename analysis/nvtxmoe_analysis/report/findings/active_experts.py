"""Finding: few tokens hit many experts, and each expert's weights are read for a handful of rows."""

from __future__ import annotations

from nvtxmoe_analysis.report.batches import per_token
from nvtxmoe_analysis.report.finding import COST, Finding, NextStep, stake
from nvtxmoe_analysis.report.ledger import Ledger
from nvtxmoe_analysis.report.numbers import interval_words, ratio
from nvtxmoe_analysis.report.sentences import sentence
from nvtxmoe_analysis.report.steady import CORRELATION
from nvtxmoe_analysis.report.waterfall_bars import bar

ID = "active-experts"
ORDER = 8
MEANING = (
    "Tokens of small batches hit many experts, and the weights of each are read for fewer than 8 rows. At stake: the "
    "estimated cost of experts beyond the fewest that the tokens need (`further_experts` of `moe_waterfall`). Another "
    "placement does not win it; larger batches share it between more tokens."
)

#: Share of a step from which it is a problem, and rows per active expert below which.
LEAST_SHARE_PCT, MOST_ROWS = 10.0, 8.0


def find(ledger: Ledger) -> list[Finding]:
    """Return what experts beyond the fewest cost per steady step, if each has few rows."""
    further = bar(ledger, "further_experts")
    if further is None or ledger.step_time is None or ledger.steady is None:
        return []
    if ledger.source.frame(CORRELATION, ["local_activations", "local_active_experts"]) is None:
        return []
    at_stake = stake(further, ledger.step_time)
    assignments, active = (
        ledger.per_step(CORRELATION, f"local_{name}", by=("rank", "step", "layer_idx"))
        for name in ("activations", "active_experts")
    )
    rows = ratio(assignments, active)
    if not (at_stake.share.value >= LEAST_SHARE_PCT and rows.value < MOST_ROWS):
        return []
    text = "Few tokens hit many experts: weights are read for {} rows per active expert, which costs {} per {}, {}{}."
    if not at_stake.sure_ns > 0:
        text = (
            "Few tokens hit many experts: weights are read for {} rows per active expert. Estimate: this costs {} per "
            "{}, {}{}. Active experts and tiles rise together here, so some or all of it may be rows that pad tiles."
        )
    headline = sentence(text, rows, further, ledger.steady.noun, at_stake.share, interval_words(further))
    details = [sentence("A rank's layer has {} active experts and {} assignments on average.", active, assignments)]
    next_step = NextStep(
        "larger batches",
        "Send more requests at a time: an expert's weights are then read once for more tokens. Weights of fewer bytes "
        "(fp8) cost less too.",
        per_token(ledger),
        "vllm serve MODEL --max-num-seqs N",
    )
    confidence = sentence(
        "a model of the matrix products' time by active experts and rows of tiles; no routing of these tokens wins all "
        "of it."
    )
    return [Finding("Many active experts", headline, details, confidence, COST, "waterfall", at_stake, next_step)]
