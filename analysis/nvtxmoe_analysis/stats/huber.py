"""Huber regression with an intercept a stratum, of many models over the same rows at once.

Sources: Huber, "Robust Estimation of a Location Parameter" (1964) and Huber and Ronchetti, "Robust Statistics"
(2009), 7.8: weights min(1, k s / |r|), iterated, with the scale s = median |r| / 0.6745 (statsmodels' RLM does the
same). Leaving out a block is one Newton step of the estimating equations, which is exact where nothing is clipped.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np

from nvtxmoe_analysis.core.arrays import Floats, Ints

#: Of the scale: 95 % efficiency on normal noise.
HUBER_K = 1.345
#: median |r| of a standard normal.
NORMAL_MAD = 0.6744897501960817
#: Residuals are of whole nanoseconds: a smaller scale means nothing.
LEAST_SCALE_NS = 1.0
#: No residual is beyond it: what stands for no limit.
MOST_LIMIT_NS = 1e300
MOST_ITERATIONS = 500
#: The scale is followed so long, should it never rest, then kept: Huber's estimate with a fixed scale is unique.
SCALE_ITERATIONS = 400
#: Of the scale, by which one step may still move slopes (times the square root of rows), levels' mean and the scale.
TOLERANCE = 1e-3, 1e-3, 1e-3
#: Least share of rows not clipped that a step of the further columns' coefficients counts on.
LEAST_HELD = 0.5
#: When such a share of the models rests, the others go on by themselves.
SETTLED = 0.5


@dataclass(frozen=True)
class Strata:
    """Rows sorted by stratum, then block.

    Attributes:
        stratum: of each row, 0 to ``strata`` - 1, rising, int64 [rows].
        block: of each row, 0 to ``blocks`` - 1, rising within a stratum, int64 [rows].
    """

    stratum: Ints
    block: Ints
    strata: int
    blocks: int

    @cached_property
    def starts(self) -> Ints:
        """First row of each stratum."""
        return np.searchsorted(self.stratum, np.arange(self.strata))

    @cached_property
    def sizes(self) -> Ints:
        """Rows of each stratum."""
        return np.bincount(self.stratum, minlength=self.strata)

    @cached_property
    def cell(self) -> Ints:
        """Number of each row's (stratum, block) among all of them, int64 [rows]."""
        return self.stratum * self.blocks + self.block

    def same(self, other: Strata) -> bool:
        """Whether the other one's rows are as these."""
        return np.array_equal(self.stratum, other.stratum) and np.array_equal(self.block, other.block)

    @cached_property
    def _cell_starts(self) -> Ints:
        return np.flatnonzero(np.append(True, self.cell[1:] != self.cell[:-1]))

    @cached_property
    def _cell_sizes(self) -> Ints:
        return np.diff(np.append(self._cell_starts, len(self.cell)))

    @property
    def cells(self) -> Iterator[tuple[int, slice]]:
        """Block and rows of each (stratum, block) that has any."""
        ends = self._cell_starts + self._cell_sizes
        blocks = self.block[self._cell_starts]
        for block, start, end in zip(blocks.tolist(), self._cell_starts.tolist(), ends.tolist(), strict=True):
            yield block, slice(start, end)

    def of_rows(self, values: Floats) -> Floats:
        """What each row's (stratum, block) has: [models, strata, blocks] to [models, rows]."""
        flat = values.reshape(len(values), self.strata * self.blocks)
        return np.repeat(flat[:, self.cell[self._cell_starts]], self._cell_sizes, axis=1)

    def cell_sums(self, values: Floats) -> Floats:
        """Sums over rows by (stratum, block): [models, rows] to [models, strata, blocks]."""
        first = self._cell_starts
        out = np.zeros((len(values), self.strata * self.blocks))
        out[:, self.cell[first]] = np.add.reduceat(values, first, axis=1)
        return out.reshape(len(values), self.strata, self.blocks)

    def centred(self, values: Floats) -> Floats:
        """Less the mean of the row's stratum, over the last axis."""
        return values - (np.add.reduceat(values, self.starts, axis=-1) / self.sizes)[..., self.stratum]


