"""Slopes of a sample's features, one at a time or beside another, with intervals and errors of prediction."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache

import numpy as np

from nvtxmoe_analysis.core.arrays import Bools, Floats, Ints
from nvtxmoe_analysis.metrics.layer_model.curves import curve
from nvtxmoe_analysis.metrics.layer_model.design import Designed
from nvtxmoe_analysis.metrics.layer_model.samples import Sample
from nvtxmoe_analysis.stats.block_sums import Misses, Tables, predict, tabulate
from nvtxmoe_analysis.stats.cluster_errors import Errors, degrees_of_freedom, root_of_squares, slope_errors
from nvtxmoe_analysis.stats.huber import Fit, fit
from nvtxmoe_analysis.stats.student_t import p_value, quantile
from nvtxmoe_analysis.stats.trend import joined, without
from nvtxmoe_analysis.stats.whitened_fit import whitened

CONFIDENCE = 0.95
#: With fewer degrees of freedom an interval holds, but says next to nothing.
MIN_DF = 2.0
#: From this correlation on two features are not fitted together: their slopes would balance each other.
MOST_CORRELATED = 0.95
#: Of a second feature's variation: with less of its own beside a curve in the first it moves with that.
LEAST_OWN = 0.05
#: So many rows are left beside levels, trend and curve, or no second feature is looked for.
MIN_FREE = 5
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
        r2, variation: see ``huber.Fit``, [models].
        pull, form: of blocks, see ``cluster_errors.Errors``, in the feature's own unit.
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
    variation: Floats
    pull: Floats
    form: Floats
    misses: Misses

    @property
    def too_few(self) -> Bools:
        """Whether the feature's variation lies in too few blocks, [models]."""
        few: Bools = ~(self.df >= MIN_DF)
        return few

    def part(self, models: slice | list[int]) -> Estimates:
        """Of some models."""
        arrays = {name: getattr(self, name)[models] for name in self.__dataclass_fields__ if name != "misses"}
        return Estimates(**arrays, misses=self.misses.part(models))


@dataclass(frozen=True)
class Alone:
    """Each tested feature in a model of its own.

    Attributes:
        constant: misses of the strata's levels alone.
        level: typical time, ns.
        weights: Huber's of each model, [tested, rows], of each layer that was fitted.
        rows: how many.
    """

    single: Estimates
    constant: Misses
    level: float
    weights: list[Floats]
    rows: int


@dataclass(frozen=True)
class Beside:
    """Each other tested feature beside the best one, but those that move with it.

    Attributes:
        second: its slope, with a curve in the best one and the stairs of padded batches held fixed; what is
            predicted, and R2, are of the straight lines of both.
        first: the best one's slope beside it, as straight lines.
    """

    second: Estimates
    first: Estimates

    def only(self, features: Collection[int]) -> Beside:
        """Of some of the second features."""
        at = [at for at, feature in enumerate(self.second.features.tolist()) if feature in features]
        return Beside(self.second.part(at), self.first.part(at))


def batches(samples: Sequence[Sample]) -> list[list[int]]:
    """Positions of samples that are fitted at once: neighbours with the same strata, as layers of a model have."""
    out: list[list[int]] = []
    for at, sample in enumerate(samples):
        first_sample = samples[out[-1][0]] if out else None
        pooled = sample.layers is not None or (first_sample is not None and first_sample.layers is not None)
        full = pooled or len(out[-1]) * sample.rows >= BATCH_ROWS if out else True
        if first_sample is None or full or not first_sample.strata.same(sample.strata):
            out.append([])
        out[-1].append(at)
    return out


def alone(samples: Sequence[Sample], designs: Sequence[Designed]) -> list[Alone]:
    """Fit each tested feature of samples of one batch by itself, and the levels alone."""
    if designs and designs[0].parts:
        return [_of_layers(_parts_alone(sample, designed)) for sample, designed in _both(samples, designs)]
    xs = [np.concatenate([np.zeros((1, 1, s.rows)), d.x[:, None]]) for s, d in _both(samples, designs)]
    fitted = _fit(samples, xs, samples[0].trend)
    out = []
    for (sample, designed), models in zip(_both(samples, designs), fitted.parts, strict=True):
        estimates = _described(sample, designed, np.arange(-1, len(designed.x))[:, None], fitted, models)
        weights = fitted.model.weights[models]
        level = float(estimates.intercept[0])
        out.append(
            Alone(estimates.part(slice(1, None)), estimates.misses.part(slice(1)), level, [weights[1:]], sample.rows)
        )
    return out


def _parts_alone(sample: Sample, designed: Designed) -> Iterable[Alone]:
    """Fit the layers of a sample of all of them."""
    for batch in batches(sample.parts):
        yield from alone([sample.parts[at] for at in batch], [designed.parts[at] for at in batch])


