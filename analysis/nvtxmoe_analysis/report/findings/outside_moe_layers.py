"""Finding: most of a step's work lies outside the MoE layers."""

from __future__ import annotations

from nvtxmoe_analysis.report.finding import VERDICT, Finding
from nvtxmoe_analysis.report.ledger import Ledger
from nvtxmoe_analysis.report.moe_time import LITTLE_PCT, cannot_tell, longest, look_at, moe_share, other_work, outside
from nvtxmoe_analysis.report.number_text import capital
from nvtxmoe_analysis.report.numbers import percent, total
from nvtxmoe_analysis.report.other_kinds import lead
from nvtxmoe_analysis.report.sentences import sentence

ID = "outside-moe-layers"
ORDER = 21
MEANING = (
    "Attention, dense matrix products and other work outside MoE layers take more than half of a step, and MoE layers "
    "10 % or more."
)

LEAST_SHARE_PCT, MOST_NAMED = 50.0, 3


def find(ledger: Ledger) -> list[Finding]:
    """Return the work outside the layers, the longest classes by name."""
    moe, step = None if cannot_tell(ledger) else moe_share(ledger), ledger.step_time
    classes = {name: number for name, number in other_work(ledger).items() if number.value > 0}
    if moe is None or step is None or ledger.steady is None or moe.value < LITTLE_PCT or not classes:
        return []
    work = total(*classes.values())
    share = percent(work, step)
    if share.value < LEAST_SHARE_PCT:
        return []
    text = capital(f"{lead(ledger)}most of the time lies outside MoE layers: {{}} of {{}} per {{}}, {{}}.")
    headline = sentence(text, work, step, ledger.steady.noun, share)
    details = [sentence("It takes {}.", longest(classes, step, MOST_NAMED))]
    next_step = look_at(ledger, outside(ledger) or classes, lead(ledger))
    confidence = sentence("measured; the class of a kernel is told by its name.")
    return [
        Finding("Outside MoE", headline, details, confidence, VERDICT, "step_share", next_step=next_step, in_moe=False)
    ]
