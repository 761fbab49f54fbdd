"""Sums of a fit by (stratum, block of steps), and what leaving out one block after the other predicts."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np

from nvtxmoe_analysis.core.arrays import Bools, Floats, Ints
from nvtxmoe_analysis.stats.huber import Fit, Strata, solve

#: Of a feature's variation, and of what is its own beside another: less than this share without a block is rounding.
LEAST_LEFT = 1e-6


@dataclass(frozen=True)
class Tables:
    """Sums over the rows of each (stratum, block). "Held" rows are those whose residual Huber does not clip.

    Attributes:
        held: rows held, [models, strata, blocks].
        push: clipped residuals, likewise.
        sums: of each feature over held rows, [models, strata, blocks, features].
        pulls: feature x clipped residual, likewise.
        squares: feature x feature over held rows, [models, strata, blocks, features, features].
        columns: feature x further column over held rows of all strata, [models, blocks, columns, features].
    """

    held: Floats
    push: Floats
    sums: Floats
    pulls: Floats
    squares: Floats
    columns: Floats

    @property
    def turned(self) -> Tables:
        """The features in the other order."""
        other = slice(None, None, -1)
        return Tables(
            self.held,
            self.push,
            self.sums[..., other],
            self.pulls[..., other],
            self.squares[..., other, other],
            self.columns[..., other],
        )

    def scaled(self, factor: Floats) -> Tables:
        """The tables of features that are this many times as large, [models, features]."""
        by = factor[:, None, None]
        return Tables(
            self.held,
            self.push,
            self.sums * by,
            self.pulls * by,
            self.squares * (by[..., :, None] * by[..., None, :]),
            self.columns * by,
        )

    def replaced(self, models: Ints, other: Tables) -> Tables:
        """Return these tables with those of some models replaced."""
        arrays = {name: getattr(self, name).copy() for name in self.__dataclass_fields__}
        for name, values in arrays.items():
            values[models] = getattr(other, name)
        return Tables(**arrays)


def tabulate(x: Floats, strata: Strata, model: Fit, columns: Floats | None = None) -> Tables:
    """Sum by (stratum, block); parameters as of ``huber.fit``, whose result ``model`` is."""
    return _tabulate(x, strata, (model.weights >= 1).astype(np.float64), model.weights * model.residuals, columns)


def unclipped(x: Floats, strata: Strata) -> Tables:
    """Sum as if nothing were clipped and nothing left: what blocks hold of the features' variation."""
    shape = len(x), x.shape[2]
    return _tabulate(x, strata, np.ones(shape), np.zeros(shape), None)


def _tabulate(x: Floats, strata: Strata, weights: Floats, score: Floats, further: Floats | None) -> Tables:
    features = x.shape[1]
    columns = [weights * x[:, j] for j in range(features)]
    count = strata.cell_sums(weights)
    squares = np.empty((*count.shape, features, features))
    for j in range(features):
        for k in range(j, features):
            squares[..., j, k] = squares[..., k, j] = strata.cell_sums(columns[j] * x[:, k])
    return Tables(
        held=count,
        push=strata.cell_sums(score),
        sums=np.stack([strata.cell_sums(column) for column in columns], axis=-1),
        pulls=np.stack([strata.cell_sums(score * x[:, j]) for j in range(features)], axis=-1),
        squares=squares,
        columns=_with_columns(columns, strata, further),
    )


def _with_columns(features: list[Floats], strata: Strata, further: Floats | None) -> Floats:
    """Sums of feature x column by block: [models, blocks, columns, features]."""
    models = len(features[0])
    if further is None or not len(further):
        return np.zeros((models, strata.blocks, 0, len(features)))
    products = np.zeros((strata.blocks, len(features) * models, len(further)))
    stacked = np.concatenate(features)
    for block, rows_of in strata.cells:
        products[block] += stacked[:, rows_of] @ further[:, rows_of].T
    out: Floats = products.reshape(strata.blocks, len(features), models, len(further)).transpose(2, 0, 3, 1)
    return out


@dataclass(frozen=True)
class Misses:
    """Errors of prediction, each block predicted from the others.

    Attributes:
        total_ns: |y - prediction| summed by block, [models, blocks].
        rows: predicted, [blocks].
    """

    total_ns: Floats
    rows: Floats

    def part(self, models: slice | list[int]) -> Misses:
        """Of some models."""
        return Misses(self.total_ns[models], self.rows)

    @cached_property
    def mean_ns(self) -> Floats:
        """Mean absolute error, [models]; NaN where nothing could be predicted."""
        with np.errstate(divide="ignore", invalid="ignore"):
            mean: Floats = self.total_ns.sum(axis=1) / self.rows.sum()
            return mean


def leave_out(tables: Tables) -> tuple[Floats, Floats]:
    """How slopes and levels move when a block is left out: [models, blocks, features], [models, strata, blocks].

    One Newton step of Huber's estimating equations from the whole fit, its scale kept: exact where no residual
    crosses the limit of clipping, so for least squares. NaN where the others leave nothing that tells a slope.
    """
    others = tables.held.sum(axis=2, keepdims=True) - tables.held
    with np.errstate(divide="ignore"):
        share = np.where(others > 0.5, 1 / others, 0.0)
    sums = tables.sums.sum(axis=2, keepdims=True) - tables.sums
    # The strata's levels eliminated: [models, blocks, features(, features)].
    all_squares = tables.squares.sum(axis=(1, 2))
    squares = all_squares[:, None] - tables.squares.sum(axis=1)
    means = sums * share[..., None]
    squares = squares - np.einsum("msgj,msgk->mgjk", means, sums)
    pulls = np.einsum("msgj,msg->mgj", means, tables.push) - tables.pulls.sum(axis=1)
    moves = np.where(_singular(squares, all_squares[:, None])[..., None], np.nan, solve(squares, pulls))
    return moves, -share * tables.push - np.einsum("msgj,mgj->msg", means, moves)


def _singular(squares: Floats, all_squares: Floats) -> Bools:
    """Whether next to nothing is left of a feature's squares, or of the second's beside the first: [...]."""
    diagonal, of = (np.diagonal(matrix, axis1=-2, axis2=-1) for matrix in (squares, all_squares))
    gone: Bools = np.any((diagonal <= LEAST_LEFT * of) & (of > 0), axis=-1)
    if squares.shape[-1] == 2:
        both = np.prod(diagonal, axis=-1)
        gone = gone | (both - squares[..., 0, 1] ** 2 <= LEAST_LEFT * both)
    return gone


def predict(y: Floats, x: Floats, strata: Strata, model: Fit, tables: Tables) -> Misses:
    """Predict each block from the others; a row whose stratum lies in one block has no prediction.

    Further columns of the fit are taken as known.
    """
    with np.errstate(invalid="ignore", over="ignore"):
        moves, shifts = leave_out(tables)
        slopes = model.slopes[:, None] + moves
        levels = model.levels[:, :, None] + shifts
        size = np.bincount(strata.cell, minlength=strata.strata * strata.blocks).reshape(strata.strata, strata.blocks)
        known = size.sum(axis=1, keepdims=True) > size
        miss = y - model.trend_ns - strata.of_rows(levels)
        for j in range(x.shape[1]):
            miss -= strata.of_rows(np.broadcast_to(slopes[:, None, :, j], levels.shape)) * x[:, j]
        total = (strata.cell_sums(np.abs(miss)) * known).sum(axis=1)
    return Misses(total, (size * known).sum(axis=0).astype(np.float64))
