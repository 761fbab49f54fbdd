"""Colours of charts, and vega's configuration for a light and a dark page."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

# Neighbours in a stack differ in lightness, so that they can be told apart in greyscale. Any two colours of a palette
# can be told apart with each kind of colour blindness (tests/report/test_report_colours.py).

#: Phases of a layer, in the order in which they run, with their colours.
PHASES: Mapping[str, str] = {
    "route": "#f3d27a",
    "dispatch": "#1fae83",
    "experts": "#0072b2",
    "combine": "#86ccf4",
    "shared": "#882255",
    "collective": "#d55e00",
    "other": "#c9cdd3",
}

#: Classes of a step's GPU work, with their colours; the column of moe_layer_correlation is step_CLASS_ns.
CLASSES: Mapping[str, str] = {
    "moe layers": "#0072b2",
    "attention": "#86ccf4",
    "collective": "#d55e00",
    "waiting": "#7020d0",
    "dense": "#f3d27a",
    "norm": "#1b7f3f",
    "sampling": "#dd7fb8",
    "memory": "#5a3a20",
    "recording": "#9a8be6",
    "other": "#c9cdd3",
    "unplaced": "#3f4550",
}

#: Classes whose names are not plain, in words.
CLASS_WORDS: Mapping[str, str] = {
    "collective": "collectives",
    "waiting": "waiting for other ranks",
    "norm": "norms",
    "dense": "matrix multiplications outside MoE layers",
    "memory": "copies and memsets",
    "recording": "nvtxmoe's own kernel",
    "other": "other work",
    "unplaced": "work that can't be placed",
}

#: Most characters of a kernel's name.
MOST_NAME = 64
#: Kinds of steps, with their colours.
KINDS: Mapping[str, str] = {"decode": "#0072b2", "prefill": "#e69f00", "mixed": "#882255", "none": "#9aa0a6"}

#: Colour by how a bar of the waterfall was found.
HOW: Mapping[str, str] = {"measured": "#0072b2", "estimated": "#e08a1e", "remainder": "#c9cdd3"}

#: Colours of text on light and on dark marks.
INK, PALE = "#1d2430", "#ffffff"
#: Relative luminance from which a mark is light.
LIGHT_FROM = 0.3


def is_light(colour: str) -> bool:
    """Return True if dark text is easier to read on ``#rrggbb`` than pale text."""
    red, green, blue = (int(colour[at : at + 2], 16) / 255 for at in (1, 3, 5))
    return bool(0.2126 * red**2.2 + 0.7152 * green**2.2 + 0.0722 * blue**2.2 > LIGHT_FROM)


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
        "axisY": {"domain": False, "ticks": False, "maxExtent": 400},  # a title stays clear of long labels
        "legend": {**text, "symbolType": "square", "titleLimit": 500, "labelOverlap": "greedy"},
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
#: Vega-Lite configuration by the page's look: a colour scheme, or paper. The ramps get darker on a light page and
#: lighter on a dark one.
CONFIG: Mapping[str, dict[str, Any]] = {
    "light": _config(*_LIGHT),
    "dark": _config(*_DARK),
    "paper": _config(*_LIGHT, size=PAPER),
}
