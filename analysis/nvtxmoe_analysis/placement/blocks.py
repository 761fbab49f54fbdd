"""Blocks of consecutive steps: half of them fit the model and choose placements, the other half value them."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from nvtxmoe_analysis.core.arrays import Bools, Floats, Ints

#: Steps are cut into 10 to 20 blocks of at least ten steps, where that leaves ten; fewer than ten are a block each.
MIN_BLOCKS, MOST_BLOCKS, STEPS_A_BLOCK = 10, 20, 10
#: Fewer steps of a phase are not valued: each half needs some blocks to tell its scatter.
LEAST_STEPS = 8


@dataclass(frozen=True)
class Blocks:
    """The blocks of a phase.

    Attributes:
        steps: int64 [steps], in order.
        block: int64 [steps], the block of each.
    """

    steps: Ints
    block: Ints

    @property
    def number(self) -> int:
        """How many blocks."""
        return int(self.block[-1]) + 1 if len(self.block) else 0

    @property
    def for_value(self) -> Bools:
        """Return which blocks are for the value, bool [blocks]; the others are for the fit.

        The sequence of Thue and Morse (0110 1001 ...): half of every pair, and no workload that alternates falls into
        one half.
        """
        is_odd = [bin(block).count("1") % 2 == 1 for block in range(self.number)]
        return np.array(is_odd, dtype=np.bool_)

    def of(self, steps: Ints) -> Ints:
        """Return the block of each of these steps, which are all among the phase's."""
        numbers: Ints = self.block[np.searchsorted(self.steps, steps)]
        return numbers


def cut(steps: Ints) -> Blocks:
    """Cut a phase's steps, in order and each once, into blocks of nearly equal length."""
    number = min(len(steps), max(MIN_BLOCKS, min(MOST_BLOCKS, len(steps) // STEPS_A_BLOCK)))
    return Blocks(steps, np.arange(len(steps), dtype=np.int64) * number // max(1, len(steps)))


def jackknife(left_out: Floats) -> Floats:
    """Return the variance of an estimate from its values without each block, the last axis: (n - 1) / n of their
    squared deviations' sum. With blocks as clusters this is the cluster-robust CV3 (MacKinnon, Nielsen and Webb,
    "Fast and reliable jackknife and bootstrap methods for cluster-robust inference", 2023). Infinite for one block."""
    number = left_out.shape[-1]
    if number < 2:
        return np.full(left_out.shape[:-1], np.inf)
    spread = left_out - left_out.mean(axis=-1, keepdims=True)
    variance: Floats = (number - 1) / number * (spread**2).sum(axis=-1)
    return variance
