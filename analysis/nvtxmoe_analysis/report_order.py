"""In which order what reports hold is put together."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import polars as pl


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
        whole = pl.concat([parts[report] for report in self.reports], rechunk=False)
        return whole if self.rows is None else whole[self.rows]
