"""Balance of all layers of a step together, where a project sums over layers before it divides."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from nvtxmoe_analysis.core.arrays import Floats, Ints
from nvtxmoe_analysis.metrics import balance
from nvtxmoe_analysis.metrics.balance import Loads


@dataclass(frozen=True)
class OfLayers:
    """By step, of all layers together; float64 [steps].

    Attributes:
        vllm: vLLM's balancedness since 0.28: sum over layers of the mean rank over that of the largest rank.
        vllm_before: what vLLM before 0.28 logs under the name: sum over ranks of the mean layer over that of the
            largest layer.
        sglang: SGLang's: the mean over layers of ``balance.utilization``.
    """

    steps: Ints
    vllm: Floats
    vllm_before: Floats
    sglang: Floats


class LayerSums:
    """Adds up the layers of one expert group, of the steps in which each of them has counts."""

    def __init__(self, steps: Ints, ranks: Ints) -> None:
        """``ranks`` is [steps, ranks] of the first layer."""
        self._layers = 1
        self._steps = steps
        self._rank_sum, self._rank_max = ranks.copy(), ranks.copy()
        self._max_sum, self._utilization = ranks.max(axis=1), balance.utilization(Loads(ranks))

    def add(self, steps: Ints, ranks: Ints) -> None:
        """One more layer."""
        if not np.array_equal(steps, self._steps):
            both, own_rows, new = np.intersect1d(self._steps, steps, assume_unique=True, return_indices=True)
            ranks = ranks[new]
            self._steps = both
            self._rank_sum, self._rank_max = self._rank_sum[own_rows], self._rank_max[own_rows]
            self._max_sum, self._utilization = self._max_sum[own_rows], self._utilization[own_rows]
        self._layers += 1
        self._rank_sum += ranks
        np.maximum(self._rank_max, ranks, out=self._rank_max)
        self._max_sum = self._max_sum + ranks.max(axis=1)
        self._utilization = self._utilization + balance.utilization(Loads(ranks))

    def result(self) -> OfLayers:
        """The measures by step; vLLM's are NaN where a step has no assignment."""
        total = self._rank_sum.sum(axis=1)
        with np.errstate(divide="ignore", invalid="ignore"):
            return OfLayers(
                self._steps,
                total / self._rank_sum.shape[1] / self._max_sum,
                total / self._layers / self._rank_max.sum(axis=1),
                self._utilization / self._layers,
            )
