"""Greedy by load: the expert with the most tokens goes to the rank with the fewest.

This is the packing of longest processing times first (Graham, "Bounds on multiprocessing timing anomalies", 1969) with
equal numbers of experts per rank, the way of DeepSeek's EPLB without redundant experts.
"""

from __future__ import annotations

import numpy as np

from nvtxmoe_analysis.core.arrays import Floats, Ints
from nvtxmoe_analysis.placement.algorithms import Routing
from nvtxmoe_analysis.placement.layout import Layout, contiguous

ORDER = 20
LABEL = "greedy by tokens"


def place(layer: Routing) -> Layout | None:
    """Return experts packed by their tokens over all steps."""
    tokens = layer.counts.sum(axis=0, dtype=np.float64)
    return pack(tokens, np.arange(layer.experts), contiguous(layer.experts, layer.ranks).sizes)


def pack(weights: Floats, experts: Ints, sizes: Ints) -> Layout:
    """Return items packed into ranks: the heaviest first, each to the lightest rank that has room.

    A rank that holds the item's expert already is taken only where no other has room. Ties go to the lowest number.

    Parameters:
        weights: float64 [items].
        experts: int64 [items], the expert of each.
        sizes: int64 [ranks], items per rank; their sum is the number of items.
    """
    load = np.zeros(len(sizes))
    rank_experts: list[list[int]] = [[] for _ in sizes]
    for item in np.argsort(-weights, kind="stable"):
        expert = int(experts[item])
        open_ranks = [rank for rank, experts in enumerate(rank_experts) if len(experts) < sizes[rank]]
        rank = min(open_ranks, key=lambda rank: (expert in rank_experts[rank], load[rank], rank))
        rank_experts[rank].append(expert)
        load[rank] += weights[item]
    return Layout.of_ranks(rank_experts)
