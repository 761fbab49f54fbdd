"""Slopes of a sample's features, one at a time or beside another, with intervals and errors of prediction."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache

import numpy as np

from nvtxmoe_analysis.core.arrays import Bools, Floats, Ints
from nvtxmoe_analysis.metrics.layer_model.samples import Designed, Sample
from nvtxmoe_analysis.stats.block_sums import Misses, Tables, predict, tabulate
from nvtxmoe_analysis.stats.cluster_errors import Errors, slope_errors
from nvtxmoe_analysis.stats.huber import Fit, fit
from nvtxmoe_analysis.stats.student_t import p_value, quantile

CONFIDENCE = 0.95
#: With fewer degrees of freedom an interval holds, but says next to nothing.
MIN_DF = 2.0
#: From this correlation on two features are not fitted together: their slopes would balance each other.
MOST_CORRELATED = 0.95
#: Of samples that are fitted at once: more would not stay in the processor's cache.
BATCH_ROWS = 8_000


@dataclass(frozen=True)
class Estimates:
    """One row a model. Slopes are of the model's last feature, ns per the feature's own unit.

    Attributes:
        features: numbers in samples.FEATURES, [models].
        slope, error, df: with standard error and degrees of freedom of Student's t, [models].
        low, high: the interval, [models]; NaN until ``infer``.
        p_value: that the slope is 0, two-sided, [models]; NaN until ``infer``, and where ``too_few``.
        largest: share of one block in the feature's variation, [models].
        intercept: at 0 of the features, mean of the strata's as rows weigh, ns, [models].
        r2: see ``robust.Fit``, [models].
        misses: of prediction.
    """

    features: Ints
    slope: Floats
    error: Floats
    df: Floats
    low: Floats
    high: Floats
    p_value: Floats
    largest: Floats
    intercept: Floats
    r2: Floats
    misses: Misses

    @property
    def too_few(self) -> Bools:
        """Whether the feature's variation lies in too few blocks, [models]."""
        few: Bools = ~(self.df >= MIN_DF)
        return few

    def part(self, models: slice) -> Estimates:
        """Of some models."""
        arrays = {name: getattr(self, name)[models] for name in self.__dataclass_fields__ if name != "misses"}
        return Estimates(**arrays, misses=self.misses.part(models))


@dataclass(frozen=True)
class Alone:
    """Each tested feature in a model of its own.

    Attributes:
        constant: misses of the strata's levels alone.
        level: typical time, ns.
        weights: Huber's of each model, [tested, rows].
    """

    single: Estimates
    constant: Misses
    level: float
    weights: Floats


@dataclass(frozen=True)
class Beside:
    """Each other tested feature beside the best one, but those that move with it: its slope, and the best one's."""

    second: Estimates
    first: Estimates


def batches(samples: Sequence[Sample]) -> list[list[int]]:
    """Positions of samples that are fitted at once: neighbours with the same strata, as layers of a model have."""
    out: list[list[int]] = []
    for at, sample in enumerate(samples):
        begun = samples[out[-1][0]] if out else None
        full = len(out[-1]) * sample.rows >= BATCH_ROWS if out else True
        if begun is None or full or not begun.strata.same(sample.strata):
            out.append([])
        out[-1].append(at)
    return out


def alone(samples: Sequence[Sample], designs: Sequence[Designed]) -> list[Alone]:
    """Fit each tested feature of samples of one batch by itself, and the levels alone."""
    fitted = _fit(
        samples, [np.concatenate([np.zeros((1, 1, s.rows)), d.x[:, None]]) for s, d in _both(samples, designs)]
    )
    out = []
    for (sample, designed), models in zip(_both(samples, designs), fitted.parts, strict=True):
        found = _described(sample, designed, np.arange(-1, len(designed.x))[:, None], fitted, models)
        weights = fitted.model.weights[models]
        out.append(
            Alone(found.part(slice(1, None)), found.misses.part(slice(1)), float(found.intercept[0]), weights[1:])
        )
    return out


def beside(
    samples: Sequence[Sample], designs: Sequence[Designed], bests: Sequence[int], weights: Sequence[Floats]
) -> list[Beside]:
    """Fit each other tested feature of samples of one batch beside one.

    Parameters:
        bests: position of that one in each ``designed.tested``.
        weights: Huber's of its own model, to begin with, [rows] each.
    """
    positions, xs = [], []
    for (sample, designed), best in zip(_both(samples, designs), bests, strict=True):
        near = np.abs(designed.correlation[best]) >= MOST_CORRELATED
        others = [at for at in range(len(designed.tested)) if at != best and not near[at]]
        positions.append(np.array([(best, at) for at in others], dtype=np.int64).reshape(-1, 2))
        leading = np.broadcast_to(designed.x[best], (len(others), sample.rows))
        xs.append(np.stack([leading, designed.x[others]], axis=1))
    begin = np.concatenate([np.broadcast_to(w, (len(x), len(w))) for w, x in zip(weights, xs, strict=True)])
    fitted = _fit(samples, xs, begin)
    turned = fitted.turned
    return [
        Beside(
            _described(sample, designed, position, fitted, models),
            _described(sample, designed, position[:, ::-1], turned, models),
        )
        for (sample, designed), position, models in zip(_both(samples, designs), positions, fitted.parts, strict=True)
    ]


