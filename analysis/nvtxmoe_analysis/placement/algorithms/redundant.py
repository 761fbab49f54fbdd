"""Redundant experts in the way of DeepSeek's EPLB: replicas of the most loaded experts, packed by load.

The idea is that of https://github.com/deepseek-ai/EPLB (MIT licence; eplb.py, global policy): each further slot goes to
the expert with the largest load per replica, then replicas are packed onto ranks, the heaviest first, each to the
lightest rank with room. Written anew. EPLB may put two replicas of an expert on one rank; here they are
kept apart, since a second one on a rank only costs memory.
"""

from __future__ import annotations

import numpy as np

from nvtxmoe_analysis.core.arrays import Floats, Ints
from nvtxmoe_analysis.placement.algorithms import Routing
from nvtxmoe_analysis.placement.algorithms.greedy import pack
from nvtxmoe_analysis.placement.layout import Layout, contiguous

ORDER = 30
LABEL = "with redundant experts (EPLB)"


def place(layer: Routing) -> Layout | None:
    """Return experts and replicas of the most loaded ones, packed by their tokens over all steps."""
    slots = layer.experts + layer.redundant
    if not layer.redundant or slots % layer.ranks or slots > layer.experts * layer.ranks:
        return None
    tokens = layer.counts.sum(axis=0, dtype=np.float64)
    many = replicas(tokens, slots, layer.ranks)
    experts = np.repeat(np.arange(layer.experts), many)
    return spread(pack((tokens / many)[experts], experts, contiguous(slots, layer.ranks).sizes), layer.experts)


def replicas(tokens: Floats, slots: int, max_replicas: int) -> Ints:
    """Return how many slots each expert gets: each further one to the largest load per replica; at most one per rank.

    Parameters:
        tokens: float64 [experts].
    """
    many = np.ones(len(tokens), dtype=np.int64)
    for _ in range(slots - len(tokens)):
        many[np.where(many < max_replicas, tokens / many, -1.0).argmax()] += 1
    return many


def spread(layout: Layout, experts: int) -> Layout:
    """Return the placement with an expert that a rank holds twice exchanged for one of another rank."""
    ranks = [list(map(int, layout.held(rank))) for rank in range(layout.ranks)]
    for rank_experts in ranks:
        for at, expert in enumerate(rank_experts):
            if expert not in rank_experts[:at]:
                continue
            for other in ranks:
                swap = next((i for i, expert in enumerate(other) if expert not in rank_experts), None)
                if other is not rank_experts and expert not in other and swap is not None:
                    rank_experts[at], other[swap] = other[swap], expert
                    break
    made = Layout.of_ranks(ranks)
    made.check(experts)
    return made
