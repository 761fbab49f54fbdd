"""Helpers for charts: axes, scales, thinning of rows, text tables."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import altair as alt
import polars as pl

from nvtxmoe_analysis.report.chart import TABLE_ROWS, Table

#: Kinds of steps, in the order in which they are shown.
STEP_KINDS = ("decode", "prefill", "mixed", "none")


def base(data: str) -> alt.Chart:
    """Return a chart over named data: the page holds the rows once, in columns."""
    return alt.Chart(alt.NamedData(name=data))


def x_pixels(value: float) -> alt.XValue:
    """Return a place in pixels from the left. altair compares an ``alt.value`` with all of the schema."""
    return alt.XValue(value)  # type: ignore[no-untyped-call]  # altair has no types here


def y_pixels(value: float) -> alt.YValue:
    """Return a place in pixels from the top."""
    return alt.YValue(value)  # type: ignore[no-untyped-call]  # altair has no types here


def colours(palette: Mapping[str, str], present: Sequence[str]) -> alt.Scale:
    """Return the palette's colours for the names that are present."""
    names = [name for name in palette if name in present]
    return alt.Scale(domain=names, range=[palette[name] for name in names])


def id_axis(title: str = "layer") -> alt.Axis:
    """Return an axis of layers, experts or steps that stays readable with many of them."""
    return alt.Axis(title=title, labelAngle=0, labelOverlap=True, labelSeparation=4)


def log_ticks(low: float, high: float) -> list[float]:
    """Return ticks of a logarithmic axis: its ends, which are 1, 2 or 5 times a power of ten around ``low`` and
    ``high`` (both positive), and the powers of ten between them that are not too near to the ends."""
    steps = [
        digit * 10.0**power
        for power in range(math.floor(math.log10(low)) - 1, math.ceil(math.log10(high)) + 2)
        for digit in (1, 2, 5)
    ]
    first = max(step for step in steps if step <= low)
    last = min(step for step in steps if step >= high and step > first)
    room = (last / first) ** 0.15
    between = [step for step in steps[::3] if first * room <= step <= last / room]
    return [first, *between, last]


def row_height(rows: int, *, max_height: int = 22, total: int = 560, least: int = 4) -> int:
    """Return pixels per row, so that many rows still fit on a page."""
    return max(least, min(max_height, total // max(1, rows)))


def thinned(frame: pl.DataFrame, by: Sequence[str], max_rows: int) -> pl.DataFrame:
    """Keep at most ``max_rows`` rows per group: every k-th in the frame's order, from the first on."""
    size = pl.len().over(*by)
    number = pl.int_range(pl.len()).over(*by)
    every = ((size + max_rows - 1) // max_rows).cast(pl.Int64)
    return frame.filter(number % every == 0)


def table(
    columns: Sequence[str],
    rows: Sequence[Sequence[object]],
    *,
    file_name: str,
    total: int | None = None,
    which: str = "",
) -> Table:
    """Return a text table, cut to ``TABLE_ROWS``.

    Parameters:
        file_name: the file that has all rows.
        total: number of all rows, if ``rows`` are only a part.
        which: the order, such as ``by time``.
    """
    number = len(rows) if total is None else total
    shown = [["" if cell is None else str(cell) for cell in row] for row in rows[:TABLE_ROWS]]
    note = f"All of it is in {file_name}."
    if number > len(shown):
        note = f"The first {len(shown):,} of {number:,} rows{f' {which}' if which else ''}. {note}"
    return Table(columns, shown, note)


def significant(values: pl.Expr, digits: int = 4) -> pl.Expr:
    """Round to ``digits`` significant digits: a chart looks the same, and the page is smaller."""
    return values.round_sig_figs(digits)
