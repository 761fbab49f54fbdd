"""Finding: no problem was found."""

from __future__ import annotations

from nvtxmoe_analysis.report.commands import compare
from nvtxmoe_analysis.report.finding import COST, INCOMPLETE, LEAST_PCT, VERDICT, WEAK, Finding, NextStep
from nvtxmoe_analysis.report.ledger import Ledger
from nvtxmoe_analysis.report.moe_time import cannot_tell
from nvtxmoe_analysis.report.numbers import sentence

ID = "healthy"
#: After every problem and verdict.
ORDER = 30
MEANING = (
    "The capture is complete, and nothing that is looked for takes, or may take, 2 % of a step or more. "
    "Results of which layers or ranks were filtered out can't tell."
)


def find(ledger: Ledger) -> list[Finding]:
    """Return that nothing was found, if enough steps were looked at and nothing was."""
    if any(_speaks_against(finding) for finding in ledger.findings):
        return []
    if ledger.steady is None or ledger.step_time is None or cannot_tell(ledger):
        return []
    if ledger.source.document("validation").get("verdict") != "complete":
        return []
    text = "No problem found in {}: nothing that is looked for takes {} % of a step or more."
    headline = sentence(text, ledger.steady.in_words, f"{LEAST_PCT:g}")
    next_step = NextStep(
        "keep a baseline",
        "Keep this capture as the baseline of later ones.",
        sentence("a later change of the step's {} shows, with an interval.", ledger.step_time),
        compare(ledger.source),
    )
    confidence = sentence("the capture is complete; what could not be seen is listed at the end.")
    return [Finding("No problem", headline, [], confidence, VERDICT, "waterfall", next_step=next_step)]


def _speaks_against(finding: Finding) -> bool:
    """Return True for a problem, another verdict, and for time that may be lost."""
    if finding.kind == WEAK:
        return finding.stake is not None and finding.stake.matters
    return finding.kind in (COST, INCOMPLETE, VERDICT)
