"""What the experts' matrix products cost: a fixed part, a part per active expert, a part per row of the tiles.

    time = fixed + per_expert x active experts + per_row x rows of all tiles, none of them below 0

It is fitted per kind of step to the cells of layers whose experts have the same size, by least squares with Huber's
weights. A part that would be below 0 is left out. Errors are cluster-robust: clusters are blocks of consecutive steps
(K.-Y. Liang and S. Zeger, "Longitudinal data analysis using generalized linear models", Biometrika 73, 1986), with
blocks - 1 degrees of freedom.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import combinations

import numpy as np

from nvtxmoe_analysis.core.arrays import Bools, Floats, Ints
from nvtxmoe_analysis.stats.huber import HUBER_K, NORMAL_MAD
from nvtxmoe_analysis.stats.student_t import quantile

#: Parts of the model in the order of its coefficients.
FIXED, PER_EXPERT, PER_ROW = range(3)
PARTS = 3
LEAST_ROWS, LEAST_STEPS, MOST_BLOCKS = 12, 6, 20
#: Rows that are fitted at most; of more, some steps.
MOST_ROWS = 200_000
TURNS = 200
#: Largest relative change of values with which the fit has settled.
SETTLED = 1e-10
#: Digits of values and intervals: further ones depend on the processor's order of summation.
DIGITS = 6
#: Rows of tiles whose variation the active experts explain but for so little are not told apart from them.
LEAST_OWN_VARIATION = 0.02
CONFIDENCE = 0.95


@dataclass(frozen=True)
class MatmulModel:
    """A fitted model.

    Attributes:
        values: ns, [PARTS]; 0 of a part that was left out.
        covariance: of the values, [PARTS, PARTS].
        t: Student's t of the confidence interval.
        told_apart: whether rows of tiles vary apart from active experts, so that the cost of padding is known.
        rows: number of (rank, step, layer) fitted.
    """

    values: Floats
    covariance: Floats
    t: float
    told_apart: bool
    rows: int

    def half_width(self, sums: Floats) -> Floats:
        """Return half of the confidence interval of ``sums @ values``: sums [..., PARTS] to [...]."""
        variance = np.einsum("...i,ij,...j->...", sums, self.covariance, sums)
        return rounded(self.t * np.sqrt(np.maximum(variance, 0.0)))


def fit(time_ns: Ints, experts: Ints, tile_rows: Ints | None, step: Ints) -> MatmulModel | str:
    """Return the model, or why there is none.

    Parameters:
        time_ns: of the matrix products, [cells]; experts: active ones; tile_rows: None where unknown; step: its number.
    """
    steps = np.unique(step)
    if len(time_ns) < LEAST_ROWS or len(steps) < LEAST_STEPS:
        return f"{len(time_ns)} (rank, step, layer) of {len(steps)} steps, {LEAST_ROWS} of {LEAST_STEPS} are needed"
    every = -(-len(time_ns) // MOST_ROWS)
    if every > 1:
        sampled = np.isin(step, steps[::every])
        time_ns, experts, step = time_ns[sampled], experts[sampled], step[sampled]
        tile_rows = None if tile_rows is None else tile_rows[sampled]
        steps = np.unique(step)
    rows = np.zeros(len(experts)) if tile_rows is None else tile_rows
    design = np.column_stack([np.ones(len(experts)), experts, rows]).astype(np.float64)
    with_rows = tile_rows is not None and _varies_apart(design)
    y = time_ns.astype(np.float64)
    values, used, weight = _robust(design, y, with_rows=with_rows)
    blocks = min(MOST_BLOCKS, len(steps))
    block = np.searchsorted(steps, step) * blocks // len(steps)
    covariance = _covariance(design, weight, y - design @ values, block, used)
    values = rounded(values)
    t = float(quantile(CONFIDENCE, np.array([blocks - 1.0]))[0])
    return MatmulModel(values, covariance, t, with_rows, len(time_ns))


def _varies_apart(design: Floats) -> bool:
    """Return whether rows of tiles vary apart from active experts."""
    rows = design[:, PER_ROW] - design[:, PER_ROW].mean()
    rows_square = float(rows @ rows)
    if rows_square == 0:
        return False
    other = design[:, :PER_ROW]
    left = rows - other @ np.linalg.lstsq(other, rows, rcond=None)[0]
    return float(left @ left) > LEAST_OWN_VARIATION * rows_square


def _robust(design: Floats, y: Floats, *, with_rows: bool) -> tuple[Floats, Bools, Floats]:
    """Return values (none below 0), which parts are used, and the rows' weights."""
    weight = np.ones(len(y))
    values, used = np.zeros(PARTS), np.zeros(PARTS, dtype=np.bool_)
    scale_of_part = np.maximum(np.abs(design).max(axis=0), 1.0)
    scaled = design / scale_of_part
    for _ in range(TURNS):
        before = values
        scaled_values, used = _not_negative(scaled, y, weight, PARTS if with_rows else PER_ROW)
        values = scaled_values / scale_of_part
        if np.all(np.abs(values - before) <= SETTLED * np.abs(before)):
            break
        residuals = np.abs(y - design @ values)
        scale = max(1.0, float(np.median(residuals)) / NORMAL_MAD)
        weight = np.minimum(1.0, HUBER_K * scale / np.maximum(residuals, 1e-9))
    return values, used, weight


