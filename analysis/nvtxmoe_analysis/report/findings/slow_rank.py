"""Finding: a rank takes longer than the others at the same load."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from nvtxmoe_analysis.report.finding import COST, Finding, NextStep, stake
from nvtxmoe_analysis.report.ledger import Ledger
from nvtxmoe_analysis.report.number_text import times
from nvtxmoe_analysis.report.numbers import SourcedNumber, interval_words
from nvtxmoe_analysis.report.sentences import sentence
from nvtxmoe_analysis.report.waterfall_bars import bar

ID = "slow-rank"
ORDER = 1
MEANING = (
    "One GPU takes longer than the others for the same load, and they wait for it. At stake: the waiting that this "
    "explains (`unequal_speed` of `moe_waterfall`), or the slowest rank's excess if collectives could not be split."
)

DOCUMENT = "straggler_document"
AT = ("straggler", "perfect_balance", "by_routing", "speed")
#: A rank that takes less than this share more time than the mean at the same load is not slow.
LEAST_SLOWER = 0.02


def find(ledger: Ledger) -> list[Finding]:
    """Return the slow rank, if one is slower than chance and the others lose time by it."""
    slow = _slowest(ledger)
    lost = _lost(ledger)
    if slow is None or lost is None or ledger.step_time is None:
        return []
    rank, factor = slow
    at_stake = stake(lost, ledger.step_time)
    if not at_stake.matters:
        return []
    headline = sentence(
        "GPU of rank {} is slow: it takes {} times the mean rank's time at the same load, which costs {} per step of "
        "the mean rank{}.",
        str(rank),
        factor,
        lost,
        interval_words(lost),
    )
    next_step = NextStep(
        f"check rank {rank}'s GPU",
        f"Compare the clocks, power limit and other processes of rank {rank}'s GPU with the others' under load; swap "
        "it for another GPU if they are equal.",
        sentence("the ranks take the same time at the same load, and a step of the mean rank up to {} less.", lost),
        "nvidia-smi --query-gpu=index,clocks.sm,clocks.mem,power.draw,clocks_event_reasons.active --format=csv -l 1",
    )
    confidence = sentence(
        "fitted to the ranks' own time and load in each (step, layer). Why the GPU is slow is not in the capture."
    )
    return [Finding("Slow rank", headline, [], confidence, COST, "stragglers", at_stake, next_step)]


def _slowest(ledger: Ledger) -> tuple[int, SourcedNumber] | None:
    """Return the rank that takes longest at the same load, and how many times the mean, if that is more than chance."""
    routing = _routing(ledger.source.document(DOCUMENT))
    known = [(row["time_at_mean_load"], at) for at, row in enumerate(routing) if "time_at_mean_load" in row]
    if not known:
        return None
    factor, at = max(known)
    if factor - 1 <= max(LEAST_SLOWER, 3 * routing[at]["error"]):
        return None
    number = ledger.from_document(DOCUMENT, *AT, at, "time_at_mean_load", text=times(factor))
    return routing[at]["rank"], number


def _routing(document: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    balance = (document.get("straggler") or {}).get("perfect_balance") or {}
    return (balance.get("by_routing") or {}).get("speed") or []


def _lost(ledger: Ledger) -> SourcedNumber | None:
    """Return what ranks wait for the slow one; the slowest rank's excess if that is unknown."""
    lost = bar(ledger, "unequal_speed")
    if lost is not None or ledger.steady is None or ledger.source.frame("straggler", ["excess_ns"]) is None:
        return lost
    return ledger.per_step("straggler", "excess_ns", by=("group", "step"))
