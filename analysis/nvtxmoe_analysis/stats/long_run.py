"""Variance of a mean over consecutive steps that resemble each other, from the slowest oscillations of the steps.

A series of n steps is split into cosines that complete a half, one, one and a half ... periods over the n steps. The
squares of the slowest cosine sums have the variance of the plain sum when the series' memory is much shorter than their
periods (equally weighted cosines: E. Lazarus, D. Lewis, J. Stock and M. Watson, HAR inference, J. Bus. Econ. Stat. 36,
2018). Longer memory makes the slowest squares larger than the others, and the plain sum varies more still. So the
variance is extrapolated: shapes of the spectrum, a floor plus a memory of a given length and strength, are weighed by
how well they explain the squares, and each shape predicts the variance of the sum. The approach follows U. Müller and
M. Watson, Measuring uncertainty about long-run predictions, Rev. Econ. Stud. 83 (2016).

When the memory is about as long as the run, no estimate is reliable: the slowest change may be larger than the run
shows. :attr:`LongRun.drift` measures the evidence for such a drift.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import numpy as np

from nvtxmoe_analysis.core.arrays import Bools, Floats

#: Cosines used, at most and at least, and how many steps each takes. Fewer steps than LEAST_STEPS tell no variance.
MOST_COSINES, LEAST_COSINES = 24, 4
STEPS_PER_COSINE = 4
#: Cosines of longer runs are not kept: they take 192 bytes a step.
KEPT_STEPS = 20_000
LEAST_STEPS = 8

#: Weight of a spectrum without memory, of one series and of several that are pooled; the shapes with memory share the
#: rest. Pooled series show a weak memory, and add up what a weight of its absence leaves out.
FLAT_WEIGHT, POOLED_FLAT_WEIGHT = 0.8, 0.5
#: Corners of the shapes, in half periods over the whole run, from this one up to the number of cosines.
SLOWEST_CORNER = 0.5
CORNERS = 10
#: Strength of the memory: spectrum at frequency 0 over the floor, less 1.
STRENGTHS = np.geomspace(0.125, 128.0, 11)
#: Memory with a corner below this many half periods is a drift: the run holds it hardly more than once.
DRIFT_CORNER = 2.5
#: No run is taken for steadier than its slowest cosines are: so many, whose mean square counts as often.
SLOWEST_COSINES, SLOWEST_FACTOR = 4, 2.0
#: Evidence (Bayes factor) for a drift, of one run and the product of both, from which nothing can be told.
DRIFT_OF_ONE, DRIFT_OF_BOTH = 5.0, 2.0


def cosine_number(steps: int) -> int:
    """Return how many cosines a series of this many steps is split into."""
    return min(MOST_COSINES, max(LEAST_COSINES, steps // STEPS_PER_COSINE))


def cosine_sums(series: Floats) -> Floats:
    """Sums of the steps weighted by the slowest cosines: float64 [cosines, ...].

    Each has the variance of the plain sum when the steps are independent, whatever their mean.

    Parameters:
        series: float64 [steps, ...], at least LEAST_STEPS long.
    """
    cosines = _cosines_again if len(series) <= KEPT_STEPS else _cosines
    sums: Floats = np.tensordot(cosines(len(series)), series, axes=(1, 0))
    return sums


def _cosines(steps: int) -> Floats:
    order = np.arange(1, cosine_number(steps) + 1)[:, None]
    cosines: Floats = np.sqrt(2.0) * np.cos(np.pi * order * (np.arange(steps) + 0.5) / steps)
    return cosines


#: A comparison needs those of each run and kind of step again and again.
_cosines_again = lru_cache(maxsize=8)(_cosines)


@dataclass(frozen=True)
class LongRun:
    """Variance of sums over steps.

    Attributes:
        variance: float64 [columns].
        df: degrees of freedom of Student's t that the variance is worth, at least 1, float64 [columns].
        drift: Bayes factor of memory about as long as the run against shorter or none, float64 [columns].
    """

    variance: Floats
    df: Floats
    drift: Floats


def long_run(power: Floats, columns_pooled: float = 1.0) -> LongRun:
    """Estimate the variance of sums over steps from the squares of their cosine sums.

    Parameters:
        power: squares, slowest cosine first, float64 [cosines, columns].
        columns_pooled: number of independent series whose squares are added in each column.
    """
    shapes, gains, prior, slow = _shapes(len(power), FLAT_WEIGHT if columns_pooled == 1.0 else POOLED_FLAT_WEIGHT)
    cosines = len(power)
    nothing = ~(power.sum(axis=0) > 0)
    safe = np.where(nothing, 1.0, power)
    floors = (1.0 / shapes) @ safe / cosines
    weight = np.log(prior)[:, None] - columns_pooled / 2.0 * (
        np.log(shapes).sum(axis=1)[:, None] + cosines * np.log(floors)
    )
    weight = np.exp(weight - weight.max(axis=0))
    weight /= weight.sum(axis=0)
    logarithm = np.log(gains[:, None] * floors)
    mean = (weight * logarithm).sum(axis=0)
    scatter = (weight * (logarithm - mean) ** 2).sum(axis=0)
    # The mean of a log-normal variable with these moments.
    variance = np.where(nothing, 0.0, np.exp(mean + scatter / 2.0))
    df = np.maximum(1.0, 2.0 / (2.0 / (columns_pooled * cosines) + scatter))
    slowly = prior[slow].sum()
    with np.errstate(divide="ignore"):
        drift = weight[slow].sum(axis=0) / weight[~slow].sum(axis=0) * (1.0 - slowly) / slowly
    return LongRun(variance, df, np.where(nothing, 0.0, drift))


def slowest(power: Floats) -> tuple[Floats, Floats]:
    """Variance of sums over steps from the slowest cosines alone, enlarged, and its degrees of freedom, [columns].

    The shapes of ``long_run`` average over all cosines. A memory about as long as the run shows in a few of them, and
    by chance hardly there: a difference that these few do not support is not sure.

    Parameters:
        power: squares of the cosine sums, slowest first, float64 [cosines, columns].
    """
    few = power[:SLOWEST_COSINES]
    return SLOWEST_FACTOR * few.mean(axis=0), np.full(few.shape[1], float(len(few)))


def drifts(first: Floats, other: Floats, tests: int = 1) -> Bools:
    """Return whether drift leaves the difference of two runs undecided, [columns].

    Parameters:
        first, other: ``LongRun.drift`` of each run.
        tests: how many columns are looked at; evidence must be as many times stronger.
    """
    undecided: Bools = (np.maximum(first, other) > DRIFT_OF_ONE * tests) | (first * other > DRIFT_OF_BOTH * tests)
    return undecided


@lru_cache(maxsize=2 * MOST_COSINES)
def _shapes(cosines: int, flat_weight: float) -> tuple[Floats, Floats, Floats, Bools]:
    """Spectra at the cosines over their floor [shapes, cosines], variance of the plain sum over that of the floor,
    prior weight, and which are drifts [shapes].
    """
    order = np.arange(1, cosines + 1)
    corner, strength = (
        values.ravel()
        for values in np.meshgrid(np.geomspace(SLOWEST_CORNER, cosines, CORNERS), STRENGTHS, indexing="ij")
    )
    memory = corner[:, None] ** 2 / (corner[:, None] ** 2 + order**2)
    shapes = np.vstack([np.ones(cosines), 1.0 + strength[:, None] * memory])
    # Steps of the run per memory length; the variance of the mean of a stationary AR(1) over its spectrum at 0.
    lengths = np.pi * corner
    gains = np.concatenate([[1.0], 1.0 + strength * (1.0 - (1.0 - np.exp(-lengths)) / lengths)])
    prior = np.concatenate([[flat_weight], np.full(len(corner), (1.0 - flat_weight) / len(corner))])
    slow = np.concatenate([[False], corner < DRIFT_CORNER])
    return shapes, gains, prior, slow
