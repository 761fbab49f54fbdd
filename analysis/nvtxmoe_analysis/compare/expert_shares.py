"""Shares of a layer's experts in both runs, and how far blocks of steps pull them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import polars as pl

from nvtxmoe_analysis.compare.plan import Kind, summed
from nvtxmoe_analysis.compare.runs import Run
from nvtxmoe_analysis.core.arrays import Floats

Cells = Mapping[tuple[str, int], pl.DataFrame]


@dataclass(frozen=True)
class RunShares:
    """One layer in one run, over one or more kinds of step.

    Attributes:
        counts: assignments, float64 [experts].
        shares: float64 [experts], sum 1. Over several kinds their weighted mean, so it need not be that of counts.
        pulls: how far each block moves the shares, float64 [blocks, experts]: the covariance of the shares is
            ``pulls.T @ pulls``, what drawing the blocks again converges to, with m / (m - 1) for m blocks.
        blocks: how many blocks each kind has; ``pulls`` has them one kind after another.
    """

    counts: Floats
    shares: Floats
    pulls: Floats
    blocks: tuple[int, ...]


def by_kind_and_layer(side: Run) -> Cells:
    """The cells of a run, apart."""
    parts = side.counts.partition_by("step_kind", "layer_idx", as_dict=True)
    return {(str(kind), int(layer)): cells for (kind, layer), cells in parts.items()}


def shares_of(kinds: Sequence[Kind], cells: Cells, run: int, layer: int, experts: int) -> RunShares | None:
    """One layer over kinds of step, each as often as it has tokens in both runs together: the runs' loads are not
    compared. None where a kind has no counts.

    Parameters:
        run: 0 for A, 1 for B.
    """
    tokens = sum(sum(kind.tokens) for kind in kinds)
    counts, shares, pulls, blocks = np.zeros(experts), np.zeros(experts), [], []
    for kind in kinds:
        frame = cells.get((kind.name, layer))
        if frame is None:
            return None
        number = kind.blocks[run]
        by_block = summed(frame.join(kind.block[run], on="step", how="inner"), number, experts)
        total = by_block.sum()
        share = by_block.sum(axis=0) / total
        weight = sum(kind.tokens) / tokens
        off = (by_block - by_block.sum(axis=1, keepdims=True) * share) / total
        pulls.append(weight * np.sqrt(kind.enlarged[run] * number / max(1, number - 1)) * off)
        counts += by_block.sum(axis=0)
        shares += weight * share
        blocks.append(number)
    return RunShares(counts, shares, np.concatenate(pulls), tuple(blocks))
