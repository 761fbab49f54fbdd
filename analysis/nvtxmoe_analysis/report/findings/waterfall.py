"""Finding: where the GPU time of MoE layers goes, in bars that add up to it."""

from __future__ import annotations

import polars as pl

from nvtxmoe_analysis.report.finding import COST, Finding
from nvtxmoe_analysis.report.ledger import Ledger
from nvtxmoe_analysis.report.numbers import Sentence, SourcedNumber, Where, percent, sentence, together
from nvtxmoe_analysis.report.waterfall_bars import COLUMNS, LABELS, TOTAL

ORDER = 15

TABLE = "waterfall"
#: Parts that are named one by one, and the least share of the total for it.
MOST_NAMED, LEAST_SHARE_PCT = 4, 0.5


def find(ledger: Ledger) -> list[Finding]:
    """Return the largest bars over all steps, per kind of step, and which of them are estimates."""
    frame = ledger.source.frame(TABLE, COLUMNS)
    if frame is None:
        return []
    sums = frame.filter(pl.col("step").is_null() & pl.col("step_kind").is_null())
    total = _bar(ledger, TOTAL, None)
    if not total.value > 0:
        return []
    ranked = _ranked(ledger, sums, None)
    if not ranked:
        return []
    headline = sentence("Of {} GPU time in MoE layers (all ranks), {}.", total, together(_parts(ranked, total)))
    details = [line for kind in ("decode", "prefill", "mixed") for line in _of_kind(ledger, frame, kind)]
    details += [*_intervals(ledger, sums), *_unknown(sums)]
    confidence = sentence(
        "the bars add up to the total exactly. The experts' work and padding come from a model of the matrix products' "
        "time, what unequal ranks wait from their own time; both are estimates."
    )
    return [Finding("Where MoE time goes", headline, details, confidence, COST, "waterfall")]


def _where(bar: str, kind: str | None) -> Where:
    return {"step": None, "step_kind": kind, "bar": bar}


def _bar(ledger: Ledger, bar: str, kind: str | None) -> SourcedNumber:
    return ledger.take(TABLE, "time_ns", "sum", where=_where(bar, kind))


def _ranked(ledger: Ledger, sums: pl.DataFrame, kind: str | None) -> list[tuple[str, SourcedNumber]]:
    """Return the bars with time, the largest first."""
    known = sums.filter(pl.col("bar").is_in(list(LABELS)) & pl.col("time_ns").is_not_null())
    bars = known.group_by("bar").agg(pl.col("time_ns").sum()).filter(pl.col("time_ns") > 0)
    order = bars.sort(["time_ns", "bar"], descending=[True, False])["bar"].to_list()
    return [(bar, _bar(ledger, bar, kind)) for bar in order]


def _parts(ranked: list[tuple[str, SourcedNumber]], total: SourcedNumber) -> list[Sentence]:
    """Return clauses on the largest bars."""
    named = [(bar, number) for bar, number in ranked if 100 * number.value >= LEAST_SHARE_PCT * total.value] or ranked[
        :1
    ]
    return [
        sentence("{} ({}) is {}", number, percent(number, total), LABELS[bar]) for bar, number in named[:MOST_NAMED]
    ]


def _of_kind(ledger: Ledger, frame: pl.DataFrame, kind: str) -> list[Sentence]:
    sums = frame.filter(pl.col("step").is_null() & (pl.col("step_kind") == kind))
    if sums.is_empty():
        return []
    total, ranked = _bar(ledger, TOTAL, kind), _ranked(ledger, sums, kind)
    if not ranked or not total.value > 0:
        return []
    return [sentence("In {} steps, of {}: {}.", kind, total, together(_parts(ranked, total)))]


def _intervals(ledger: Ledger, sums: pl.DataFrame) -> list[Sentence]:
    """Return the intervals of the bars that a reader could act on."""
    clauses = []
    for bar in ("further_experts", "padding", "uneven_ranks", "unequal_speed"):
        if sums.filter((pl.col("bar") == bar) & pl.col("time_ns").is_not_null()).is_empty():
            continue
        where = _where(bar, None)
        time, low, high = (ledger.take(TABLE, name, "sum", where=where) for name in ("time_ns", "low_ns", "high_ns"))
        clauses.append(sentence("{} {} ({} to {})", LABELS[bar], time, low, high))
    return [sentence("Estimates with their intervals: {}.", together(clauses))] if clauses else []


def _unknown(sums: pl.DataFrame) -> list[Sentence]:
    """Return the bars that are unknown, by reason."""
    unknown = sums.filter(pl.col("time_ns").is_null() & pl.col("reason").is_not_null())
    return [
        sentence(
            "Not known: {} ({}).", ", ".join(LABELS[bar] for bar in rows["bar"].unique(maintain_order=True)), reason
        )
        for (reason,), rows in unknown.group_by("reason", maintain_order=True)
    ]
