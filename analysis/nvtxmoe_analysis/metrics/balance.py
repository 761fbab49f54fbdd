"""Measures of balance by the definitions of other projects; docs/explanation/metrics.md names the sources.

Every function gives float64 [steps], NaN where a step has no assignment unless it says otherwise.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np
import polars as pl

from nvtxmoe_analysis.core.arrays import Floats, Ints
from nvtxmoe_analysis.events.tables import CountTable
from nvtxmoe_analysis.facts.routing_features import unevenness

#: What SGLang adds above and below the line.
SGLANG_EPSILON = 1e-5
#: What Megatron-LM adds below the line.
MEGATRON_EPSILON = 1e-8


@dataclass(frozen=True)
class Loads:
    """Assignments that an expert, slot or rank (a unit) got in a step: ``of`` is int64 [steps, units]."""

    of: Ints

    @property
    def units(self) -> int:
        """How many are compared."""
        return int(self.of.shape[1])

    @cached_property
    def sums(self) -> Ints:
        """Assignments of each step."""
        sums: Ints = self.of.sum(axis=1)
        return sums

    @cached_property
    def total(self) -> Floats:
        """The same, NaN for none: a division by it is NaN then."""
        return np.where(self.sums > 0, self.sums, np.nan)

    @cached_property
    def largest(self) -> Ints:
        """Assignments of each step's most loaded unit."""
        largest: Ints = self.of.max(axis=1, initial=0)
        return largest

    @cached_property
    def unevenness(self) -> pl.DataFrame:
        """See ``routing_features.unevenness``."""
        units = pl.DataFrame({"num_experts": np.full(len(self.of), self.units, dtype=np.int64)})
        narrow = self.of.astype(np.min_scalar_type(self.of.max(initial=0)))
        return unevenness(CountTable(units, narrow)).fill_null(np.nan)


def max_mean_ratio(load: Loads) -> Floats:
    """The most loaded unit over the mean unit: 1 is even, the number of units is all on one."""
    return load.largest * load.units / load.total


def variation(load: Loads) -> Floats:
    """Coefficient of variation: population standard deviation over mean."""
    coefficient: Floats = load.of.std(axis=1) * load.units / load.total
    return coefficient


def entropy_bits(load: Loads) -> Floats:
    """Shannon entropy of the assignments' distribution over units: log2 of their number is even."""
    return load.unevenness["entropy_bits"].to_numpy()


def gini(load: Loads) -> Floats:
    """Gini coefficient: mean absolute difference of two units over twice the mean; 0 is even."""
    return load.unevenness["gini"].to_numpy()


def active_pct(load: Loads) -> Floats:
    """Units that got any assignment, in percent of all."""
    return np.where(load.sums > 0, 100.0 * np.count_nonzero(load.of, axis=1) / load.units, np.nan)


def balancedness(load: Loads) -> Floats:
    """vLLM's, of one layer: mean over ranks divided by the largest rank."""
    return 1.0 / max_mean_ratio(load)


def utilization(load: Loads) -> Floats:
    """SGLang's, of one layer: (mean + 1e-5) / (max + 1e-5) over GPUs. 1 where a step has no assignment."""
    return (load.sums / load.units + SGLANG_EPSILON) / (load.largest + SGLANG_EPSILON)


def imbalance_ratio(load: Loads) -> Floats:
    """TensorRT-LLM's: (max - mean) / mean."""
    return max_mean_ratio(load) - 1.0


def overload_factor(load: Loads) -> Floats:
    """Megatron-LM's: the most loaded rank over the count that each would have with even routing."""
    return load.largest / (load.total / load.units + MEGATRON_EPSILON)