def beside(
    samples: Sequence[Sample], designs: Sequence[Designed], bests: Sequence[int], alones: Sequence[Alone]
) -> list[Beside]:
    """Fit each other tested feature of samples of one batch beside one.

    Parameters:
        bests: position of that one in each ``designed.tested``.
        alones: of each sample what :func:`alone` gave.
    """
    if designs and designs[0].parts:
        return [_beside_in_layers(*arguments) for arguments in zip(samples, designs, bests, alones, strict=True)]
    return _two_term_fits(
        samples, designs, bests, alones, [_features_apart(d, best) for d, best in zip(designs, bests, strict=True)]
    )


def _features_apart(designed: Designed, best: int) -> list[int]:
    """Positions of the features that do not move with the best one."""
    near = np.abs(designed.correlation[best]) >= MOST_CORRELATED
    return [at for at in range(len(designed.tested)) if at != best and not near[at]]


def _beside_in_layers(sample: Sample, designed: Designed, best: int, single: Alone) -> Beside:
    """The mean over layers of what each one's second features add."""
    others = _features_apart(designed, best)
    pairs = []
    for part, layer_design, weights in zip(sample.parts, designed.parts, single.weights, strict=True):
        alone = Alone(single.single, single.constant, single.level, [weights], part.rows)
        pairs.append(_two_term_fits([part], [layer_design], [best], [alone], [others])[0])
    features = set.intersection(*(set(pair.second.features.tolist()) for pair in pairs))
    pairs = [pair.only(features) for pair in pairs]
    rows = [part.rows for part in sample.parts]
    return Beside(_mean([pair.second for pair in pairs], rows), _mean([pair.first for pair in pairs], rows))


def _two_term_fits(
    samples: Sequence[Sample],
    designs: Sequence[Designed],
    bests: Sequence[int],
    alones: Sequence[Alone],
    others: Sequence[list[int]],
) -> list[Beside]:
    """Of each other feature: its slope beside a curve in the best one, and what the two together predict."""
    positions, xs, begin, bent = [], [], [], []
    for sample, designed, best, single, second_at in zip(samples, designs, bests, alones, others, strict=True):
        columns = joined(sample.trend, curve(sample, sample.values[designed.tested[best]]), sample.strata)
        second_features = without(designed.x[second_at], columns, sample.strata)
        share = np.einsum("fn,fn->f", second_features, second_features) / sample.rows
        kept_at = np.flatnonzero(share >= LEAST_OWN).tolist() if len(columns) + 2 * MIN_FREE < sample.rows else []
        seconds = [second_at[at] for at in kept_at]
        positions.append(np.array([(best, at) for at in seconds], dtype=np.int64).reshape(-1, 2))
        leading = np.broadcast_to(designed.x[best], (len(seconds), sample.rows))
        xs.append(np.stack([leading, designed.x[seconds]], axis=1))
        begin.append(np.broadcast_to(single.weights[0][best], (len(seconds), sample.rows)))
        bent.append(_fit([sample], [second_features[kept_at][:, None]], columns, begin[-1]))
    joint = _fit(samples, xs, samples[0].trend, np.concatenate(begin))
    turned = joint.turned
    out = []
    for (sample, designed), position, curved, models in zip(
        _both(samples, designs), positions, bent, joint.parts, strict=True
    ):
        second = _described(sample, designed, position, joint, models)
        alone_in = _described(sample, designed, position[:, 1:], curved, slice(None))
        names = ("slope", "error", "df", "largest", "pull", "form")
        second = replace(second, **{name: getattr(alone_in, name) for name in names})
        out.append(Beside(second, _described(sample, designed, position[:, ::-1], turned, models)))
    return out


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


def _fit(samples: Sequence[Sample], xs: Sequence[Floats], columns: Floats, weights: Floats | None = None) -> _Fitted:
    strata = samples[0].strata
    counts = [len(x) for x in xs]
    x = np.concatenate(xs)
    y = np.repeat(strata.centred(np.stack([sample.y for sample in samples])), counts, axis=0)
    model = fit(y, x, strata, weights=weights, columns=columns)
    tables = tabulate(x, strata, model, columns)
    misses = predict(y, x, strata, model, tables)
    slopes, tables = whitened(x, strata, model, tables, columns)
    ends = np.cumsum(counts).tolist()
    parts = [slice(end - count, end) for end, count in zip(ends, counts, strict=True)]
    return _Fitted(model, slopes, tables, slope_errors(tables), misses, parts)


