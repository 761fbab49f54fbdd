"""Windows that a running process recorded: which step numbers are inside of them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

import polars as pl

from nvtxmoe_analysis.events.tables import CountTable, PairTable, TopkTable

if TYPE_CHECKING:
    from nvtxmoe_analysis.events.decode import Events

#: First and last step of a window, both inclusive; null last: the window was still open.
Window = tuple[int, int | None]


def inside(first: int, last: int, windows: Sequence[Window]) -> list[tuple[int, int]]:
    """Return the parts of ``first`` to ``last`` (both inclusive) that windows contain; all of it without windows."""
    if not windows:
        return [(first, last)]
    parts = [(max(first, begin), last if end is None else min(last, end)) for begin, end in windows]
    return [(begin, end) for begin, end in parts if begin <= end]


def trimmed(events: Events) -> Events:
    """Leave out the steps that lie outside of the windows of their process.

    A window begins and ends at steps that all ranks have; a rank may have begun a little earlier, or ended later.
    """
    windows = {pid: meta.windows for pid, meta in events.metas.items() if meta.windows}
    if not windows:
        return events
    pairs = _inside(events.pairs.spans, windows, "last_step", "first_step").arg_true()
    return replace(
        events,
        steps=events.steps.filter(_inside(events.steps, windows)),
        counts=_counts(events.counts, windows),
        physical=_counts(events.physical, windows),
        topk=_topk(events.topk, windows),
        pairs=PairTable(events.pairs.spans[pairs], [events.pairs.pairs[at] for at in pairs]),
    )


def _counts(table: CountTable, windows: Mapping[int, Sequence[Window]]) -> CountTable:
    return table.take(_inside(table.cells, windows).arg_true().cast(pl.Int64))


def _topk(table: TopkTable, windows: Mapping[int, Sequence[Window]]) -> TopkTable:
    return table.take(_inside(table.runs, windows).arg_true().cast(pl.Int64))


def _inside(
    rows: pl.DataFrame, windows: Mapping[int, Sequence[Window]], at_least: str = "step", at_most: str = "step"
) -> pl.Series:
    """Boolean per row: whether a window of its process contains it; true where the process has none."""
    keep = ~pl.col("pid").is_in(list(windows))
    for pid, bounds in windows.items():
        for first, last in bounds:
            this = (pl.col("pid") == pid) & (pl.col(at_least) >= first)
            keep |= this if last is None else this & (pl.col(at_most) <= last)
    keep_rows: pl.Series = rows.select(keep=keep.fill_null(True))["keep"]
    return keep_rows