@dataclass(frozen=True)
class Fit:
    """One row a model.

    Attributes:
        slopes: [models, features].
        levels: intercept of each stratum, [models, strata].
        scale_ns: of the residuals, [models].
        trend_ns: what the columns explain, [models, rows]; 0 without columns.
        residuals: [models, rows].
        weights: Huber's, [models, rows]; 1 where a residual is not clipped, and weight x residual is the clipped one.
        r2: share of the weighted variation within strata that the model explains, [models]; NaN without variation.
        variation: the weighted variation within strata, ns^2, [models].
    """

    slopes: Floats
    levels: Floats
    scale_ns: Floats
    trend_ns: Floats
    residuals: Floats
    weights: Floats
    r2: Floats
    variation: Floats


def fit(
    y: Floats,
    x: Floats,
    strata: Strata,
    huber_k: float = HUBER_K,
    weights: Floats | None = None,
    columns: Floats | None = None,
) -> Fit:
    """Fit y = level[stratum] + slopes . x + coefficients . columns by Huber's weights.

    Parameters:
        y: [rows] or [models, rows], ns.
        x: [models, 1 or 2 features, rows]; a feature of zeros gets the slope 0. For exactness both should be
            centred within strata, and features of mean square 1.
        huber_k: residuals past so many scales count less; infinity gives least squares.
        weights: to begin with, [models, rows]; 1 if not given.
        columns: further ones of all models, such as a trend: orthonormal, and orthogonal to x and to the levels,
            [columns, rows]. Their coefficients follow the clipped residuals (Huber and Ronchetti 2009, 7.8).
    """
    columns = np.zeros((0, x.shape[2])) if columns is None else columns
    starts, sizes = strata.starts, strata.sizes
    y = np.broadcast_to(y, (len(x), len(strata.stratum)))
    out = Fit(
        slopes=np.zeros(x.shape[:2]),
        levels=np.zeros((len(x), len(starts))),
        scale_ns=np.full(len(x), LEAST_SCALE_NS),
        trend_ns=np.zeros(y.shape),
        residuals=np.zeros(y.shape),
        weights=np.ones(y.shape) if weights is None else weights.copy(),
        r2=np.zeros(len(x)),
        variation=np.zeros(len(x)),
    )
    going = np.arange(len(x))
    y_now, x_now, slopes, levels, scale, weights = y, x, out.slopes, out.levels, out.scale_ns, out.weights
    coefficients = y @ columns.T
    for iteration in range(MOST_ITERATIONS if len(x) else 0):
        before = slopes, levels, scale
        trend = coefficients @ columns
        residuals = y_now - trend
        slopes, levels = _weighted(residuals, x_now, weights, starts)
        residuals -= levels if len(sizes) == 1 else np.repeat(levels, sizes, axis=1)
        for j in range(x.shape[1]):
            residuals -= slopes[:, j, None] * x_now[:, j]
        distance = np.abs(residuals)
        if iteration < SCALE_ITERATIONS:
            scale = np.maximum(LEAST_SCALE_NS, _median(distance) / NORMAL_MAD)
        limit = np.minimum(huber_k * scale, MOST_LIMIT_NS)[:, None]
        weights = limit / np.maximum(distance, limit, out=distance)
        rests = (np.abs(slopes - before[0]).max(axis=1) * np.sqrt(y.shape[1]) <= TOLERANCE[0] * scale) & (
            np.abs(levels - before[1]) @ sizes / y.shape[1] <= TOLERANCE[1] * scale
        )
        rests &= (np.abs(scale - before[2]) <= TOLERANCE[2] * scale) & (iteration > 0)
        # A Newton step: the clipped residuals change by the share that is not clipped.
        inlier_share = np.count_nonzero(weights >= 1, axis=1) / y.shape[1]
        moved = (weights * residuals) @ columns.T / np.maximum(LEAST_HELD, inlier_share)[:, None]
        rests &= np.abs(moved).max(axis=1, initial=0.0) <= TOLERANCE[0] * scale
        if np.count_nonzero(rests) < SETTLED * len(rests) and iteration < MOST_ITERATIONS - 1:
            coefficients = coefficients + moved
            continue
        out.slopes[going], out.levels[going], out.scale_ns[going] = slopes, levels, scale
        out.trend_ns[going], out.residuals[going], out.weights[going] = trend, residuals, weights
        moves = ~rests
        if not moves.any():
            break
        going, y_now, x_now, weights = going[moves], y_now[moves], x_now[moves], weights[moves]
        slopes, levels, scale, coefficients = slopes[moves], levels[moves], scale[moves], (coefficients + moved)[moves]
    r2, variation = _r2(y - out.trend_ns, out.residuals, out.weights, strata)
    return replace(out, r2=r2, variation=variation)


