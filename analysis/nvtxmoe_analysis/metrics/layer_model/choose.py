"""Which feature explains a layer's time, which can't be told apart from it, and what a second one adds."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TypeVar

import numpy as np
import polars as pl

from nvtxmoe_analysis.core.arrays import Bools
from nvtxmoe_analysis.metrics.layer_model.choice import (
    ADDED,
    ALIKE,
    ALTERNATIVE,
    BEST,
    BY_CHANCE,
    EXPLAINS,
    NO_BETTER,
    NO_EFFECT,
    ONE_OF,
    REFUSED,
    Choice,
    LayerSlope,
    Term,
)
from nvtxmoe_analysis.metrics.layer_model.design import Designed, design
from nvtxmoe_analysis.metrics.layer_model.estimates import (
    Alone,
    Beside,
    Estimates,
    alone,
    batches,
    beside,
    infer,
    worse,
)
from nvtxmoe_analysis.metrics.layer_model.samples import FEATURES, Sample, samples
from nvtxmoe_analysis.metrics.layer_model.sentences import name_of, time_words, untested
from nvtxmoe_analysis.stats.multiple_testing import claims

T = TypeVar("T")

#: The layer's kernels without collectives, which include waiting for other ranks.
TARGET = "own_ns"
#: Chance of any claim where nothing has an effect; see multiple_testing.claims.
LEVEL = 0.05
#: Of an interval: the most extreme of n normal slopes lie about sqrt(2 log n) standard errors out.
WIDEN = 0.4


@dataclass(frozen=True)
class _Trial:
    """A sample with each feature alone. Positions are those of ``designed.tested``.

    Attributes:
        single: of ``alone``, with intervals.
    """

    sample: Sample
    designed: Designed
    alone: Alone
    single: Estimates

    @property
    def constant(self) -> float:
        """Error of the levels alone, ns."""
        return float(self.alone.constant.mean_ns[0])


def choose(frame: pl.DataFrame) -> list[Choice]:
    """Fit every sample of moe_layer_correlation, in the order of ``samples.samples``, which says what is needed."""
    all_samples = list(samples(frame, TARGET))
    fitted = [sample for sample in all_samples if sample.reason is None]
    designs = [design(sample) for sample in fitted]
    # Not on threads: the calls are many and small, so that threads would only wait for the interpreter.
    batched = batches(fitted)
    tries = [attempt for batch in batched for attempt in alone(_items_at(fitted, batch), _items_at(designs, batch))]
    singles = infer([attempt.single for attempt in tries])
    trials = [_Trial(*parts) for parts in zip(fitted, designs, tries, singles, strict=True)]
    explains = [_explains(trial, row) for trial, row in zip(trials, _claims(singles), strict=True)]
    bests = [_best(trial, row) for trial, row in zip(trials, explains, strict=True)]
    pairs = [pair for batch in batched for pair in _two_term_fits(_items_at(trials, batch), _items_at(bests, batch))]
    seconds, firsts = infer([pair.second for pair in pairs]), infer([pair.first for pair in pairs])
    judged = {
        id(trial.sample): _judge(trial, *findings)
        for trial, *findings in zip(trials, explains, bests, seconds, firsts, _claims(seconds), strict=True)
    }
    choices = [judged.get(id(s)) or Choice(s, Term(None, BEST, REFUSED, reason=s.reason)) for s in all_samples]
    return [choice if choice.sample.layer is not None else _with_layers_apart(choice, choices) for choice in choices]


def _with_layers_apart(pooled: Choice, choices: Sequence[Choice]) -> Choice:
    """Return the choice of all layers with those whose slopes of its best feature differ most, if any two differ.

    Two slopes differ if their intervals, widened for the number of layers, do not overlap.
    """
    feature = pooled.best.feature
    slopes = []
    for choice in choices:
        layer = choice.sample.layer
        if layer is None or choice.sample.kind != pooled.sample.kind:
            continue
        for term in (choice.best, *choice.alternatives):
            if term.feature == feature and None not in (term.slope, term.low, term.high):
                slopes.append(LayerSlope(layer, term.slope or 0.0, term.low or 0.0, term.high or 0.0))
    if feature is None or len(slopes) < 2:
        return pooled
    widen = WIDEN * math.sqrt(math.log(len(slopes)))
    lows = [slope.slope - (1 + widen) * (slope.slope - slope.low) for slope in slopes]
    highs = [slope.slope + (1 + widen) * (slope.high - slope.slope) for slope in slopes]
    if max(lows) <= min(highs):
        return pooled
    ordered = sorted(slopes, key=lambda slope: slope.slope)
    return replace(pooled, apart=(ordered[0], ordered[-1]))


def _items_at(items: Sequence[T], positions: Sequence[int]) -> list[T]:
    return [items[at] for at in positions]


def _claims(estimates: Sequence[Estimates]) -> Bools:
    """Claims by number in FEATURES, [estimates, features]."""
    table = np.full((len(estimates), len(FEATURES)), np.nan)
    for row, estimate in zip(table, estimates, strict=True):
        row[estimate.features] = estimate.p_value
    return claims(table, LEVEL)


def _explains(trial: _Trial, claimed: Bools) -> Bools:
    """Whether a feature has an effect and predicts better than levels alone, [tested]."""
    better: Bools = trial.single.misses.mean_ns < trial.constant
    return claimed[trial.designed.tested] & better


def _best(trial: _Trial, explains: Bools) -> int | None:
    """Of those that explain the one that predicts best."""
    return int(np.where(explains, trial.single.misses.mean_ns, np.inf).argmin()) if explains.any() else None


def _two_term_fits(trials: Sequence[_Trial], bests: Sequence[int | None]) -> list[Beside]:
    """Of a batch; nothing where no feature explains."""
    fitted_trials = [(trial, best) for trial, best in zip(trials, bests, strict=True) if best is not None]
    pairs_of_fits = iter(
        beside(
            [trial.sample for trial, _ in fitted_trials],
            [trial.designed for trial, _ in fitted_trials],
            [best for _, best in fitted_trials],
            [trial.alone for trial, _ in fitted_trials],
        )
        if fitted_trials
        else ()
    )
    none = [trial.single.part(slice(0)) for trial in trials]
    return [
        Beside(no_pair, no_pair) if best is None else next(pairs_of_fits)
        for best, no_pair in zip(bests, none, strict=True)
    ]


def _judge(
    trial: _Trial, explains: Bools, best: int | None, second: Estimates, first: Estimates, adding: Bools
) -> Choice:
    tested = range(len(trial.designed.tested))
    refused = [Term(FEATURES[n], ALTERNATIVE, REFUSED, reason=why) for n, why in trial.designed.refused.items()]
    if best is None:
        others = _ordered([_unclaimed(trial, at, None) for at in tested], refused)
        return Choice(trial.sample, _nothing(trial, others), others, [], trial.constant)
    added = _added(trial, best, second, first, adding)
    adds = {term.feature for term in added if term.status == EXPLAINS}
    others = [
        _alternative(trial, at, best, adds) if explains[at] else _unclaimed(trial, at, best)
        for at in tested
        if at != best
    ]
    similar = [name_of(term.feature) for term in others if term.status == ALIKE and term.feature]
    reason = f"predicts no better than {' or '.join(similar)}" if similar else None
    chosen = _term(trial.single, best, BEST, ALIKE if similar else EXPLAINS, reason)
    return Choice(trial.sample, chosen, _ordered(others, refused), _ordered(added), trial.constant)


def _nothing(trial: _Trial, others: list[Term]) -> Term:
    """The best feature's place where none explains, or none could be tested."""
    level = trial.alone.level
    if all(term.status == REFUSED for term in others):
        reason = f"none of {len(FEATURES)} features could be tested: {untested(others)}"
        return Term(None, BEST, REFUSED, intercept=level, reason=reason)
    return Term(None, BEST, NO_EFFECT, intercept=level, reason="no effect of any feature can be told from chance")


