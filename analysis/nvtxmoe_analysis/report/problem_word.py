"""Whether MoE layers are the problem, in a word for each kind of steps that takes much of the GPU time."""

from __future__ import annotations

from collections.abc import Sequence

from nvtxmoe_analysis.report.finding import COST, VERDICT, Finding
from nvtxmoe_analysis.report.findings import looked_for
from nvtxmoe_analysis.report.ledger import Ledger
from nvtxmoe_analysis.report.moe_time import LITTLE_PCT, MUCH_PCT, long_wait, moe_share
from nvtxmoe_analysis.report.other_kinds import other_kinds

YES, PARTLY, NO, UNKNOWN, NO_PROBLEM = "yes", "partly", "no", "not known", "no problem found"
#: No, while ranks wait so long for one another that MoE layers are a small part of the step.
WAITING = "no, waiting is"


def problem_word(findings: Sequence[Finding], ledger: Ledger) -> str:
    """Return the word, or one per kind of steps (``decode: no; prefill: yes``) if they differ.

    Parameters:
        findings: in the order of the page.
        ledger: of the steps that headlines are of; they have a share of MoE layers.
    """
    assert ledger.steady is not None
    words = {ledger.steady.kind: _word([finding for finding in findings if not finding.of_others], ledger)}
    for other in other_kinds(ledger):
        if other.matters:
            words[other.steady.kind] = UNKNOWN if other.too_few else _word(looked_for(other.ledger), other.ledger)
    by_word: dict[str, list[str]] = {}
    for kind, word in words.items():
        by_word.setdefault(word, []).append(kind)
    if len(by_word) == 1:
        return next(iter(by_word))
    return "; ".join(f"{', '.join(kinds)}: {word}" for word, kinds in by_word.items())


def _word(findings: Sequence[Finding], ledger: Ledger) -> str:
    """Return the word for the steps of a ledger from their findings."""
    word = _without_waiting(findings, ledger)
    return WAITING if word == NO and long_wait(ledger) is not None else word


def _without_waiting(findings: Sequence[Finding], ledger: Ledger) -> str:
    """Return whether MoE layers take much of the step, and the first finding lies in them."""
    share = moe_share(ledger)
    if share is None:
        return UNKNOWN
    if share.value < LITTLE_PCT:
        return NO
    first = next((finding for finding in findings if finding.kind in (COST, VERDICT)), None)
    if first is None:
        return PARTLY if any(finding.may_cost for finding in findings) else NO_PROBLEM
    if not first.in_moe:
        return NO if first.stake is not None and first.stake.share.value > share.value else PARTLY
    if first.kind == VERDICT:
        return NO_PROBLEM
    return YES if share.value >= MUCH_PCT else PARTLY
