"""Means of a metric over like steps of two runs, and how much each step moves their difference.

Steps are grouped by kind and class of token numbers. Within a class the token numbers of the runs may still differ,
so the means are taken at the same number, along a slope common to both runs (analysis of covariance). Classes are
weighted by how many steps they have in both runs together: the difference of the runs is not one of their loads.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import numpy as np
import polars as pl

from nvtxmoe_analysis.compare.plan import Kind, token_class
from nvtxmoe_analysis.core.arrays import Bools, Floats, Ints

#: Parameters that a class fits per run: its mean, and half of the slope that both runs share.
FITTED = 1.5


class Means(Protocol):
    """Means of both runs over the steps of one kind, by layer; pairs are (A, B).

    Attributes:
        kind: the steps.
        value: mean times mass, float64 [layers].
        mass: weight among kinds, float64 [layers].
    """

    @property
    def kind(self) -> Kind:
        """The steps."""

    @property
    def value(self) -> tuple[Floats, Floats]:
        """Mean times mass of both runs."""

    @property
    def mass(self) -> Floats:
        """Weight among kinds."""

    def moves(self, scale: tuple[Floats, Floats]) -> tuple[Floats, Floats]:
        """Return how much each step of each run moves ``scale[1] * value[1] - scale[0] * value[0]``.

        To first order, given the numbers of tokens: float64 [steps of the run, layers].
        """
        ...


@dataclass(frozen=True)
class _Rows:
    """Rows of one run: the step and class of each, tokens relative to the class's mean, metric; all [rows]."""

    step: Ints
    group: Ints
    layer: Ints
    x: Floats
    y: Floats


@dataclass(frozen=True)
class LikeMeans:
    """Means at equal numbers of tokens; see :class:`Means`.

    Attributes:
        rows: of each run.
        weight: of each group, 0 where a run lacks it, float64 [groups]. A group is a (class, layer); group g is of
            layer g modulo the number of layers.
        slope: of the metric along tokens, float64 [groups]; ``free`` where it is estimated.
        centre: mean tokens of both runs together; ``mean_x``, ``mean_y``, ``number`` of each run, float64 [groups].
        squares: sum of squares of tokens around the means of each run, both together, float64 [groups].
    """

    kind: Kind
    value: tuple[Floats, Floats]
    mass: Floats
    rows: tuple[_Rows, _Rows]
    weight: Floats
    slope: Floats
    free: Bools
    centre: Floats
    mean_x: tuple[Floats, Floats]
    mean_y: tuple[Floats, Floats]
    number: tuple[Floats, Floats]
    squares: Floats

    def moves(self, scale: tuple[Floats, Floats]) -> tuple[Floats, Floats]:
        """See :class:`Means`."""
        layers = len(self.mass)
        of_group = np.arange(len(self.weight)) % layers
        reach = [
            (self.centre - mean) * scale_of_run[of_group] for mean, scale_of_run in zip(self.mean_x, scale, strict=True)
        ]
        with np.errstate(divide="ignore", invalid="ignore"):
            through_slope = np.where(self.free, self.weight * (reach[1] - reach[0]) / self.squares, 0.0)
        out = []
        for run, sign in ((0, -1.0), (1, 1.0)):
            rows = self.rows[run]
            g = rows.group
            off = rows.x - self.mean_x[run][g]
            residual = (rows.y - self.mean_y[run][g] - self.slope[g] * off) * _enlarged(rows, len(self.weight))[g]
            direct = sign * self.weight[g] * scale[run][rows.layer] / self.number[run][g]
            moved = np.where(self.weight[g] > 0, residual * (direct + through_slope[g] * off), 0.0)
            out.append(_by_step(rows, moved, self.kind.steps[run], layers))
        return out[0], out[1]


@dataclass(frozen=True)
class TokenMeans:
    """Sums over steps per token, times ``mass``; see :class:`Means`. ``tokens``, ``ratio`` per run, [layers]."""

    kind: Kind
    value: tuple[Floats, Floats]
    mass: Floats
    rows: tuple[_Rows, _Rows]
    tokens: tuple[Floats, Floats]
    ratio: tuple[Floats, Floats]

    def moves(self, scale: tuple[Floats, Floats]) -> tuple[Floats, Floats]:
        """See :class:`Means`. A step with many tokens moves the ratio through them too."""
        out = []
        for run, sign in ((0, -1.0), (1, 1.0)):
            rows = self.rows[run]
            layer = rows.layer
            residual = rows.y - self.ratio[run][layer] * rows.x
            moved = sign * (scale[run] * self.mass)[layer] * residual / self.tokens[run][layer]
            out.append(_by_step(rows, moved, self.kind.steps[run], len(self.mass)))
        return out[0], out[1]