def _unclaimed(trial: _Trial, at: int, best: int | None) -> Term:
    """A feature that explains nothing, or whose slope can't be told."""
    correlation = None if best is None else float(trial.designed.correlation[best, at])
    if _refused(trial.single, at):
        return Term(_name(trial, at), ALTERNATIVE, REFUSED, reason=_few(trial.single, at), correlation=correlation)
    reason = BY_CHANCE if trial.single.misses.mean_ns[at] < trial.constant else NO_BETTER
    return _term(trial.single, at, ALTERNATIVE, NO_EFFECT, reason, correlation)


def _alternative(trial: _Trial, at: int, best: int, adds: set[str | None]) -> Term:
    """A feature that explains by itself, beside the one that predicts best."""
    misses, correlation = trial.single.misses, float(trial.designed.correlation[best, at])
    leader = name_of(_name(trial, best))
    errors = " against ".join(time_words(float(misses.mean_ns[feature])) for feature in (at, best))
    if worse(misses.total_ns[at], misses.total_ns[best], misses.rows):
        return _term(trial.single, at, ALTERNATIVE, EXPLAINS, f"predicts worse than {leader}: {errors}", correlation)
    if _name(trial, at) in adds:
        return _term(trial.single, at, ALTERNATIVE, EXPLAINS, f"adds to {leader}", correlation)
    reason = f"predicts as well as {leader}, as far as can be told ({errors}), and adds nothing to it"
    return _term(trial.single, at, ALTERNATIVE, ALIKE, reason, correlation)


