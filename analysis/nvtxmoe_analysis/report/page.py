"""The page: findings, charts and the box of trust, filled into a template whose every text is escaped."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.resources import files
from typing import Any

from jinja2 import Environment, StrictUndefined
from markupsafe import Markup

from nvtxmoe._version import __version__
from nvtxmoe_analysis.report.advice import Advice
from nvtxmoe_analysis.report.chart import SECTIONS, Drawing, Missing
from nvtxmoe_analysis.report.embed import chart_of, json_in_html, policy, script_in_html
from nvtxmoe_analysis.report.theme import CONFIG, CONTAINER
from nvtxmoe_analysis.report.vega import bundle

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


def asset(name: str) -> str:
    """Return the text of a file of ``report/assets``."""
    return (files("nvtxmoe_analysis.report") / "assets" / name).read_text(encoding="utf-8")


def page(
    advice: Advice,
    charts: Sequence[Placed],
    *,
    subtitle: str,
    folder: str,
    absent: Sequence[str],
) -> str:
    """Return the HTML. It loads nothing, and runs no script but its own."""
    drawn = {chart.name: chart.drawing for chart in charts if chart.drawing is not None}
    scripts = [script_in_html(asset("page.js"))]
    if drawn:
        scripts.insert(0, script_in_html(bundle()))
    data = {
        "charts": {
            chart.name: chart_of(chart.spec, drawn[chart.name].data, drawn[chart.name].renderer)
            for chart in charts
            if chart.name in drawn
        },
        "config": CONFIG,
        "container": CONTAINER,
    }
    sections = [
        {"id": f"section-{number}", "title": section, "charts": [chart for chart in charts if chart.section == section]}
        for number, section in enumerate(SECTIONS)
        if any(chart.section == section for chart in charts)
    ]
    environment = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    return environment.from_string(asset("page.html.jinja")).render(
        title=TITLE,
        subtitle=subtitle,
        version=__version__,
        folder=folder,
        policy=policy(scripts),
        style=_safe(asset("page.css")),
        findings=advice.findings,
        sections=sections,
        drawn=drawn,
        trust=advice.trust,
        answers=advice.answers,
        absent=absent,
        licenses=asset("licenses.txt"),
        data=_safe(json_in_html(data)),
        bundle=_safe(scripts[0]),
        script=_safe(scripts[-1]),
    )


def _safe(text: str) -> Markup:
    """Mark text as safe: our own markup or script, or text that was escaped for its place."""
    return Markup(text)  # noqa: S704  # nosec B704  callers have escaped it
