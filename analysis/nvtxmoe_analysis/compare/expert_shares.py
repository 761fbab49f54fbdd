"""Shares of a layer's experts in both runs, and how far steps pull them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import polars as pl

from nvtxmoe_analysis.compare.plan import Kind
from nvtxmoe_analysis.compare.runs import Run
from nvtxmoe_analysis.compare.step_moves import in_time_order
from nvtxmoe_analysis.core.arrays import Floats
from nvtxmoe_analysis.stats.long_run import cosine_sums

Cells = Mapping[tuple[str, int], pl.DataFrame]


@dataclass(frozen=True)
class RunShares:
    """One layer in one run, over one or more kinds of step.

    Attributes:
        counts: assignments, float64 [experts].
        shares: float64 [experts], sum 1. Over several kinds their weighted mean, so it need not be that of counts.
        pulls: how far steps move the shares, as sums weighted by slow cosines, float64 [cosines, experts], slowest
            first. If steps are independent, each has the covariance of the shares.
    """

    counts: Floats
    shares: Floats
    pulls: Floats


def by_kind_and_layer(side: Run) -> Cells:
    """Split the cells of a run by kind of step and layer."""
    parts = side.counts.partition_by("step_kind", "layer_idx", as_dict=True)
    return {(str(kind), int(layer)): cells for (kind, layer), cells in parts.items()}


def shares_of(kinds: Sequence[Kind], cells: Cells, run: int, layer: int, experts: int) -> RunShares | None:
    """One layer over kinds of step, each as often as it has tokens in both runs together: the runs' loads are not
    compared. None where a kind has no counts.

    Parameters:
        run: 0 for A, 1 for B.
    """
    tokens = sum(sum(kind.tokens) for kind in kinds)
    counts, shares, moves = np.zeros(experts), np.zeros(experts), []
    for kind in kinds:
        frame = cells.get((kind.name, layer))
        if frame is None:
            return None
        step = np.searchsorted(kind.numbers[run], frame["step"].to_numpy())
        by_step = summed(frame.with_columns(place=pl.Series(step)), kind.steps[run], experts)
        weight = sum(kind.tokens) / tokens
        share, moved = share_moves(by_step)
        moves.append(weight * moved)
        counts += by_step.sum(axis=0)
        shares += weight * share
    return RunShares(counts, shares, cosine_sums(in_time_order([kind.numbers[run] for kind in kinds], moves)))


def share_moves(by_step: Floats) -> tuple[Floats, Floats]:
    """Shares of experts [experts], and how much each step moves them [steps, experts], from counts [steps, experts]."""
    total = by_step.sum()
    share = by_step.sum(axis=0) / total
    return share, (by_step - by_step.sum(axis=1, keepdims=True) * share) / total


def summed(cells: pl.DataFrame, cell_count: int, width: int) -> Floats:
    """Counts summed by ``place``, float64 [places, width]. Sums up to 2^53 are exact."""
    matrix = cells["counts"].list.to_array(width).to_numpy()
    place = cells["place"].to_numpy()
    order = np.argsort(place, kind="stable")
    filled, first = np.unique(place[order], return_index=True)
    out = np.zeros((cell_count, width))
    out[filled] = np.add.reduceat(matrix[order].astype(np.float64), first, axis=0)
    return out
