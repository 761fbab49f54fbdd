"""The placement of the run, found from its results: they hold how much each rank got, not which experts it holds."""

from __future__ import annotations

import numpy as np

from nvtxmoe_analysis.core.arrays import Ints
from nvtxmoe_analysis.placement.layout import Layout, contiguous, round_robin
from nvtxmoe_analysis.placement.run_data import LayerData

#: How far a solved membership may be from 0 or 1.
ROUNDING = 1e-3


def todays(data: LayerData) -> Layout | None:
    """Return the one placement under which the layer's counts give every rank its measured load in every step.

    vLLM's two ways (linear, round_robin) are tried first. Else the members of each rank are solved for from the steps'
    counts. None where the placement changed within the run (EPLB), or steps are too few to tell.
    """
    for guess in (contiguous(data.experts, len(data.ranks)), round_robin(data.experts, len(data.ranks))):
        if _fits(guess, data):
            return guess
    solved = _solved(data)
    return solved if solved is not None and _fits(solved, data) else None


def _fits(layout: Layout, data: LayerData) -> bool:
    load = layout.load(data.counts, data.block_m, data.steps)
    return np.array_equal(load.rows, data.load.rows) and np.array_equal(load.active, data.load.active)


def _solved(data: LayerData) -> Layout | None:
    """Return the placement without replicas that the counts imply: counts x members = assignments of each rank."""
    counts = data.counts.astype(np.float64)
    if np.linalg.matrix_rank(counts) < data.experts:
        return None
    members = np.linalg.lstsq(counts, data.load.rows.astype(np.float64), rcond=None)[0]
    rounded = np.rint(members)
    if np.abs(members - rounded).max() > ROUNDING or not ((rounded == 0) | (rounded == 1)).all():
        return None
    rank_experts: list[Ints] = [np.flatnonzero(rounded[:, rank]) for rank in range(len(data.ranks))]
    if (rounded.sum(axis=1) != 1).any() or not all(len(experts) for experts in rank_experts):
        return None
    return Layout.of_ranks(rank_experts)
