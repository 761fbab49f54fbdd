"""Charts of the report, one module each: every module in this folder is drawn (see ``report.chart.ChartModule``)."""

from __future__ import annotations

import pkgutil
from collections.abc import Mapping
from importlib import import_module
from typing import cast

from nvtxmoe_analysis.report.chart import SECTIONS, ChartModule


def chart_modules() -> Mapping[str, ChartModule]:
    """Return every chart module by name, in the order of the page."""
    modules = {
        info.name: cast(ChartModule, import_module(f"{__name__}.{info.name}"))
        for info in pkgutil.iter_modules(__path__)
    }
    return dict(sorted(modules.items(), key=lambda item: (SECTIONS.index(item[1].SECTION), item[1].ORDER, item[0])))
