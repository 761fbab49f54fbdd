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

#: Classes whose names are not plain, in words.
CLASS_WORDS: Mapping[str, str] = {
    "collective": "collectives",
    "norm": "norms",
    "dense": "matrix multiplications outside MoE layers",
    "memory": "copies and memsets",
    "recording": "nvtxmoe's own kernel",
    "other": "other work",
    "unplaced": "work that can't be placed",
}

#: Most characters of a kernel's name.
MOST_NAME = 64

FONT = 'system-ui, -apple-system, "Segoe UI", Roboto, "Liberation Sans", sans-serif'


def _config(ink: str, faint: str, grid: str, ramp: list[str], diverging: list[str], accent: str) -> dict[str, Any]:
    text = {"labelColor": faint, "titleColor": ink, "labelFontSize": 11, "titleFontSize": 12, "titleFontWeight": 500}
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
        "header": {**text, "labelFontSize": 12, "labelFontWeight": 500, "labelColor": ink},
        "title": {"color": ink, "fontSize": 12, "fontWeight": 500, "anchor": "start"},
        "range": {"heatmap": ramp, "ramp": ramp, "diverging": diverging},
        "mark": {"color": accent},
        "rule": {"color": ink},
        "text": {"color": ink, "fontSize": 11},
        "point": {"color": accent, "filled": True},
        "line": {"color": accent},
        "bar": {"color": accent},
    }


#: Vega-Lite configuration by colour scheme. The ramps get darker on a light page and lighter on a dark one.
CONFIG: Mapping[str, dict[str, Any]] = {
    "light": _config(
        "#1d2430",
        "#566070",
        "#dfe3ea",
        ["#eef3fb", "#bcd3f2", "#7aa7e3", "#3f73c4", "#1f4590", "#0f2353"],
        ["#2166ac", "#92c5de", "#f2f2f2", "#f4a582", "#b2182b"],
        "#3567c0",
    ),
    "dark": _config(
        "#e6e9ef",
        "#a3adbd",
        "#323a48",
        ["#1b2333", "#27406f", "#3566b3", "#5c94e8", "#9cc3fb", "#e6f1ff"],
        ["#6bb2f0", "#33607f", "#2a2f3a", "#8a4a3a", "#f59a78"],
        "#76a8f5",
    ),
}
