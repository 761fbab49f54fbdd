"""Types of a chart: a module of ``report.charts`` with ``TITLE``, ``SECTION``, ``ORDER`` and ``build``."""

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

#: Most rows that are drawn as SVG; more are drawn on a canvas.
SVG_ROWS = 1500
#: Most rows shown of a chart's text table.
TABLE_ROWS = 40


@dataclass(frozen=True)
class Table:
    """A chart as text.

    Attributes:
        columns: headings.
        rows: cells as they are shown.
        note: which rows are shown, and which file has all.
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
        caption: the data shown, their files, and what was summed up or left out.
        alt: a description for readers who can't see the chart.
        table: the chart's data as text.
    """

    chart: alt.TopLevelMixin
    data: Mapping[str, pl.DataFrame]
    caption: str
    alt: str
    table: Table
    extra: Mapping[str, Any] = field(default_factory=dict)

    @property
    def renderer(self) -> str:
        """``svg``, or ``canvas`` for more than ``SVG_ROWS`` rows."""
        return "canvas" if sum(map(len, self.data.values())) > SVG_ROWS else "svg"


@dataclass(frozen=True)
class Missing:
    """A chart that can't be drawn, with the reason in one sentence."""

    reason: str


class ChartModule(Protocol):
    """A module of ``report.charts``. The chart has the module's name."""

    TITLE: str
    SECTION: str
    ORDER: int

    @staticmethod
    def build(source: Source) -> Drawing | Missing:
        """Return the chart of these results, or the reason why there is none."""
