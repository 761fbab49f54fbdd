"""Finding: what the other kinds of steps take, and the problems in them."""

from __future__ import annotations

from nvtxmoe_analysis.report.finding import COST, NOTE, Finding
from nvtxmoe_analysis.report.findings import looked_for
from nvtxmoe_analysis.report.ledger import Ledger
from nvtxmoe_analysis.report.moe_time import how_sure, moe_parts
from nvtxmoe_analysis.report.number_text import capital
from nvtxmoe_analysis.report.other_kinds import OtherKind, of_all, other_kinds
from nvtxmoe_analysis.report.sentences import Sentence, sentence

ID = "other-steps"
ORDER = 14
MEANING = (
    "Another kind of step than that of the headlines (mixed or prefill beside decode) takes 10 % of the GPU time of "
    "all steps or more: what such a step takes, and how much of it MoE layers take. At stake: the largest of the "
    "problems of this page that is found in those steps alone. Their start-up, eager and outlying steps are left out."
)

#: Most problems of a kind of step in the details, after the first.
MOST_NAMED = 3


def find(ledger: Ledger) -> list[Finding]:
    """Return a finding for each other kind of step that takes much of the GPU time."""
    return [_of(other) for other in other_kinds(ledger) if other.matters]


def _of(other: OtherKind) -> Finding:
    kind_findings = [] if other.too_few else looked_for(other.ledger)
    problems = [finding for finding in kind_findings if finding.kind == COST and finding.stake is not None]
    headline = of_all(other)
    basis = sentence("{} {}.", how_sure(moe_parts(other.ledger)), capital(other.steady.basis))
    details: list[Sentence] = [other.too_few_words] if other.too_few else []
    if other.steady.without:
        details.append(sentence("Left out: {}.", other.steady.without))
    topic = f"{other.steady.kind.capitalize()} steps"
    if not problems:
        return Finding(topic, headline, details, basis, NOTE, "step_share", of_others=True)
    first, *more = problems
    details = [first.headline, *(problem.headline for problem in more[:MOST_NAMED]), *details]
    sure = basis if first.confidence is None else sentence("{} At stake: {}", basis, first.confidence)
    return Finding(
        topic,
        headline,
        details,
        sure,
        COST,
        "step_share",
        first.stake,
        first.next_step,
        first.in_moe,
        first.headline,
        of_others=True,
    )
