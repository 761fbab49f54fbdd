"""Slow trends along the rows of a stratum, which a fit has beside its features.

A GPU's clock that falls, a card that warms up and a batch that fills or runs out all change slowly. If both time and a
feature follow a trend, nobody can tell which of them is the cause, so a slope must show beside the trend. The trend is
a straight line and, in long runs, the slowest cosines (as in J. Ashburner et al., SPM12 Manual, 2014, 8.2).
"""

from __future__ import annotations

from functools import lru_cache

import numpy as np

from nvtxmoe_analysis.core.arrays import Floats
from nvtxmoe_analysis.stats.huber import Strata

#: Rows of a stratum per cosine beside the line, and the most cosines. A stratum with fewer rows has no trend.
ROWS_PER_COSINE, MOST_COSINES = 50, 3
LEAST_ROWS = 8
#: Columns with less than this share of their size beside the others add nothing but rounding.
LEAST_OWN = 1e-6


@lru_cache(maxsize=512)
def trend_of(rows: int) -> Floats:
    """Return orthonormal trend columns of a stratum, each with mean 0: float64 [columns, rows]."""
    if rows < LEAST_ROWS:
        return np.zeros((0, rows))
    place = (np.arange(rows) + 0.5) / rows
    cosines = min(MOST_COSINES, rows // ROWS_PER_COSINE)
    columns = [np.ones(rows), place - 0.5, *(np.cos(np.pi * order * place) for order in range(1, cosines + 1))]
    basis: Floats = np.linalg.qr(np.stack(columns, axis=1))[0][:, 1:].T
    return np.ascontiguousarray(basis)


def trend_columns(strata: Strata) -> Floats:
    """Return the trend columns of all strata, orthonormal: float64 [columns, rows]."""
    parts = [trend_of(size) for size in strata.sizes.tolist()]
    columns = np.zeros((sum(len(part) for part in parts), len(strata.stratum)))
    at = 0
    for start, part in zip(strata.starts.tolist(), parts, strict=True):
        columns[at : at + len(part), start : start + part.shape[1]] = part
        at += len(part)
    return columns


def without(values: Floats, columns: Floats, strata: Strata) -> Floats:
    """Return the values less their strata's means and their part in orthonormal columns, over the last axis."""
    centred = strata.centred(values)
    left: Floats = centred - (centred @ columns.T) @ columns
    return left


def joined(columns: Floats, more: Floats, strata: Strata) -> Floats:
    """Return orthonormal columns that span both sets and have mean 0 in each stratum: float64 [columns, rows]."""
    left = without(more, columns, strata)
    size = np.maximum(np.sqrt((more * more).sum(axis=1)), 1e-300)
    left = left[np.sqrt((left * left).sum(axis=1)) > LEAST_OWN * size]
    if not len(left):
        return columns
    left = left / np.sqrt((left * left).sum(axis=1, keepdims=True))
    _, weight, basis = np.linalg.svd(left, full_matrices=False)
    return np.concatenate([columns, basis[weight > LEAST_OWN * weight[0]]])
