"""Findings in words, each with its numbers and their places: a module per finding, found by being here.

A finding is a module with ``ID`` (its stable name), ``MEANING`` (a sentence or two for the docs), ``ORDER`` (low
numbers are looked for first, and stand first among findings without time at stake) and
``find(ledger) -> list[Finding]``.
"""

from __future__ import annotations

import pkgutil
from collections.abc import Mapping
from dataclasses import replace
from importlib import import_module
from typing import Protocol, cast

from nvtxmoe_analysis.report.finding import KINDS, Finding
from nvtxmoe_analysis.report.ledger import Ledger

#: Up to this ORDER modules look for problems and give verdicts.
LAST_VERDICT = 30


class FindingModule(Protocol):
    """What a module of this folder has."""

    ID: str
    ORDER: int
    MEANING: str

    def find(self, ledger: Ledger, /) -> list[Finding]:
        """Return what the results contain of this finding; an empty list if nothing."""


def finding_modules() -> Mapping[str, FindingModule]:
    """Every module by name, in their order."""
    modules = {
        info.name: cast(FindingModule, import_module(f"{__name__}.{info.name}"))
        for info in pkgutil.iter_modules(__path__)
    }
    return dict(sorted(modules.items(), key=lambda item: (item[1].ORDER, item[0])))


def findings(ledger: Ledger) -> list[Finding]:
    """All findings of these results: by kind, then those of the steps that headlines are of, then by the time at stake
    that is sure, then in the modules' order."""
    for module in finding_modules().values():
        ledger.findings += _named(module, ledger)
    return sorted(ledger.findings, key=_place)


def looked_for(ledger: Ledger) -> list[Finding]:
    """The problems and verdicts of another kind of steps than headlines are of, in the order of the page."""
    if not ledger.findings:
        for module in finding_modules().values():
            if module.ORDER <= LAST_VERDICT:
                ledger.findings += _named(module, ledger)
    return sorted(ledger.findings, key=_place)


def _named(module: FindingModule, ledger: Ledger) -> list[Finding]:
    """Return what a module finds, with its id and the steps that time at stake is of."""
    named = [replace(finding, id=module.ID) for finding in module.find(ledger)]
    if ledger.steady is None:
        return named
    noun = ledger.steady.noun
    return [
        finding
        if finding.stake is None or finding.of_others
        else replace(finding, stake=replace(finding.stake, steps=noun))
        for finding in named
    ]


def _place(finding: Finding) -> tuple[int, bool, float, float]:
    at_stake = (0.0, 0.0) if finding.stake is None else (finding.stake.sure_ns, finding.stake.per_step.value)
    return KINDS.index(finding.kind), finding.of_others, -at_stake[0], -at_stake[1]
