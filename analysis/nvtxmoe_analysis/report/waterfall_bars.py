"""Bars of the waterfall in words, and per step."""

from __future__ import annotations

from collections.abc import Mapping
from math import isfinite

from nvtxmoe_analysis.report.ledger import Ledger
from nvtxmoe_analysis.report.numbers import SourcedNumber

#: Bars in their order, as the page names them.
LABELS: Mapping[str, str] = {
    "ideal": "least work of the experts",
    "further_experts": "experts beyond the fewest",
    "padding": "padding of tiles",
    "rest": "experts, not explained",
    "other_work": "other kernels and copies",
    "uneven_ranks": "waiting: uneven ranks",
    "unequal_speed": "waiting: unequal GPUs",
    "waiting": "waiting: late launches, earlier work",
    "transfer": "transfer in collectives",
    "collectives_not_split": "collectives, not split",
}
TOTAL = "total"
#: Columns that the page reads.
COLUMNS = ("group", "step", "step_kind", "bar", "time_ns", "low_ns", "high_ns", "how", "reason")
#: Name of the table, and the bars that a model estimates.
TABLE = "waterfall"
ESTIMATED = ("ideal", "further_experts", "padding", "uneven_ranks", "unequal_speed")


def bar(ledger: Ledger, name: str) -> SourcedNumber | None:
    """Return a bar per steady step of the mean rank, with the interval of an estimate; None if it is unknown."""
    if ledger.steady is None or ledger.source.frame(TABLE, COLUMNS) is None:
        return None
    interval = ("low_ns", "high_ns") if name in ESTIMATED else None
    number = ledger.per_step(TABLE, "time_ns", where={"bar": name}, interval=interval)
    return number if isfinite(number.value) else None
