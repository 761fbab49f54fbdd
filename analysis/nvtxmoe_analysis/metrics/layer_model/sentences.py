"""A sample's findings in a plain sentence."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass, replace

from nvtxmoe_analysis.metrics.layer_model.choice import (
    ALIKE,
    BY_CHANCE,
    EXPLAINS,
    NO_EFFECT,
    ONE_OF,
    REFUSED,
    Choice,
    Term,
)
from nvtxmoe_analysis.metrics.layer_model.samples import IMBALANCE, LOAD, NO_VARIATION, NOT_KNOWN, TWIN

#: Feature: what it is called, a step of it, and the size of that step in its unit.
NAMES = {
    "local_activations": ("activations", "further activation", 1.0),
    "local_active_experts": ("active experts", "further active expert", 1.0),
    "local_expert_tiles": ("expert tiles", "further expert tile", 1.0),
    "local_max_count": ("the busiest expert's load", "further activation of the busiest expert", 1.0),
    "cv": ("the coefficient of variation", "0.1 of coefficient of variation", 0.1),
    "max_mean_ratio": ("max/mean", "1 of max/mean", 1.0),
    "entropy_bits": ("entropy", "bit of entropy", 1.0),
    "gini": ("Gini", "0.1 of Gini", 0.1),
}
#: Of which one the interval is told where nothing explains: the first that has one.
TOLD = ("local_active_experts", "local_activations", "local_expert_tiles", "local_max_count", *IMBALANCE)
#: A second feature is named when it lowers the error of prediction by so much of it.
NOTEWORTHY = 0.05
#: Of features that can't be told apart so many are named, and slopes of so many told.
MOST_NAMED, MOST_TOLD = 3, 2
#: Below, slopes are in ns.
LEAST_US = 0.1
MOST_DECIMALS = 2
#: Of a number that would be 0 with fewer.
MOST_DECIMALS_NEAR_0 = 4
#: Why features could not be tested: part of their reason, words for one and for several.
UNTESTED = (
    (ONE_OF, "varies mainly in one stretch of steps", "vary mainly in one stretch of steps"),
    (NO_VARIATION, "does not vary", "do not vary"),
    (NOT_KNOWN, "is not known", "are not known"),
    (TWIN, "moves exactly as another", "move exactly as others"),
)


def name_of(feature: str) -> str:
    """What a feature is called in a sentence."""
    return NAMES[feature][0]


def time_words(ns: float) -> str:
    """A time in us, below LEAST_US in ns."""
    us = ns / 1000
    if 0 < abs(us) < LEAST_US:
        return f"{ns:.1f} ns"
    return f"{us:,.1f} us" if abs(us) >= 1 else f"{us:.3f} us"


def untested(terms: Iterable[Term]) -> str:
    """How many of them could not be tested, by the reason."""
    reasons = [term.reason or "" for term in terms if term.status == REFUSED]
    counts = [(sum(part in reason for reason in reasons), singular, several) for part, singular, several in UNTESTED]
    return ", ".join(f"{count} {singular if count == 1 else several}" for count, singular, several in counts if count)


def sentence(choice: Choice) -> str:
    """What was found of a layer (or of all) in one kind of step."""
    best = choice.best
    where = f"{'all layers' if choice.sample.layer is None else f'layer {choice.sample.layer}'}, {choice.sample.kind}"
    if best.status == REFUSED:
        return f"{where}: not fitted, {best.reason}"
    if best.status == NO_EFFECT:
        return f"{where}: {_nothing(choice)}"
    explanation = _similar_terms(choice) if best.status == ALIKE else _explained(choice)
    return f"{where}: {explanation}{_layers_apart(choice)}"


def _layers_apart(choice: Choice) -> str:
    """The least and the largest slope of a layer, where they differ from the mean of all."""
    if choice.apart is None or choice.best.feature is None:
        return ""
    sort, _, size = NAMES[choice.best.feature]
    costs = [f"{time_words(size * slope.slope)} in layer {slope.layer}" for slope in choice.apart]
    if choice.best.status != ALIKE and _beside(choice) is not None:  # slopes of this feature alone, not beside another
        return f"; layers differ: {sort} alone cost from {costs[0]} to {costs[1]}"
    return f"; this is the mean of layers that differ: {sort} cost from {costs[0]} to {costs[1]}"


def _explained(choice: Choice) -> str:
    """The best feature's cost, and what others add."""
    best, strongest = choice.best, _beside(choice)
    if strongest is not None:
        joint = replace(best, slope=strongest.best_slope, low=strongest.best_low, high=strongest.best_high)
        return f"{_costs(joint)}, and beside it {_costs(strongest)}"
    return f"{_costs(best)}, {_more(choice)}"


def _beside(choice: Choice) -> Term | None:
    """The feature that is named beside the best one; None where none lowers the error enough."""
    adds = [term for term in choice.added if term.status == EXPLAINS]
    strongest = min(adds, key=_error, default=None)
    noteworthy = strongest is not None and _error(strongest) < (1 - NOTEWORTHY) * _error(choice.best)
    return strongest if noteworthy else None


