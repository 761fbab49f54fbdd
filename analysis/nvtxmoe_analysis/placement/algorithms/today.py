"""The placement of the run itself, where it is known."""

from __future__ import annotations

from nvtxmoe_analysis.placement.algorithms import Routing
from nvtxmoe_analysis.placement.layout import Layout

ORDER = 0
LABEL = "today's"


def place(layer: Routing) -> Layout | None:
    """Return the run's own placement."""
    return layer.today
