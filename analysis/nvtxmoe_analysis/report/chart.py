"""What a chart of the report is: a module of ``report.charts`` with ``TITLE``, ``SECTION``, ``ORDER`` and ``build``."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Protocol

import polars as pl

if TYPE_CHECKING:
    import altair as alt

    from nvtxmoe_analysis.report.results import Source

#: Sections in the order of the page.
TIME, WHY, ROUTING, RANKS = (
    "Where the time goes",
    "Why layers take their time",
    "How tokens are routed",
    "Ranks that wait",
)
SECTIONS = (TIME, WHY, RANKS, ROUTING)

#: Up to so many rows are drawn as SVG, more on a canvas.
SVG_ROWS = 1500
#: Rows of a chart's text table that are shown.
TABLE_ROWS = 40


@dataclass(frozen=True)
class Table:
    """The chart as text.

    Attributes:
        columns: headings.
        rows: cells as they are shown.
        note: which rows these are, and where all are.
    """

    columns: Sequence[str]
    rows: Sequence[Sequence[str]]
    note: str = ""


@dataclass(frozen=True)
class Drawing:
    """A chart ready to be drawn.

    Attributes:
        chart: an altair chart whose data are named, not embedded.
        data: the frames by those names.
        caption: what is shown, of which files, and what was summed up or left out.
        alt: what there is to see, for those who can't see it.
        table: the same as text.
        select: label by name of the chart's parameters that readers may set.
    """

    chart: alt.TopLevelMixin
    data: Mapping[str, pl.DataFrame]
    caption: str
    alt: str
    table: Table
    extra: Mapping[str, Any] = field(default_factory=dict)

    @property
    def renderer(self) -> str:
        """``svg``, or ``canvas`` where there is much to draw."""
        return "canvas" if sum(map(len, self.data.values())) > SVG_ROWS else "svg"


@dataclass(frozen=True)
class Missing:
    """A chart that can't be drawn, and why, in a sentence."""

    reason: str


class ChartModule(Protocol):
    """A module of ``report.charts``; its name is the chart's."""

    TITLE: str
    SECTION: str
    ORDER: int

    @staticmethod
    def build(source: Source) -> Drawing | Missing:
        """The chart of these results."""
