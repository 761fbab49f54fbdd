"""Findings in words, each with its numbers and their places: a module per topic, found by being here.

A topic is a module with ``ORDER`` (its place on the page, low numbers first) and ``find(ledger) -> list[Finding]``.
"""

from __future__ import annotations

import pkgutil
from collections.abc import Mapping
from importlib import import_module
from typing import Protocol, cast

from nvtxmoe_analysis.report.finding import Finding
from nvtxmoe_analysis.report.ledger import Ledger
from nvtxmoe_analysis.report.results import Source


class FindingModule(Protocol):
    """What a module of this folder has."""

    ORDER: int

    def find(self, ledger: Ledger, /) -> list[Finding]:
        """Return what the results tell of the topic; an empty list where they tell nothing."""


def finding_modules() -> Mapping[str, FindingModule]:
    """Every topic by name, in the order of the page."""
    found = {
        info.name: cast(FindingModule, import_module(f"{__name__}.{info.name}"))
        for info in pkgutil.iter_modules(__path__)
    }
    return dict(sorted(found.items(), key=lambda item: (item[1].ORDER, item[0])))


def findings(source: Source) -> list[Finding]:
    """All findings of these results, the most important first."""
    ledger = Ledger(source)
    return [finding for module in finding_modules().values() for finding in module.find(ledger)]
