"""Kinds of NVTX range that the attribution knows."""

from __future__ import annotations

#: Outermost first: the order in which ranges of equal times nest.
IDLE, STEP, LAYER, PHASE = range(4)
#: No step, no layer, no range.
NONE = -1