def _described(sample: Sample, designed: Designed, positions: Ints, fitted: _Fitted, models: slice) -> Estimates:
    """In the features' units. ``positions``: of each model's features in ``designed``; -1 is no feature."""
    scale = np.append(designed.scale, 1.0)[positions]
    number = np.append(designed.tested, -1)[positions]
    slopes = fitted.slopes[models] / scale
    weights = fitted.model.weights[models]
    share = weights / weights.sum(axis=1, keepdims=True)
    mean = np.take_along_axis(share @ sample.values.T, number, axis=1)
    unknown = np.full(len(slopes), np.nan)
    spread = np.append(designed.df, np.inf)[positions[:, -1]], np.append(designed.largest, 0.0)[positions[:, -1]]
    target_scale = scale[:, -1]
    return Estimates(
        features=number[:, -1],
        slope=slopes[:, -1],
        error=fitted.errors.error[models] / target_scale,
        df=np.minimum(fitted.errors.df[models], spread[0]),
        low=unknown,
        high=unknown,
        p_value=unknown,
        largest=np.maximum(fitted.errors.largest[models], spread[1]),
        intercept=share @ sample.y - np.where(number >= 0, slopes * mean, 0.0).sum(axis=1),
        r2=fitted.model.r2[models],
        variation=fitted.model.variation[models],
        pull=fitted.errors.pull[models] / target_scale[:, None],
        form=fitted.errors.form[models] / (target_scale**2)[:, None, None],
        misses=fitted.misses.part(models),
    )


def _of_layers(parts: Iterable[Alone]) -> Alone:
    """What each feature costs in the mean of the layers."""
    parts = list(parts)
    rows = [part.rows for part in parts]
    level = float(np.average([part.level for part in parts], weights=rows))
    constant = Misses(_added(p.constant.total_ns for p in parts), _added(p.constant.rows for p in parts))
    weights = [weight for part in parts for weight in part.weights]
    return Alone(_mean([part.single for part in parts], rows), constant, level, weights, sum(rows))


def _mean(layers: Sequence[Estimates], rows: Sequence[int]) -> Estimates:
    """The mean of the layers' slopes. What blocks pull adds up block by block: layers share their steps' noise."""
    first, number = layers[0], len(layers)
    share = np.array(rows) / sum(rows)
    pull = _added(layer.pull for layer in layers) / number
    form = _added(layer.form for layer in layers) / number**2
    variation = _added(layer.variation for layer in layers)
    with np.errstate(divide="ignore", invalid="ignore"):
        r2 = _added(np.where(layer.variation > 0, layer.r2, 0.0) * layer.variation for layer in layers) / variation
    few = np.any([~(layer.df >= MIN_DF) for layer in layers], axis=0)
    return replace(
        first,
        slope=_added(layer.slope for layer in layers) / number,
        error=root_of_squares(pull),
        df=np.where(few, 0.0, degrees_of_freedom(form)),
        largest=_added(layer.largest for layer in layers) / number,
        intercept=_added(w * layer.intercept for w, layer in zip(share, layers, strict=True)),
        r2=r2,
        variation=variation,
        pull=pull,
        form=form,
        misses=Misses(_added(layer.misses.total_ns for layer in layers), _added(layer.misses.rows for layer in layers)),
    )


def _added(values: Iterable[Floats]) -> Floats:
    total: Floats = np.sum(np.stack(list(values)), axis=0)
    return total


def infer(estimates: Sequence[Estimates]) -> list[Estimates]:
    """With intervals and p-values, computed for all at once."""
    if not estimates:
        return []
    ends = np.cumsum([len(estimate.slope) for estimate in estimates])[:-1]
    slope, error, df = (
        np.concatenate([getattr(estimate, name) for estimate in estimates]) for name in ("slope", "error", "df")
    )
    few = ~(df >= MIN_DF)
    df = np.where(few, MIN_DF, df)
    with np.errstate(divide="ignore", invalid="ignore"):
        chance = p_value(np.where(slope == 0, 0.0, slope / error), df)
    half = quantile(CONFIDENCE, df) * error
    parts = (np.split(values, ends) for values in (slope - half, slope + half, np.where(few, np.nan, chance)))
    return [
        replace(estimate, low=low, high=high, p_value=p)
        for estimate, low, high, p in zip(estimates, *parts, strict=True)
    ]


def worse(errors: Floats, other: Floats, rows: Floats) -> bool:
    """Whether the misses of one model are more than another's, beyond what blocks differ by.

    Paired by block: the 95 % interval of the difference of mean absolute errors lies above 0, by Student's t.

    Parameters:
        errors, other: misses summed by block, [blocks].
        rows: predicted, [blocks].
    """
    used = rows > 0
    blocks = int(used.sum())
    if blocks < 2:
        return False
    differences = (errors - other)[used]
    mean = differences.sum() / rows[used].sum()
    spread = differences - mean * rows[used]
    error = np.sqrt(blocks / (blocks - 1) * (spread * spread).sum()) / rows[used].sum()
    return bool(mean > _quantile(blocks - 1) * error)


@lru_cache
def _quantile(df: int) -> float:
    return float(quantile(CONFIDENCE, df))
