"""Finding: most of a step's work lies outside the MoE layers."""

from __future__ import annotations

from nvtxmoe_analysis.report.finding import VERDICT, Finding, NextStep
from nvtxmoe_analysis.report.ledger import Ledger
from nvtxmoe_analysis.report.moe_time import LITTLE_PCT, cannot_tell, moe_share, other_work
from nvtxmoe_analysis.report.numbers import percent, sentence, together, total
from nvtxmoe_analysis.report.theme import CLASS_WORDS

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
    text = "Most of the time lies outside MoE layers: {} of {} per {}, {}."
    headline = sentence(text, work, step, ledger.steady.noun, share)
    named = [
        sentence("{} ({}) for {}", number, percent(number, step), CLASS_WORDS.get(name, name))
        for name, number in list(classes.items())[:MOST_NAMED]
    ]
    name = next((name for name in classes if name != "other"), "other")
    next_step = NextStep(
        "look elsewhere",
        f"Look at {CLASS_WORDS.get(name, name)} first.",
        sentence("at most {} less per step if it took no time at all.", classes[name]),
        "nvtxmoe export REPORT.nsys-rep --perfetto run.pftrace",
    )
    details = [sentence("It takes {}.", together(named))]
    confidence = sentence("measured; the class of a kernel is told by its name.")
    return [
        Finding("Outside MoE", headline, details, confidence, VERDICT, "step_share", next_step=next_step, in_moe=False)
    ]
