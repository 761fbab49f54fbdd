"""Finding: where the GPU time of MoE layers goes, in bars that add up to it."""

from __future__ import annotations

from collections.abc import Mapping
from math import isfinite

from nvtxmoe_analysis.report.finding import Finding
from nvtxmoe_analysis.report.ledger import Ledger
from nvtxmoe_analysis.report.moe_time import beyond_parts, moe_parts
from nvtxmoe_analysis.report.numbers import SourcedNumber, interval_words, percent, total
from nvtxmoe_analysis.report.sentences import Sentence, sentence, together
from nvtxmoe_analysis.report.waterfall_bars import COLUMNS, ESTIMATED, LABELS, TABLE, TOTAL, bar

ID = "where-time-goes"
ORDER = 42
MEANING = "The bars of the waterfall per step: which part of the layers' time is work, padding, waiting, transfer."

#: Parts that are named one by one, and the least share of the total for it.
MOST_NAMED, LEAST_SHARE_PCT = 4, 0.5


def find(ledger: Ledger) -> list[Finding]:
    """Return the largest bars per steady step, and which of them are estimates."""
    step_total = bar(ledger, TOTAL)
    if step_total is None or ledger.steady is None or not step_total.value > 0:
        return []
    known = {name: number for name in LABELS if (number := bar(ledger, name)) is not None and number.value > 0}
    bars = {name: number for name, number in known.items() if number.value <= step_total.value}
    ranked = sorted(bars, key=lambda name: -bars[name].value)
    named = [name for name in ranked if 100 * bars[name].value >= LEAST_SHARE_PCT * step_total.value] or ranked[:1]
    if not named:
        return []
    parts = [_part(bars[name], step_total, name) for name in named[:MOST_NAMED]]
    headline = sentence("Of {} in MoE layers per {}, {}.", step_total, ledger.steady.noun, together(parts))
    confidence = sentence(
        "the bars add up to the total exactly, in every step. The experts' work and padding come from a model of the "
        "matrix products' time, what unequal ranks wait from their own time; both are estimates."
    )
    details = [*_too_large(known, bars), *_beyond_parts(ledger, step_total), *_intervals(bars), *_unknown(ledger)]
    return [Finding("Where MoE time goes", headline, details, confidence, chart="waterfall")]


def _beyond_parts(ledger: Ledger, whole: SourcedNumber) -> list[Sentence]:
    """Return what this total has beside the time that ``layers-time`` gives."""
    others, cost = beyond_parts(ledger), total(*moe_parts(ledger).values())
    if not others or whole.text == cost.text:
        return []
    named = [sentence("{} {}", number, name) for name, number in others.items()]
    text = "These {} are the {} of own kernels, transfer and waiting for uneven ranks, plus {}."
    return [sentence(text, whole, cost, together(named))]


def _too_large(known: Mapping[str, SourcedNumber], bars: Mapping[str, SourcedNumber]) -> list[Sentence]:
    """Return the bars that are no estimate of steady steps: they exceed the total."""
    parts = [sentence("{} ({})", LABELS[name], number) for name, number in known.items() if name not in bars]
    return [sentence("Not known, because the estimate exceeds the total: {}.", together(parts))] if parts else []


def _part(number: SourcedNumber, step_total: SourcedNumber, name: str) -> Sentence:
    return sentence("{} ({}) is {}", number, percent(number, step_total), LABELS[name])


def _intervals(bars: dict[str, SourcedNumber]) -> list[Sentence]:
    """Return the intervals of the bars that a reader could act on."""
    clauses = [
        sentence("{} {}{}", LABELS[name], bars[name], interval_words(bars[name]))
        for name in ESTIMATED[1:]
        if name in bars and all(map(isfinite, bars[name].interval or ()))
    ]
    return [sentence("Estimates: {}.", together(clauses))] if clauses else []


def _unknown(ledger: Ledger) -> list[Sentence]:
    """Return the bars that are unknown, by reason."""
    frame = ledger.source.loaded.frame(TABLE).select(COLUMNS)
    sums = frame.filter(frame["step"].is_null() & frame["step_kind"].is_null())
    unknown = sums.filter(sums["time_ns"].is_null() & sums["reason"].is_not_null())
    by_reason: dict[str, list[str]] = {}
    for name, reason in unknown.unique(["bar", "reason"], maintain_order=True).select("bar", "reason").iter_rows():
        by_reason.setdefault(reason, []).append(LABELS[name])
    return [sentence("Not known: {} ({}).", ", ".join(names), reason) for reason, names in by_reason.items()]
