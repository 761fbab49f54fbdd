"""Finding: a large share of a step is transfer in collectives."""

from __future__ import annotations

from nvtxmoe_analysis.report.finding import COST, Finding, NextStep, stake
from nvtxmoe_analysis.report.ledger import Ledger
from nvtxmoe_analysis.report.sentences import sentence

ID = "transfer-bound"
ORDER = 6
MEANING = (
    "Collectives transfer for 10 % of a step or more, once all ranks are in them. At stake: that time, if all of it "
    "were hidden behind other work."
)

TABLE = "collectives"
#: Share of a step from which transfer is a problem.
LEAST_SHARE_PCT = 10.0


def find(ledger: Ledger) -> list[Finding]:
    """Return the transfer per steady step, if it is much of it."""
    if ledger.steady is None or ledger.step_time is None or ledger.source.frame(TABLE, ["transfer_ns"]) is None:
        return []
    transfer = ledger.per_step(TABLE, "transfer_ns")
    at_stake = stake(transfer, ledger.step_time)
    if not at_stake.share.value >= LEAST_SHARE_PCT:
        return []
    text = "Collectives transfer for {} per {}, {} of it."
    headline = sentence(text, transfer, ledger.steady.noun, at_stake.share)
    next_step = NextStep(
        "a faster exchange",
        "Check that the GPUs are linked by NVLink, then compare backends of the exchange (with data parallel ranks) or "
        "overlap two halves of the batch.",
        sentence("transfer per step falls; all of it hidden would save {}.", transfer),
        "nvidia-smi topo -m; vllm serve MODEL --all2all-backend deepep_low_latency; --enable-dbo",
    )
    confidence = sentence("measured: the time after the last rank has begun, with what the kernels compute themselves.")
    return [Finding("Transfer", headline, [], confidence, COST, "stragglers", at_stake, next_step)]
