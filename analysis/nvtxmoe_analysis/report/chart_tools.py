"""What several charts do with frames and with altair."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import altair as alt
import polars as pl

from nvtxmoe_analysis.report.chart import TABLE_ROWS, Table

#: Kinds of steps, in the order in which they are shown.
STEP_KINDS = ("decode", "prefill", "mixed", "none")
#: Longer names of kernels are cut.
MOST_NAME = 64


def base(data: str) -> alt.Chart:
    """A chart over named data: the page holds the rows once, in columns."""
    return alt.Chart(alt.NamedData(name=data))


def colours(palette: Mapping[str, str], present: Sequence[str]) -> alt.Scale:
    """The palette's colours for those of its names that are present."""
    names = [name for name in palette if name in present]
    return alt.Scale(domain=names, range=[palette[name] for name in names])


def id_axis(title: str = "layer") -> alt.Axis:
    """An axis of layers, experts or steps that stays readable with many."""
    return alt.Axis(title=title, labelAngle=0, labelOverlap=True, labelSeparation=4)


def row_height(rows: int, *, most: int = 22, total: int = 560, least: int = 4) -> int:
    """Pixels a row, so that many rows still fit on a page."""
    return max(least, min(most, total // max(1, rows)))


def thinned(frame: pl.DataFrame, by: Sequence[str], most: int) -> pl.DataFrame:
    """At most so many rows a group: every k-th, in the frame's order, the first one among them."""
    size = pl.len().over(*by)
    number = pl.int_range(pl.len()).over(*by)
    every = ((size + most - 1) // most).cast(pl.Int64)
    return frame.filter(number % every == 0)


def table(
    columns: Sequence[str], rows: Sequence[Sequence[object]], *, whole: str, total: int | None = None, which: str = ""
) -> Table:
    """A text table, cut to ``TABLE_ROWS``.

    Parameters:
        whole: the file that has all of it.
        total: how many rows there are, where ``rows`` are not all.
        which: what decides the order, as ``by time``.
    """
    number = len(rows) if total is None else total
    shown = [["" if cell is None else str(cell) for cell in row] for row in rows[:TABLE_ROWS]]
    note = f"All of it is in {whole}."
    if number > len(shown):
        note = f"The first {len(shown):,} of {number:,} rows{f' {which}' if which else ''}. {note}"
    return Table(columns, shown, note)


def significant(values: pl.Expr, digits: int = 4) -> pl.Expr:
    """Rounded to so many digits, which a chart shows as well and the page holds in less."""
    return values.round_sig_figs(digits)
