"""Looking into what moe_layer_model found."""

from __future__ import annotations

from nvtxmoe_analysis.metrics.layer_model.choice import Choice, Term


def of_layers(choices: list[Choice]) -> list[Choice]:
    return [choice for choice in choices if choice.sample.layer is not None]


def pooled(choices: list[Choice]) -> Choice:
    (found,) = [choice for choice in choices if choice.sample.layer is None]
    return found


def alternative(choice: Choice, feature: str) -> Term:
    (found,) = [term for term in choice.alternatives if term.feature == feature]
    return found


def added(choice: Choice, feature: str) -> Term:
    (found,) = [term for term in choice.added if term.feature == feature]
    return found


def near(term: Term, slope_ns: float, *, joint: bool = False) -> bool:
    """Whether a slope lies in an interval, made half as wide again: that of one run in twenty misses."""
    low, high = (term.best_low, term.best_high) if joint else (term.low, term.high)
    assert low is not None and high is not None
    room = (high - low) / 4
    return low - room < slope_ns < high + room
