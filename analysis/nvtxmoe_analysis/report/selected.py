"""Steps, layers and ranks that the analysis was asked to keep, and whether others are missing."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from nvtxmoe_analysis.report.ledger import Ledger
from nvtxmoe_analysis.report.trust import processes


def filters(ledger: Ledger) -> list[str]:
    """Return the filters in force in words, such as ``first step 0``."""
    chosen = _selection(ledger)
    settings = {name: chosen.get(name) for name in ("first_step", "last_step", "only", "layers", "ranks")}
    settings["skip_first"] = chosen.get("skip_first") or None
    return [f"{name.replace('_', ' ')} {value}" for name, value in settings.items() if value is not None]


def some_layers(ledger: Ledger) -> bool:
    """Return True if only some layers were kept: the sum over layers then lacks the others' time."""
    return bool(_selection(ledger).get("layers"))


def filtered_out(ledger: Ledger) -> str:
    """Return what filters took from every step: layers or ranks, as a clause; empty if neither."""
    if some_layers(ledger):
        return "other layers were filtered out"
    ranks = _selection(ledger).get("ranks")
    captured = {process.get("rank") for process in processes(ledger.source.document("validation"))}
    return "other ranks were filtered out" if ranks and not (captured and captured <= set(ranks)) else ""


def _selection(ledger: Ledger) -> Mapping[str, Any]:
    return ledger.source.document("validation").get("selection") or {}