def like_means(kind: Kind, cells: tuple[pl.DataFrame, pl.DataFrame], layers: int) -> LikeMeans:
    """Means over like steps of one kind.

    Parameters:
        cells: of each run ``step``, ``num_tokens``, ``layer`` (0 to ``layers`` - 1) and ``y``, of this kind.
    """
    rows = _like_rows(kind, cells[0], 0, layers), _like_rows(kind, cells[1], 1, layers)
    groups = max(1, len(kind.classes)) * layers
    number, x, y = ([_summed(rows_of_run, what, groups) for rows_of_run in rows] for what in ("one", "x", "y"))
    both = (number[0] > 0) & (number[1] > 0)
    weight = np.where(both, number[0] + number[1], 0.0)
    with np.errstate(divide="ignore", invalid="ignore"):
        mean_x = [a / n for a, n in zip(x, number, strict=True)]
        mean_y = [a / n for a, n in zip(y, number, strict=True)]
        # Sums of squares within each run, so that a difference of the runs is no slope.
        squares, products = np.zeros(groups), np.zeros(groups)
        for rows_of_run, mean in zip(rows, mean_x, strict=True):
            off = rows_of_run.x - mean[rows_of_run.group]
            squares += np.bincount(rows_of_run.group, off * off, groups)
            products += np.bincount(rows_of_run.group, off * rows_of_run.y, groups)
        total = number[0] + number[1]
        centre, level = (x[0] + x[1]) / total, np.abs((y[0] + y[1]) / total)
        fitted = np.where(squares > 1e-9 * total, products / squares, 0.0)
        # A metric of a step neither falls nor rises faster than in proportion to its tokens.
        slope = np.clip(fitted, -level, level)
        means = [my + slope * (centre - mx) for mx, my in zip(mean_x, mean_y, strict=True)]
    shape = (-1, layers)
    values = [np.where(both, mean * weight, 0.0).reshape(shape).sum(axis=0) for mean in means]
    return LikeMeans(
        kind=kind,
        value=(values[0], values[1]),
        mass=weight.reshape(shape).sum(axis=0),
        rows=rows,
        weight=weight,
        slope=slope,
        free=(slope == fitted) & (squares > 1e-9 * total),
        centre=centre,
        mean_x=(mean_x[0], mean_x[1]),
        mean_y=(mean_y[0], mean_y[1]),
        number=(number[0], number[1]),
        squares=squares,
    )


def token_means(kind: Kind, cells: tuple[pl.DataFrame, pl.DataFrame], layers: int) -> TokenMeans:
    """The sum over all steps of the kind per token. Kinds weigh as their tokens in both runs together."""
    rows = _token_rows(kind, cells[0], 0), _token_rows(kind, cells[1], 1)
    mass = np.full(layers, float(sum(kind.tokens)))
    tokens = [np.bincount(rows_of_run.layer, rows_of_run.x, layers).astype(np.float64) for rows_of_run in rows]
    with np.errstate(divide="ignore", invalid="ignore"):
        ratio = [
            np.bincount(rows_of_run.layer, rows_of_run.y, layers) / n
            for rows_of_run, n in zip(rows, tokens, strict=True)
        ]
    return TokenMeans(
        kind=kind,
        value=(mass * ratio[0], mass * ratio[1]),
        mass=mass,
        rows=rows,
        tokens=(tokens[0], tokens[1]),
        ratio=(ratio[0], ratio[1]),
    )


def _like_rows(kind: Kind, cells: pl.DataFrame, run: int, layers: int) -> _Rows:
    """Rows in compared classes; tokens are relative to the class's mean number."""
    numbers = {name: i for i, name in enumerate(kind.classes)}
    frame = cells.with_columns(token_class()).filter(pl.col("token_class").is_in(list(numbers)))
    place = frame["token_class"].replace_strict(numbers, return_dtype=pl.Int64).to_numpy() if numbers else _NONE
    layer = frame["layer"].to_numpy()
    middle = np.array(list(kind.classes.values()))[place]
    x = frame["num_tokens"].to_numpy() / middle - 1.0
    y = frame["y"].to_numpy().astype(np.float64)
    return _Rows(_steps(kind, frame, run), place * layers + layer, layer, x, y)


def _token_rows(kind: Kind, cells: pl.DataFrame, run: int) -> _Rows:
    layer = cells["layer"].to_numpy()
    x, y = (cells[name].to_numpy().astype(np.float64) for name in ("num_tokens", "y"))
    return _Rows(_steps(kind, cells, run), layer, layer, x, y)


_NONE = np.zeros(0, dtype=np.int64)


def _steps(kind: Kind, cells: pl.DataFrame, run: int) -> Ints:
    """The place of each row's step among the kind's steps."""
    return np.searchsorted(kind.numbers[run], cells["step"].to_numpy())


def _summed(rows: _Rows, what: str, groups: int) -> Floats:
    weights = None if what == "one" else getattr(rows, what)
    return np.bincount(rows.group, weights, groups).astype(np.float64)


def _enlarged(rows: _Rows, groups: int) -> Floats:
    """Factor by which residuals are too small because their group's mean and slope were fitted, [groups]."""
    width = int(rows.step.max(initial=0)) + 1
    steps = np.bincount(np.unique(rows.group * width + rows.step) // width, minlength=groups)
    factor: Floats = np.sqrt(steps / np.maximum(steps - FITTED, 1.0))
    return factor


def _by_step(rows: _Rows, moved: Floats, steps: int, layers: int) -> Floats:
    flat: Floats = np.bincount(rows.step * layers + rows.layer, moved, steps * layers).astype(np.float64)
    return flat.reshape(steps, layers)
