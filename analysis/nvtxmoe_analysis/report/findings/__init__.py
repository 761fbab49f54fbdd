"""Findings in words, each with its numbers and where they stand: a module a topic."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from nvtxmoe_analysis.report.finding import Finding
from nvtxmoe_analysis.report.findings.balance import find as balance
from nvtxmoe_analysis.report.findings.capacity import find as capacity
from nvtxmoe_analysis.report.findings.co_routing import find as together
from nvtxmoe_analysis.report.findings.gpu_time import find as cost
from nvtxmoe_analysis.report.findings.layer_model import find as explains
from nvtxmoe_analysis.report.findings.limits import find as unseen
from nvtxmoe_analysis.report.findings.stragglers import find as ranks
from nvtxmoe_analysis.report.ledger import Ledger
from nvtxmoe_analysis.report.results import Source

#: In the order of the page. ``unseen`` comes last: what the others could not use is known only then.
TOPICS: Sequence[Callable[[Ledger], list[Finding]]] = (
    cost,
    explains,
    ranks,
    balance,
    capacity,
    together,
    unseen,
)


def findings(source: Source) -> list[Finding]:
    """All findings of these results, the most important first."""
    ledger = Ledger(source)
    return [finding for find in TOPICS for finding in find(ledger)]
