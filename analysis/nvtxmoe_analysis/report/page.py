"""The page: findings, charts and the box of trust, filled into a template whose every text is escaped."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from nvtxmoe_analysis.report.advice import Advice
from nvtxmoe_analysis.report.chart import SECTIONS, Drawing, Missing
from nvtxmoe_analysis.report.frame import asset, framed

TITLE = "Mixture-of-experts report"


@dataclass(frozen=True)
class Placed:
    """A chart in its place on the page.

    Attributes:
        name: of its module.
        title, section: as the module says.
        made: the chart, or why there is none.
        spec: Vega-Lite, without data; empty where there is no chart.
    """

    name: str
    title: str
    section: str
    made: Drawing | Missing
    spec: Mapping[str, Any]

    @property
    def drawing(self) -> Drawing | None:
        """The chart, or None if it can't be drawn."""
        return self.made if isinstance(self.made, Drawing) else None

    @property
    def reason(self) -> str:
        """The reason why the chart can't be drawn; empty for a drawn one."""
        return self.made.reason if isinstance(self.made, Missing) else ""


def page(
    advice: Advice,
    charts: Sequence[Placed],
    *,
    subtitle: str,
    folder: str,
    absent: Sequence[str],
) -> str:
    """Return the HTML. It loads nothing, and runs no script but its own."""
    sections = [
        {"id": f"section-{number}", "title": section, "charts": [chart for chart in charts if chart.section == section]}
        for number, section in enumerate(SECTIONS)
        if any(chart.section == section for chart in charts)
    ]
    return framed(
        asset("page.html.jinja"),
        {chart.name: (chart.spec, chart.drawing) for chart in charts if chart.drawing is not None},
        title=TITLE,
        subtitle=subtitle,
        folder=folder,
        findings=advice.findings,
        sections=sections,
        trust=advice.trust,
        answers=advice.answers,
        absent=absent,
    )
