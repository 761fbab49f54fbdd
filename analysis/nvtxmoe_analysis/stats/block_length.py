"""Stretches of consecutive steps that may be drawn as if they were independent.

Steps that follow each other are alike: the same requests decode, the clocks drift. Drawing single steps would take
them for more evidence than they are. So steps of one kind are cut into blocks of consecutive ones, which do not
overlap, and blocks are drawn.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from math import ceil, log10, sqrt

import numpy as np

from nvtxmoe_analysis.core.arrays import Floats, Ints

#: Series shorter than this say nothing about their own dependence; they stand as single steps.
SHORTEST = 8
#: Correlations that are not significant leave so many blocks at least: they are no ground for silence.
QUIET_BLOCKS = 8


def lags(length: int) -> tuple[int, int]:
    """How many lags in a row must be insignificant, and the largest lag looked at, for a series of this length."""
    quiet = max(5, ceil(log10(length)))
    return quiet, min(length - 1, ceil(sqrt(length)) + quiet)


def autocovariance(series: Floats) -> Floats:
    """Autocovariances at lags 0 to ``lags(n)[1]``, summed over the columns of ``series``, float64 [n, columns]."""
    steps = len(series)
    largest = lags(steps)[1]
    # Products at all lags at once: the inverse transform of the power, with room enough that no lag wraps around.
    power = np.abs(np.fft.rfft(series - series.mean(axis=0), n=2 * steps, axis=0)) ** 2
    products: Floats = np.fft.irfft(power.sum(axis=1), n=2 * steps)[: largest + 1]
    return products / steps


@dataclass(frozen=True)
class Dependence:
    """How steps depend on each other.

    Attributes:
        length: steps a block.
        reach: by how much the variance of blocks of b steps falls short: by the part reach / b.
    """

    length: int = 1
    reach: float = 0.0

    def missing(self, length: int) -> float:
        """The part of the variance that blocks of this length do not have, at most a half."""
        return min(0.5, self.reach / length)


def dependence(covariances: Iterable[Floats], steps: int) -> Dependence:
    """Of a series of so many steps.

    Parameters:
        covariances: of one or more series, see :func:`autocovariance`; they are added up.

    The rule is that of D. N. Politis and H. White, Automatic block-length selection for the dependent bootstrap,
    Econometric Reviews 23 (2004), as corrected by Patton, Politis and White (28, 2009): a flat-top window up to twice
    the lag after which correlations are insignificant, then the length that minimises the squared error. For blocks
    that do not overlap the variance constant is 2 (S. N. Lahiri, Ann. Stat. 27, 1999), not the 4/3 of those that do.
    That length trades bias for scatter. A test suffers from the bias alone, as Student's t accounts for the scatter:
    where correlations are significant the length is doubled, and what is still missing is told.
    """
    total: Floats = np.sum(list(covariances), axis=0)
    if steps < SHORTEST or not total[0] > 0:
        return Dependence()
    quiet, largest = lags(steps)
    small = np.abs(total[1:] / total[0]) < 2.0 * sqrt(log10(steps) / steps)
    still = (lag for lag in range(largest - quiet + 1) if small[lag : lag + quiet].all())
    first = next(still, largest)
    window = min(2 * max(first, 1), largest)
    lag = np.arange(1, window + 1)
    weight = np.minimum(1.0, 2.0 * (1.0 - lag / window))
    spectrum = float(total[0] + 2.0 * (weight * total[1 : window + 1]).sum())
    curvature = float(2.0 * (weight * lag * total[1 : window + 1]).sum())
    if not spectrum > 0:
        return Dependence()
    best = (curvature**2 / spectrum**2) ** (1 / 3) * steps ** (1 / 3)
    if first:
        length = round(min(2 * best, 3 * sqrt(steps), steps / 3))
        return Dependence(max(1, length), max(0.0, curvature / spectrum))
    return Dependence(max(1, round(min(best, steps / QUIET_BLOCKS))))


def cut(steps: int, length: int) -> Ints:
    """The block of each of so many consecutive steps: int64 [steps], from 0, the blocks as equal as can be."""
    number = max(1, steps // length)
    return np.arange(steps, dtype=np.int64) * number // max(1, steps)
