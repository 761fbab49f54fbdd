"""Contiguous blocks of experts: the default of vLLM, SGLang and TensorRT-LLM."""

from __future__ import annotations

from nvtxmoe_analysis.placement.algorithms import Routing
from nvtxmoe_analysis.placement.layout import Layout
from nvtxmoe_analysis.placement.layout import contiguous as blocks

ORDER = 10
LABEL = "contiguous"


def place(layer: Routing) -> Layout | None:
    """Return experts in their order, in blocks."""
    return blocks(layer.experts, layer.ranks)