def _not_negative(design: Floats, y: Floats, weight: Floats, parts: int) -> tuple[Floats, Bools]:
    """Return the least squares with no value below 0: of all sets of parts the best one that keeps to it.

    No set is better than all parts, so the others are tried only if these do not keep to it.
    """
    weighted = (design * weight[:, None]).T
    products, with_y = weighted @ design, weighted @ y
    best, coefficients, used = 0.0, np.zeros(PARTS), np.zeros(PARTS, dtype=np.bool_)
    whole = _solution(products, with_y, list(range(parts)))
    if whole is not None and (whole > 0).all():
        coefficients[:parts], used[:parts] = whole, True
        return coefficients, used
    for size in range(1, parts + 1):
        for parts_of_fit in combinations(range(parts), size):
            at = list(parts_of_fit)
            values = _solution(products, with_y, at)
            if values is None:
                continue
            gain = float(values @ with_y[at])  # what the squares fall by
            if (values >= 0).all() and gain > best * (1 + 1e-12):
                best, coefficients, used = gain, np.zeros(PARTS), np.zeros(PARTS, dtype=np.bool_)
                coefficients[at], used[at] = values, True
    return coefficients, used


def _solution(products: Floats, with_y: Floats, at: list[int]) -> Floats | None:
    """Return the least squares of some parts; None if they cannot be told apart."""
    inner = products[np.ix_(at, at)]
    if not np.linalg.eigvalsh(inner)[0] > 1e-9 * np.trace(inner):  # the smallest
        return None
    return np.linalg.solve(inner, with_y[at]).astype(np.float64)


def _covariance(design: Floats, weight: Floats, residual: Floats, block: Ints, used: Bools) -> Floats:
    """Return the cluster-robust covariance of the values; 0 of parts that are not used.

    It is the sandwich of an M-estimator (Huber and Ronchetti, "Robust Statistics", 2009, 7.6): the rows that are not
    clipped, and the clipped residuals.
    """
    at = np.flatnonzero(used)
    covariance = np.zeros((PARTS, PARTS))
    if not len(at):
        return covariance
    columns = design[:, at]
    inliers = weight >= 1.0
    scale = np.maximum(np.abs(columns).max(axis=0), 1.0)
    columns = columns / scale
    bread = np.linalg.pinv((columns * inliers[:, None]).T @ columns, hermitian=True)
    blocks = int(block.max()) + 1
    scores = np.zeros((blocks, len(at)))
    np.add.at(scores, block, columns * (weight * residual)[:, None])
    rows = len(design)
    few = blocks / max(1, blocks - 1) * (rows - 1) / max(1, rows - len(at))
    covariance[np.ix_(at, at)] = few * bread @ (scores.T @ scores) @ bread / np.outer(scale, scale)
    return covariance


def rounded(values: Floats) -> Floats:
    """Return values with DIGITS digits."""
    with np.errstate(divide="ignore"):
        place = DIGITS - 1 - np.floor(np.log10(np.abs(values)))
    scale = 10.0 ** np.where(np.isfinite(place), place, 0.0)
    values_rounded: Floats = np.round(values * scale) / scale
    return values_rounded
