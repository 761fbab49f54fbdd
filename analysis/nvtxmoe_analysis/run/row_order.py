"""In which order what reports hold is put together."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import polars as pl

from nvtxmoe_analysis.facts.layer_rows import KEY


@dataclass(frozen=True)
class Order:
    """In which order the rows of all reports stand.

    Attributes:
        reports: positions of the reports, in the order in which their rows are put together.
        rows: positions of those taken of the rows put together so; None where all stay.
    """

    reports: tuple[int, ...]
    rows: pl.Series | None

    def together(self, parts: Sequence[pl.DataFrame]) -> pl.DataFrame:
        """Frames of the same rows, a frame a report, in this order: without a copy where all stay."""
        stacked = pl.concat([parts[report] for report in self.reports], rechunk=False)
        return stacked if self.rows is None else stacked[self.rows]


def order_of(reports: Sequence[pl.DataFrame]) -> Order:
    """The order by KEY and ``gpu_start_ns`` of the rows of reports, each of which has that order.

    Reports hold ranks of their own, as a rule all of one report before those of the next; only where they do not, or
    a rank is not known, the rows themselves are sorted. Of equal ones an earlier report's come first.
    """
    ranks = [report["rank"] for report in reports]
    ends = [(numbers.min(), numbers.max()) for numbers in ranks]
    known = [at for at, numbers in enumerate(ranks) if len(numbers)]
    empty = [at for at, numbers in enumerate(ranks) if not len(numbers)]
    if not any(ranks[at].null_count() for at in known):
        report_order = sorted(known, key=lambda at: ends[at])
        if all(ends[a][1] < ends[b][0] for a, b in pairwise(report_order)):  # type: ignore[operator]
            return Order((*report_order, *empty), None)
    keys = pl.concat([report.select(*KEY, "gpu_start_ns") for report in reports])
    rows = keys.select(pl.arg_sort_by(*KEY, "gpu_start_ns", maintain_order=True)).to_series()
    return Order(tuple(range(len(reports))), rows)
