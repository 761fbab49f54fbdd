"""A difference of two independent means with variances of their own: B. L. Welch, Biometrika 34 (1947)."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from nvtxmoe_analysis.core.arrays import Floats
from nvtxmoe_analysis.stats import student_t


@dataclass(frozen=True)
class Spread:
    """Uncertainty of a difference, by column.

    Attributes:
        error: standard error.
        df: degrees of freedom of Student's t.
    """

    error: Floats
    df: Floats

    def p_value(self, difference: Floats) -> Floats:
        """Two-sided p-value of no difference; 1 where nothing differs, NaN where the error is NaN."""
        with np.errstate(divide="ignore", invalid="ignore"):
            p = student_t.p_value(np.abs(difference) / self.error, self.df)
        return np.where(difference == 0.0, 1.0, p)

    def half_width(self, confidence: float) -> Floats:
        """Half the width of the confidence interval around the difference."""
        return self.error * student_t.quantile(confidence, self.df)


def spread(variances: Floats, df: Floats) -> Spread:
    """Combine independent parts of a difference.

    Parameters:
        variances, df: of the parts, float64 [parts, ..., columns].
    """
    total = variances.sum(axis=0)
    with np.errstate(divide="ignore", invalid="ignore"):
        degrees = np.where(total > 0, total**2 / (variances**2 / df).sum(axis=0), df.sum(axis=0))
    return Spread(np.sqrt(total), degrees)
