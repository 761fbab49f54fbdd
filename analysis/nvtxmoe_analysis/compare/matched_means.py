"""The mean of a figure over like steps of two runs.

Steps are grouped by kind and class of token numbers. Within a class the token numbers of the runs may still differ,
so the means are taken at the same number, along a slope common to both runs (analysis of covariance). Classes are
weighted by how many steps they have in both runs together: the difference of the runs is not one of their loads.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import polars as pl

from nvtxmoe_analysis.compare.plan import Kind, token_class
from nvtxmoe_analysis.core.arrays import Floats

#: Sums that are kept of each class and layer: rows, x, x^2, y, xy.
ROWS, X, XX, Y, XY = range(5)
#: Numbers worked on at a time.
CHUNK = 1 << 24


@dataclass(frozen=True)
class Mean:
    """Sums from which means are made, by layer: float64 [..., layers], the pair being (A, B).

    A kind's mean is ``value / mass``; a mean over kinds is the sum of values over the sum of masses.
    """

    value: tuple[Floats, Floats]
    mass: Floats


def like_means(kind: Kind, cells: tuple[pl.DataFrame, pl.DataFrame], layers: int) -> tuple[Mean, Mean]:
    """The mean over like steps of one kind: of what was measured, and in every resample.

    Parameters:
        cells: of each run ``step``, ``num_tokens``, ``layer`` (0 to ``layers`` - 1) and ``y``, of this kind.
    """
    sums = [_by_class(kind, frame, block, layers) for frame, block in zip(cells, kind.block, strict=True)]
    weight = sum((one[:, ROWS].sum(axis=0) for one in sums), np.zeros(sums[0].shape[2:]))
    whole = _means(sums[0].sum(axis=0), sums[1].sum(axis=0), weight)
    drawn = [_means(a, b, weight) for a, b in _resampled(kind, sums)]
    joined = [np.concatenate([part[i] for part in drawn]) for i in range(3)]
    return Mean(whole[:2], whole[2]), Mean((joined[0], joined[1]), joined[2])


def token_means(kind: Kind, cells: tuple[pl.DataFrame, pl.DataFrame], layers: int) -> tuple[Mean, Mean]:
    """The same of the sum over all steps of the kind, a token. Kinds weigh as their tokens in both runs together."""
    sums = [_per_token(frame, block, layers) for frame, block in zip(cells, kind.block, strict=True)]
    mass = np.full(layers, float(sum(kind.tokens)))
    with np.errstate(divide="ignore", invalid="ignore"):
        whole = [mass * one[:, 1].sum(axis=0) / one[:, 0].sum(axis=0) for one in sums]
        drawn = []
        for weights, one in zip(kind.weights, sums, strict=True):
            again = np.tensordot(weights, one, axes=(1, 0))
            drawn.append(mass * again[:, 1] / again[:, 0])
    return Mean((whole[0], whole[1]), mass), Mean((drawn[0], drawn[1]), np.broadcast_to(mass, drawn[0].shape))


def _resampled(kind: Kind, sums: Sequence[Floats]) -> list[tuple[Floats, Floats]]:
    number = len(kind.weights[0])
    size = max(1, CHUNK // max(1, sums[0][0].size))
    return [
        (
            np.tensordot(kind.weights[0][at : at + size], sums[0], axes=(1, 0)),
            np.tensordot(kind.weights[1][at : at + size], sums[1], axes=(1, 0)),
        )
        for at in range(0, number, size)
    ]


def _by_class(kind: Kind, cells: pl.DataFrame, block: pl.DataFrame, layers: int) -> Floats:
    """float64 [blocks, 5, classes, layers]; x is relative to the class's mean number of tokens."""
    numbers = {name: i for i, name in enumerate(kind.classes)}
    frame = (
        cells.with_columns(token_class())
        .filter(pl.col("token_class").is_in(list(numbers)))
        .join(block, on="step", how="inner")
    )
    blocks = int(block["block"].max()) + 1  # type: ignore[arg-type]
    shape = (blocks, len(numbers), layers)
    at = frame["token_class"].replace_strict(numbers, return_dtype=pl.Int64).to_numpy() if numbers else np.zeros(0, int)
    place = (frame["block"].to_numpy() * len(numbers) + at) * layers + frame["layer"].to_numpy()
    middle = np.array(list(kind.classes.values()))[at]
    x = frame["num_tokens"].to_numpy() / middle - 1.0
    y = frame["y"].to_numpy().astype(np.float64)
    size = int(np.prod(shape))
    summed = [np.bincount(place, part, minlength=size).reshape(shape) for part in (np.ones_like(x), x, x * x, y, x * y)]
    return np.stack(summed, axis=1)


def _per_token(cells: pl.DataFrame, block: pl.DataFrame, layers: int) -> Floats:
    """float64 [blocks, 2, layers]: tokens, y."""
    frame = cells.join(block, on="step", how="inner")
    blocks = int(block["block"].max()) + 1  # type: ignore[arg-type]
    place = frame["block"].to_numpy() * layers + frame["layer"].to_numpy()
    parts = [frame[name].to_numpy().astype(np.float64) for name in ("num_tokens", "y")]
    return np.stack(
        [np.bincount(place, part, minlength=blocks * layers).reshape(blocks, layers) for part in parts], axis=1
    )


def _means(a: Floats, b: Floats, weight: Floats) -> tuple[Floats, Floats, Floats]:
    """Sums over classes of weight x mean of each run, and of the weights: float64 [..., layers].

    Parameters:
        a, b: float64 [..., 5, classes, layers].
        weight: float64 [classes, layers].
    """
    one, other = np.moveaxis(a, -3, 0), np.moveaxis(b, -3, 0)
    with np.errstate(divide="ignore", invalid="ignore"):
        # Sums of squares within each run, so that a difference of the runs is no slope.
        squares = sum(s[XX] - s[X] ** 2 / s[ROWS] for s in (one, other))
        products = sum(s[XY] - s[X] * s[Y] / s[ROWS] for s in (one, other))
        rows = one[ROWS] + other[ROWS]
        middle, level = (one[X] + other[X]) / rows, (one[Y] + other[Y]) / rows
        slope = np.where(squares > 1e-9 * rows, products / squares, 0.0)
        # A figure of a step neither falls nor rises faster than in proportion to its tokens.
        slope = np.clip(slope, -np.abs(level), np.abs(level))
        means = [s[Y] / s[ROWS] + slope * (middle - s[X] / s[ROWS]) for s in (one, other)]
    both = (one[ROWS] > 0) & (other[ROWS] > 0)
    weight = np.where(both, weight, 0.0)
    values = [np.where(both, mean * weight, 0.0).sum(axis=-2) for mean in means]
    return values[0], values[1], weight.sum(axis=-2)