def _median(values: Floats) -> Floats:
    """As np.median(values, axis=1), in half the time."""
    half = values.shape[1] // 2
    parted = np.partition(values, half, axis=1)
    if values.shape[1] % 2:
        median: Floats = parted[:, half]
    else:
        median = (parted[:, half] + parted[:, :half].max(axis=1)) / 2
    return median


def _weighted(y: Floats, x: Floats, weights: Floats, starts: Ints) -> tuple[Floats, Floats]:
    """Weighted least squares: slopes [models, features], levels [models, strata]."""
    features = x.shape[1]
    share = 1 / np.add.reduceat(weights, starts, axis=1)
    y_mean = np.add.reduceat(weights * y, starts, axis=1) * share
    weighted = [weights * x[:, j] for j in range(features)]
    means = [np.add.reduceat(column, starts, axis=1) * share for column in weighted]
    squares = np.empty((len(x), features, features))
    products = np.empty((len(x), features))
    for j in range(features):
        products[:, j] = np.einsum("mn,mn->m", weighted[j], y) - (means[j] * y_mean / share).sum(axis=1)
        for k in range(j, features):
            raw = np.einsum("mn,mn->m", weighted[j], x[:, k])
            squares[:, j, k] = squares[:, k, j] = raw - (means[j] * means[k] / share).sum(axis=1)
    slopes = solve(squares, products)
    return slopes, y_mean - sum(slopes[:, j, None] * means[j] for j in range(features))


def solve(squares: Floats, products: Floats) -> Floats:
    """Solutions of [..., n, n] systems, n = 1 or 2; a feature of zeros gets 0, a singular system NaN or infinity."""
    features = products.shape[-1]
    if features == 1:
        square = squares[..., 0]
        return np.divide(products, square, out=np.zeros(products.shape), where=square > 0)
    with np.errstate(divide="ignore", invalid="ignore"):
        a, b, c = squares[..., 0, 0], squares[..., 0, 1], squares[..., 1, 1]
        determinant = a * c - b * b
        first = (c * products[..., 0] - b * products[..., 1]) / determinant
        second = (a * products[..., 1] - b * products[..., 0]) / determinant
        return np.stack([first, second], axis=-1)


def _r2(y: Floats, residuals: Floats, weights: Floats, strata: Strata) -> tuple[Floats, Floats]:
    """Share of the variation that is explained, and the variation."""
    starts = strata.starts
    mass = np.add.reduceat(weights, starts, axis=1)
    sums = np.add.reduceat(weights * y, starts, axis=1)
    total = np.einsum("mn,mn,mn->m", weights, y, y) - (sums * sums / mass).sum(axis=1)
    left = np.einsum("mn,mn,mn->m", weights, residuals, residuals)
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.where(total > 0, 1 - left / total, np.nan), total