def _added(trial: _Trial, best: int, second: Estimates, first: Estimates, adding: Bools) -> list[Term]:
    """Every other tested feature beside the best one."""
    error, leader = trial.single.misses.mean_ns[best], name_of(_name(trial, best))
    row = {int(feature): at for at, feature in enumerate(second.features)}
    terms = []
    for at, feature in enumerate(trial.designed.tested):
        if at == best:
            continue
        name, correlation = FEATURES[feature], float(trial.designed.correlation[best, at])
        two = row.get(int(feature))
        if two is None:
            reason = f"moves with {leader}: their slopes can't be told apart"
            terms.append(Term(name, ADDED, ALIKE, reason=reason, correlation=correlation))
        elif _refused(second, two):
            terms.append(Term(name, ADDED, REFUSED, reason=_few(second, two), correlation=correlation))
        else:
            adds = bool(adding[feature] and second.misses.mean_ns[two] < error)
            status = EXPLAINS if adds else NO_EFFECT
            reason = f"adds to {leader}" if adds else f"beside {leader} no effect of it can be told from chance"
            term = _term(second, two, ADDED, status, reason, correlation)
            beside_it = [_finite(values[two]) for values in (first.slope, first.low, first.high)]
            terms.append(replace(term, best_slope=beside_it[0], best_low=beside_it[1], best_high=beside_it[2]))
    return terms


def _name(trial: _Trial, at: int) -> str:
    return FEATURES[trial.designed.tested[at]]


def _refused(estimates: Estimates, at: int) -> bool:
    """Whether too few blocks tell the slope, or without one of them none does."""
    return bool(estimates.too_few[at]) or not np.isfinite(estimates.misses.mean_ns[at])


def _few(estimates: Estimates, at: int) -> str:
    blocks, largest = len(estimates.misses.rows), estimates.largest[at]
    if estimates.too_few[at] and np.isfinite(largest):
        return f"{100 * largest:.0f} % of its variation lies in {ONE_OF} {blocks} stretches of steps"
    return f"nothing tells its slope without {ONE_OF} {blocks} stretches of steps"


def _term(
    estimates: Estimates, at: int, role: str, status: str, reason: str | None, correlation: float | None = None
) -> Term:
    return Term(
        feature=FEATURES[estimates.features[at]],
        role=role,
        status=status,
        slope=_finite(estimates.slope[at]),
        low=_finite(estimates.low[at]),
        high=_finite(estimates.high[at]),
        intercept=_finite(estimates.intercept[at]),
        r2=_finite(estimates.r2[at]),
        cv_error=_finite(estimates.misses.mean_ns[at]),
        p_value=_finite(estimates.p_value[at]),
        correlation=correlation,
        reason=reason,
    )


def _finite(value: float) -> float | None:
    return float(value) if np.isfinite(value) else None


def _ordered(*terms: list[Term]) -> list[Term]:
    """As FEATURES has them."""
    return sorted((term for part in terms for term in part), key=lambda term: FEATURES.index(term.feature or ""))
