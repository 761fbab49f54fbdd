"""Drawing blocks of steps again, and what the draws say about a difference."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from nvtxmoe_analysis.core.arrays import Floats
from nvtxmoe_analysis.stats import student_t


def draws(random: np.random.Generator, blocks: int, number: int) -> Floats:
    """How often each block is drawn, in so many resamples of as many blocks as there are: float64 [number, blocks]."""
    return random.multinomial(blocks, np.full(blocks, 1.0 / blocks), size=number).astype(np.float64)


@dataclass(frozen=True)
class Part:
    """One independently drawn part of a difference: a kind of step in one run.

    Attributes:
        blocks: how many were drawn from.
        enlarged: by what its variance is multiplied, see ``plan.Kind``.
        moved: what it adds to the difference in each resample, float64 [resamples, columns].
    """

    blocks: int
    enlarged: float
    moved: Floats


@dataclass(frozen=True)
class Spread:
    """How sure a difference is, by column.

    Attributes:
        error: its standard error.
        freedom: degrees of freedom of Student's t.
    """

    error: Floats
    freedom: Floats

    def p_value(self, difference: Floats) -> Floats:
        """Two-sided, that there is no difference; 1 where nothing differs, NaN where nothing is known."""
        with np.errstate(divide="ignore", invalid="ignore"):
            p = student_t.p_value(difference / self.error, self.freedom)
        return np.where(difference == 0.0, 1.0, p)

    def half_width(self, confidence: float) -> Floats:
        """Half the width of the confidence interval around the difference."""
        return self.error * student_t.quantile(confidence, self.freedom)


def spread(whole: Floats, parts: list[Part]) -> Spread:
    """The spread of a difference over resamples.

    The standard error is that of the resamples, enlarged by sqrt(m / (m - 1)) for the m blocks of each part: a
    resample scatters around its sample as around a population of m. Student's t takes the place of the normal
    distribution, with degrees of freedom of B. L. Welch (Biometrika 34, 1947) from the parts' shares of the variance.
    Both matter when blocks are few: T. Hesterberg, What teachers should know about the bootstrap, Am. Stat. 69 (2015).

    Parameters:
        whole: the difference in each resample, float64 [resamples, columns]. Resamples that are NaN (nothing to
            compare was drawn) don't count.
        parts: what it is made of, to first order.
    """
    variances = np.stack([_variance(part.moved) for part in parts])
    freedom = np.array([part.blocks - 1.0 for part in parts])[:, None]
    enlarged = variances * (freedom + 1.0) / freedom * np.array([part.enlarged for part in parts])[:, None]
    total = enlarged.sum(axis=0)
    with np.errstate(divide="ignore", invalid="ignore"):
        factor = np.where(total > 0, total / variances.sum(axis=0), 1.0)
        degrees = np.where(total > 0, total**2 / (enlarged**2 / freedom).sum(axis=0), freedom.sum())
    return Spread(np.sqrt(_variance(whole) * factor), degrees)


def _variance(values: Floats) -> Floats:
    """Over resamples, of those that are numbers; NaN where fewer than two are."""
    there = np.isfinite(values)
    number = there.sum(axis=0)
    with np.errstate(divide="ignore", invalid="ignore"):
        mean = np.where(there, values, 0.0).sum(axis=0) / number
        off = np.where(there, values - mean, 0.0)
        return np.where(number > 1, (off * off).sum(axis=0) / number, np.nan)
