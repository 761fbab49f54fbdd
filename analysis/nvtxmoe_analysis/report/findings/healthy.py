"""Finding: no problem was found."""

from __future__ import annotations

from nvtxmoe_analysis.core.text import listed
from nvtxmoe_analysis.report.commands import compare
from nvtxmoe_analysis.report.finding import LEAST_PCT, VERDICT, Finding, NextStep
from nvtxmoe_analysis.report.findings import looked_for
from nvtxmoe_analysis.report.ledger import Ledger
from nvtxmoe_analysis.report.moe_time import cannot_tell
from nvtxmoe_analysis.report.other_kinds import other_kinds
from nvtxmoe_analysis.report.sentences import sentence

ID = "healthy"
#: After every problem and verdict.
ORDER = 30
MEANING = (
    "The capture is complete, and nothing that is looked for takes, or may take, 2 % of a step or more, in any "
    "kind of steps that takes 10 % of the GPU time or more. "
    "Results of which layers or ranks were filtered out can't tell."
)


def find(ledger: Ledger) -> list[Finding]:
    """Return that nothing was found, if enough steps were looked at and nothing was, in any kind that matters."""
    if any(finding.may_cost or finding.kind == VERDICT for finding in ledger.findings):
        return []
    if ledger.steady is None or ledger.step_time is None or cannot_tell(ledger):
        return []
    if ledger.source.document("validation").get("verdict") != "complete":
        return []
    others = [other for other in other_kinds(ledger) if other.matters]
    looked_at = [other for other in others if not other.too_few]
    if any(finding.may_cost for other in looked_at for finding in looked_for(other.ledger)):
        return []
    text = "No problem found in {}: nothing that is looked for takes {} % of a step or more."
    steps = [ledger.steady.in_words, *(other.steady.in_words for other in looked_at)]
    headline = sentence(text, listed(steps), f"{LEAST_PCT:g}")
    details = [other.too_few_words for other in others if other.too_few]
    next_step = NextStep(
        "keep a baseline",
        "Keep this capture as the baseline of later ones.",
        sentence("a later change of the step's {} shows, with an interval.", ledger.step_time),
        compare(ledger.source),
    )
    confidence = sentence("the capture is complete; what could not be seen is listed at the end.")
    return [Finding("No problem", headline, details, confidence, VERDICT, "waterfall", next_step=next_step)]