def _both(samples: Sequence[Sample], designs: Sequence[Designed]) -> Iterable[tuple[Sample, Designed]]:
    return zip(samples, designs, strict=True)


@dataclass(frozen=True)
class _Fitted:
    """Models of a batch; ``parts``: which are of each sample."""

    model: Fit
    slopes: Floats
    tables: Tables
    errors: Errors
    misses: Misses
    parts: list[slice]

    @property
    def turned(self) -> _Fitted:
        """With the features in the other order."""
        errors = slope_errors(self.tables.turned)
        return replace(self, slopes=self.slopes[:, ::-1], errors=errors)


def _fit(samples: Sequence[Sample], xs: Sequence[Floats], weights: Floats | None = None) -> _Fitted:
    strata = samples[0].strata
    counts = [len(x) for x in xs]
    x = np.concatenate(xs)
    y = np.repeat(strata.centred(np.stack([sample.y for sample in samples])), counts, axis=0)
    model = fit(y, x, strata, weights=weights)
    tables = tabulate(x, strata, model)
    ends = np.cumsum(counts).tolist()
    parts = [slice(end - count, end) for end, count in zip(ends, counts, strict=True)]
    return _Fitted(model, model.slopes, tables, slope_errors(tables), predict(y, x, strata, model, tables), parts)


def _described(sample: Sample, designed: Designed, positions: Ints, fitted: _Fitted, models: slice) -> Estimates:
    """In the features' units. ``positions``: of each model's features in ``designed``; -1 is no feature."""
    scale = np.append(designed.scale, 1.0)[positions]
    number = np.append(designed.tested, -1)[positions]
    slopes = fitted.slopes[models] / scale
    weights = fitted.model.weights[models]
    share = weights / weights.sum(axis=1, keepdims=True)
    mean = np.take_along_axis(share @ sample.values.T, number, axis=1)
    unknown = np.full(len(slopes), np.nan)
    return Estimates(
        features=number[:, -1],
        slope=slopes[:, -1],
        error=fitted.errors.error[models] / scale[:, -1],
        df=fitted.errors.df[models],
        low=unknown,
        high=unknown,
        p_value=unknown,
        largest=fitted.errors.largest[models],
        intercept=share @ sample.y - np.where(number >= 0, slopes * mean, 0.0).sum(axis=1),
        r2=fitted.model.r2[models],
        misses=fitted.misses.part(models),
    )


def infer(estimates: Sequence[Estimates]) -> list[Estimates]:
    """With intervals and p-values, computed for all at once."""
    if not estimates:
        return []
    ends = np.cumsum([len(one.slope) for one in estimates])[:-1]
    slope, error, df = (np.concatenate([getattr(one, name) for one in estimates]) for name in ("slope", "error", "df"))
    few = ~(df >= MIN_DF)
    df = np.where(few, MIN_DF, df)
    with np.errstate(divide="ignore", invalid="ignore"):
        chance = p_value(np.where(slope == 0, 0.0, slope / error), df)
    half = quantile(CONFIDENCE, df) * error
    parts = (np.split(values, ends) for values in (slope - half, slope + half, np.where(few, np.nan, chance)))
    return [replace(one, low=low, high=high, p_value=p) for one, low, high, p in zip(estimates, *parts, strict=True)]


def worse(one: Floats, other: Floats, rows: Floats) -> bool:
    """Whether the misses of one model are more than another's, beyond what blocks differ by.

    Paired by block: the 95 % interval of the difference of mean absolute errors lies above 0, by Student's t.

    Parameters:
        one, other: misses summed by block, [blocks].
        rows: predicted, [blocks].
    """
    used = rows > 0
    blocks = int(used.sum())
    if blocks < 2:
        return False
    apart = (one - other)[used]
    mean = apart.sum() / rows[used].sum()
    spread = apart - mean * rows[used]
    error = np.sqrt(blocks / (blocks - 1) * (spread * spread).sum()) / rows[used].sum()
    return bool(mean > _quantile(blocks - 1) * error)


@lru_cache
def _quantile(df: int) -> float:
    return float(quantile(CONFIDENCE, df))
