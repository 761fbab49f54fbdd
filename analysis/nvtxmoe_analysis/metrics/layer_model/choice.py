"""What is said of a sample: a feature in a role, with its numbers."""

from __future__ import annotations

from dataclasses import dataclass, field

from nvtxmoe_analysis.metrics.layer_model.samples import Sample

BEST, ALTERNATIVE, ADDED = "best", "alternative", "added"
EXPLAINS, NO_EFFECT, ALIKE, REFUSED = "explains", "no_effect", "cannot_tell_apart", "refused"
#: Reasons why a feature predicts or shows nothing.
BY_CHANCE, NO_BETTER = "no effect of it can be told from chance", "predicts no better than the typical time"
#: In the reason why a feature could not be tested: of stretches of steps.
ONE_OF = "one of"


@dataclass(frozen=True)
class Term:
    """One feature in one role. Numbers are None where there is nothing to say.

    Attributes:
        feature: of samples.FEATURES; None where no feature explains, or nothing was fitted.
        slope, low, high: ns per unit of the feature, and the interval.
        intercept: ns, at 0 of the model's features; without a feature the typical time.
        correlation: with the best feature, within strata.
        best_slope, best_low, best_high: of the best feature in the same model, where ``role`` is added.
    """

    feature: str | None
    role: str
    status: str
    slope: float | None = None
    low: float | None = None
    high: float | None = None
    intercept: float | None = None
    r2: float | None = None
    cv_error: float | None = None
    p_value: float | None = None
    correlation: float | None = None
    reason: str | None = None
    best_slope: float | None = None
    best_low: float | None = None
    best_high: float | None = None


@dataclass(frozen=True)
class LayerSlope:
    """A layer with its slope of a feature, ns per unit, and the interval."""

    layer: int
    slope: float
    low: float
    high: float


@dataclass(frozen=True)
class Choice:
    """What was found of one sample.

    Attributes:
        alternatives: every other feature in a model of its own.
        added: every other feature beside the best one.
        constant_error: mean absolute error of predicting each stratum's level, ns; None where nothing was fitted.
        apart: of all layers, if their slopes of the best feature differ: the layers with the least and the largest.
    """

    sample: Sample
    best: Term
    alternatives: list[Term] = field(default_factory=list)
    added: list[Term] = field(default_factory=list)
    constant_error: float | None = None
    apart: tuple[LayerSlope, LayerSlope] | None = None

    @property
    def similar_terms(self) -> list[Term]:
        """Alternatives that can't be told apart from the best feature."""
        return [term for term in self.alternatives if term.status == ALIKE]
