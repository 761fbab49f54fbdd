"""Finding: MoE layers take too little of a step to be worth work."""

from __future__ import annotations

from nvtxmoe_analysis.report.finding import VERDICT, Finding
from nvtxmoe_analysis.report.ledger import Ledger
from nvtxmoe_analysis.report.moe_time import (
    LITTLE_PCT,
    cannot_tell,
    how_sure,
    long_wait,
    longest,
    look_at,
    moe_parts,
    moe_share,
    outside,
    share_without,
)
from nvtxmoe_analysis.report.number_text import capital
from nvtxmoe_analysis.report.numbers import total
from nvtxmoe_analysis.report.other_kinds import lead, of_all, other_kinds
from nvtxmoe_analysis.report.sentences import sentence

ID = "moe-not-the-problem"
ORDER = 20
MEANING = (
    "MoE layers (own kernels, transfer, waiting for uneven ranks) take less than 10 % of a step: no change of them "
    "wins more than that. Where ranks wait long for one another, it also gives their share of the step without "
    "waiting. If another kind of steps takes 10 % of the GPU time of all steps or more, the verdict names the kind "
    "that it is of."
)
#: Most classes of other work that are named.
MOST_NAMED = 2


def find(ledger: Ledger) -> list[Finding]:
    """Return the share of MoE layers where it is small, and what takes the time instead."""
    share = None if cannot_tell(ledger) else moe_share(ledger)
    if share is None or ledger.steady is None or ledger.step_time is None or not share.value < LITTLE_PCT:
        return []
    parts = moe_parts(ledger)
    of_step = (total(*parts.values()), ledger.step_time, ledger.steady.noun, share)
    where = lead(ledger)
    headline = sentence(f"{where}MoE layers are not the problem: they take {{}} of {{}} per {{}}, {{}}.", *of_step)
    if (wait := long_wait(ledger)) is not None:
        text = "waiting comes before MoE layers: they take {} of {} per {}, {}, and {} of it without waiting."
        headline = sentence(capital(where + text), *of_step, share_without(ledger, wait))
    classes = outside(ledger)
    details = []
    if classes:
        details = [sentence("Outside MoE layers the step takes {}.", longest(classes, ledger.step_time, MOST_NAMED))]
    details += [of_all(other) for other in other_kinds(ledger) if other.matters]
    next_step = look_at(ledger, classes, where) if classes else None
    confidence = how_sure(parts)
    return [Finding("Not MoE", headline, details, confidence, VERDICT, "step_share", next_step=next_step, in_moe=False)]
