"""Finding: MoE layers take too little of a step to be worth work."""

from __future__ import annotations

from nvtxmoe_analysis.report.finding import VERDICT, Finding, NextStep
from nvtxmoe_analysis.report.ledger import Ledger
from nvtxmoe_analysis.report.moe_time import LITTLE_PCT, cannot_tell, moe_parts, moe_share, other_work
from nvtxmoe_analysis.report.numbers import percent, sentence, together, total
from nvtxmoe_analysis.report.theme import CLASS_WORDS

ID = "moe-not-the-problem"
ORDER = 20
MEANING = (
    "MoE layers (own kernels, transfer, waiting for uneven ranks) take less than 10 % of a step: no change of them "
    "wins more than that."
)
#: Most classes of other work that are named.
MOST_NAMED = 2


def find(ledger: Ledger) -> list[Finding]:
    """Return the share of MoE layers where it is small, and what takes the time instead."""
    share = None if cannot_tell(ledger) else moe_share(ledger)
    if share is None or ledger.steady is None or ledger.step_time is None or not share.value < LITTLE_PCT:
        return []
    time = total(*moe_parts(ledger).values())
    text = "MoE layers are not the problem: they take {} of {} per {}, {}."
    headline = sentence(text, time, ledger.step_time, ledger.steady.noun, share)
    classes = [(name, number) for name, number in other_work(ledger).items() if number.value > 0][:MOST_NAMED]
    named = [
        sentence("{} ({}) for {}", number, percent(number, ledger.step_time), CLASS_WORDS.get(name, name))
        for name, number in classes
    ]
    details = [sentence("Outside MoE layers the step takes {}.", together(named))] if named else []
    next_step = NextStep(
        "look elsewhere",
        "Look outside the MoE layers: at attention, dense matrix products and launches.",
        sentence("at most {} less per step if MoE layers took no time at all.", time),
        "nvtxmoe export REPORT.nsys-rep --perfetto run.pftrace",
    )
    confidence = sentence("measured: kernels as nsys recorded them.")
    return [Finding("Not MoE", headline, details, confidence, VERDICT, "step_share", next_step=next_step, in_moe=False)]
