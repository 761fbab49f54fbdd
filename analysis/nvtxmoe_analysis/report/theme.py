"""Colours of charts, and vega's configuration for a light and a dark page."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

#: Phases of a layer, in the order in which they run, with their colours.
PHASES: Mapping[str, str] = {
    "route": "#eda93b",
    "dispatch": "#4fb3bf",
    "experts": "#4878cf",
    "combine": "#59a36a",
    "shared": "#a77bca",
    "collective": "#d9534f",
    "other": "#9aa0a6",
}

#: Classes of a step's GPU work, with their colours; the column of moe_layer_correlation is step_CLASS_ns.
CLASSES: Mapping[str, str] = {
    "moe layers": "#4878cf",
    "attention": "#59a36a",
    "collective": "#d9534f",
    "dense": "#eda93b",
    "norm": "#4fb3bf",
    "sampling": "#a77bca",
    "memory": "#8c6d5a",
    "recording": "#e78ac3",
    "other": "#9aa0a6",
    "unplaced": "#5d6675",
}

FONT = 'system-ui, -apple-system, "Segoe UI", Roboto, "Liberation Sans", sans-serif'


#: Pixels of a chart that fills the width of its container on the page, where it has none: in an image and on paper.
CONTAINER = 1000
#: Size of texts on paper, where a chart is about 0.7 times as large as on the screen.
PAPER = 1.25


def _config(
    ink: str, faint: str, grid: str, ramp: list[str], diverging: list[str], accent: str, size: float = 1.0
) -> dict[str, Any]:
    text = {
        "labelColor": faint,
        "titleColor": ink,
        "labelFontSize": 11 * size,
        "titleFontSize": 12 * size,
        "titleFontWeight": 500,
    }
    return {
        "font": FONT,
        "background": "transparent",
        "view": {"stroke": None},
        "axis": {
            **text,
            "domainColor": grid,
            "tickColor": grid,
            "gridColor": grid,
            "gridOpacity": 0.7,
            "titlePadding": 8,
        },
        "axisY": {"domain": False, "ticks": False},
        "legend": {**text, "symbolType": "square", "titleLimit": 260},
        "header": {**text, "labelFontSize": 12 * size, "labelFontWeight": 500, "labelColor": ink},
        "title": {"color": ink, "fontSize": 12 * size, "fontWeight": 500, "anchor": "start"},
        "range": {"heatmap": ramp, "ramp": ramp, "diverging": diverging},
        "mark": {"color": accent},
        "rule": {"color": ink},
        "text": {"color": ink, "fontSize": 11 * size},
        "point": {"color": accent, "filled": True},
        "line": {"color": accent},
        "bar": {"color": accent},
    }


_LIGHT = (
    "#1d2430",
    "#566070",
    "#dfe3ea",
    ["#eef3fb", "#bcd3f2", "#7aa7e3", "#3f73c4", "#1f4590", "#0f2353"],
    ["#2166ac", "#92c5de", "#f2f2f2", "#f4a582", "#b2182b"],
    "#3567c0",
)
_DARK = (
    "#e6e9ef",
    "#a3adbd",
    "#323a48",
    ["#1b2333", "#27406f", "#3566b3", "#5c94e8", "#9cc3fb", "#e6f1ff"],
    ["#6bb2f0", "#33607f", "#2a2f3a", "#8a4a3a", "#f59a78"],
    "#76a8f5",
)
#: Vega-Lite configuration by the page's look: a colour scheme, or paper. The ramps get darker on a light page and lighter
#: on a dark one.
CONFIG: Mapping[str, dict[str, Any]] = {
    "light": _config(*_LIGHT),
    "dark": _config(*_DARK),
    "paper": _config(*_LIGHT, size=PAPER),
}
