"""The frame of every HTML page of ours: style, scripts, charts, and a policy that lets nothing else run or load."""

from __future__ import annotations

from collections.abc import Mapping
from importlib.resources import files
from typing import Any

from jinja2 import Environment, FunctionLoader, StrictUndefined
from markupsafe import Markup

from nvtxmoe._version import __version__
from nvtxmoe_analysis.report.chart import Drawing
from nvtxmoe_analysis.report.embed import chart_of, json_in_html, policy, script_in_html
from nvtxmoe_analysis.report.theme import CONFIG, CONTAINER
from nvtxmoe_analysis.report.vega import bundle


def asset(name: str) -> str:
    """Return the text of a file of ``report/assets``."""
    return (files("nvtxmoe_analysis.report") / "assets" / name).read_text(encoding="utf-8")


def framed(
    template: str, drawn: Mapping[str, tuple[Mapping[str, Any], Drawing]], *, title: str, subtitle: str, **values: Any
) -> str:
    """Fill a template, and return the HTML. It loads nothing, and runs no script but its own.

    Parameters:
        template: text that extends the template ``frame`` of report/assets; every value in it is escaped.
        drawn: specification and drawing of each chart by name; in the template their names.
        values: what else the template names.
    """
    scripts = [script_in_html(text) for text in ([bundle()] if drawn else []) + [asset("page.js")]]
    drawings = {name: chart_of(spec, drawing.data, drawing.renderer) for name, (spec, drawing) in drawn.items()}
    data = {"charts": drawings, "config": CONFIG, "container": CONTAINER}
    environment = Environment(
        autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True, loader=FunctionLoader(asset)
    )
    return environment.from_string(template).render(
        title=title,
        subtitle=subtitle,
        version=__version__,
        policy=policy(scripts),
        style=_safe(asset("page.css")),
        drawn=set(drawn),
        licenses=asset("licenses.txt"),
        data=_safe(json_in_html(data)),
        bundle=_safe(scripts[0]),
        script=_safe(scripts[-1]),
        **values,
    )


def _safe(text: str) -> Markup:
    """Mark text as safe: our own markup or script, or text that was escaped for its place."""
    return Markup(text)  # noqa: S704  # nosec B704  callers have escaped it