def _more(choice: Choice) -> str:
    """What features of the other sort add to the best one."""
    other, noun = (IMBALANCE, "imbalance") if choice.best.feature in LOAD else (LOAD, "load")
    statuses = {term.status for term in choice.added if term.feature in other}
    if EXPLAINS in statuses:
        return f"{noun} explains little more"
    if NO_EFFECT in statuses:
        return f"{noun} explains nothing more"
    if ALIKE in statuses:
        return f"{noun} moves with it and can't be told apart"
    return f"whether {noun} explains more can't be tested"


def _similar_terms(choice: Choice) -> str:
    ranked = sorted(choice.similar_terms, key=_error)
    names = [name_of(term.feature) for term in (choice.best, *ranked) if term.feature]
    more = len(names) - MOST_NAMED
    if more > 0:
        names = [*names[:MOST_NAMED], f"{more} more feature{'s' if more > 1 else ''}"]
    least = min(abs(term.correlation or 0.0) for term in ranked)
    costs = ", or ".join(_costs(term) for term in (choice.best, *ranked)[:MOST_TOLD])
    sort = LOAD if choice.best.feature in LOAD else IMBALANCE
    more_text = f", {_more(choice)}" if all(term.feature in sort for term in ranked) else ""
    return f"{', '.join(names[:-1])} and {names[-1]} can't be told apart (correlation {least:.2f}): {costs}{more_text}"


def _error(term: Term) -> float:
    return math.inf if term.cv_error is None else term.cv_error


def _nothing(choice: Choice) -> str:
    by_name = {term.feature: term for term in choice.alternatives if term.low is not None}
    term = next(by_name[name] for name in TOLD if name in by_name)
    assert term.feature is not None and choice.best.intercept is not None
    _, step, size = NAMES[term.feature]
    slope = _slope(term, size)
    tested = sum(term.status != REFUSED for term in choice.alternatives)
    time = time_words(choice.best.intercept)
    clause = f"nothing explains the {time}, {choice.best.reason}"
    if tested < len(NAMES):
        seen = f"{tested} of {len(NAMES)} features could be tested ({untested(choice.alternatives)})"
        clause = f"{seen}, no effect on the {time} can be told from chance"
    but = ""
    if term.low is not None and term.high is not None and term.low * term.high > 0:
        but = ", before the correction for many tests" if term.reason == BY_CHANCE else f", but it {term.reason}"
    return (
        f"{clause}: {'a ' if step[0].isalpha() else ''}{step} costs between {slope.low} and {slope.high} {slope.unit} "
        f"(95 % CI{but})"
    )


def _costs(term: Term) -> str:
    assert term.feature is not None and term.slope is not None
    _, step, size = NAMES[term.feature]
    verb, sign = ("costs", 1.0) if term.slope >= 0 else ("saves", -1.0)
    slope = _slope(term, sign * size)
    return f"each {step} {verb} {slope.middle} {slope.unit} (95 % CI {slope.low} to {slope.high})"


@dataclass(frozen=True)
class _Slope:
    """Numbers in words."""

    low: str
    middle: str
    high: str
    unit: str


def _slope(term: Term, factor: float) -> _Slope:
    """A slope times a factor, with one digit of half its interval (two decimals at most) and two of the slope."""
    assert term.slope is not None and term.low is not None and term.high is not None
    low, high = sorted((term.low * factor / 1000, term.high * factor / 1000))
    middle, unit = term.slope * factor / 1000, "us"
    if max(abs(low), abs(high)) < LEAST_US:
        low, middle, high, unit = low * 1000, middle * 1000, high * 1000, "ns"
    half = (high - low) / 2
    digits = [min(MOST_DECIMALS, -math.floor(math.log10(half)))] if half > 0 else []
    digits += [1 - math.floor(math.log10(abs(middle)))] if abs(middle) > half else []
    decimals = max(0, *digits, 0)
    while decimals < MOST_DECIMALS and any(value and not round(value, decimals) for value in (low, high)):
        decimals += 1  # a bound near 0 keeps its sign
    if low < high:  # an interval has two ends
        wider = range(decimals, MOST_DECIMALS_NEAR_0 + 1)
        decimals = next((digits for digits in wider if round(low, digits) != round(high, digits)), decimals)
    return _Slope(_number(low, decimals), _number(middle, decimals), _number(high, decimals), unit)


def _number(value: float, decimals: int) -> str:
    """With more decimals where fewer would hide the sign."""
    enough = (digits for digits in range(decimals, MOST_DECIMALS_NEAR_0 + 1) if round(value, digits))
    decimals = next(enough, decimals)
    text = f"{value:,.{decimals}f}"
    return text.removeprefix("-") if float(text.replace(",", "")) == 0 else text
