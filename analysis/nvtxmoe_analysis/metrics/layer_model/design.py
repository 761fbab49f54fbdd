"""A sample's features made fit for fitting: what changes from step to step, on one scale."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np

from nvtxmoe_analysis.core.arrays import Floats, Ints
from nvtxmoe_analysis.metrics.layer_model.samples import (
    FEATURES,
    NO_VARIATION,
    NOT_KNOWN,
    ROUNDING,
    TWIN,
    WITH_TIME,
    Sample,
)
from nvtxmoe_analysis.stats.block_sums import unclipped
from nvtxmoe_analysis.stats.cluster_errors import slope_errors
from nvtxmoe_analysis.stats.huber import Strata
from nvtxmoe_analysis.stats.trend import without

#: Correlation at which two features are one: they differ by a factor and a constant.
SAME = 1 - 1e-9
#: Of a feature's variation: with less of it from step to step nothing but rounding is left beside a trend.
LEAST_QUICK = 1e-9


@dataclass(frozen=True)
class Designed:
    """The features that can be tested, and why the others can't.

    Attributes:
        x: those that can be tested, less each stratum's level and trend, of mean square 1, [tested, rows]; without
            rows where ``parts`` has them.
        scale: what one of x is in the feature's own unit, [tested].
        df: degrees of freedom that blocks leave a slope of the feature with its trend, [tested]: few where most of the
            variation lies in few blocks. A trend spreads it over more of them, but it tells no more for that.
        largest: the largest block's share of that variation, [tested].
        quick: share of the variation within strata that is no trend, [tested].
        tested: their numbers in FEATURES, rising.
        refused: why not, by number, of the others.
        correlation: within strata and beside the trend, [tested, tested].
        parts: of a sample of all layers each layer's own, with the same features.
    """

    x: Floats
    scale: Floats
    df: Floats
    largest: Floats
    quick: Floats
    tested: Ints
    refused: dict[int, str]
    correlation: Floats
    parts: list[Designed] = field(default_factory=list)

    def only(self, numbers: Ints) -> Designed:
        """Of some of the tested features."""
        at = np.searchsorted(self.tested, numbers)
        spread = self.df[at], self.largest[at], self.quick[at]
        return Designed(self.x[at], self.scale[at], *spread, numbers, self.refused, self.correlation[np.ix_(at, at)])


def design(sample: Sample) -> Designed:
    """Which features vary, each in its own way, and what they are within strata."""
    return _design_of_layers(sample) if sample.layers is not None else _layer_design(sample)


def _layer_design(sample: Sample) -> Designed:
    refused: dict[int, str] = {}
    unknown = np.isnan(sample.values).sum(axis=1)
    for number in np.flatnonzero(unknown).tolist():
        unknown_text = f"{NOT_KNOWN} in {unknown[number]:,} of the rows"
        refused[number] = NOT_KNOWN if unknown[number] == sample.rows else unknown_text
    centred = sample.strata.centred(sample.values)
    within = np.sqrt(np.einsum("fn,fn->f", centred, centred) / sample.rows)
    for number in np.flatnonzero(within <= ROUNDING * np.abs(sample.values).max(axis=1)).tolist():
        refused[number] = NO_VARIATION
    x = without(centred, sample.trend, sample.strata)
    scale = np.sqrt(np.einsum("fn,fn->f", x, x) / sample.rows)
    for number in np.flatnonzero(scale**2 <= LEAST_QUICK * within**2).tolist():
        refused.setdefault(number, WITH_TIME)
    tested = [number for number in range(len(FEATURES)) if number not in refused]
    x = x[tested] / scale[tested, None]
    correlation = x @ x.T / sample.rows
    alone: list[int] = []
    for at, number in enumerate(tested):
        twin = next((other for other in alone if abs(correlation[other, at]) > SAME), None)
        if twin is None:
            alone.append(at)
        else:
            refused[number] = f"{TWIN} {FEATURES[tested[twin]]} in these rows"
    numbers = np.array(tested, dtype=np.int64)[alone]
    quick = (scale[numbers] / within[numbers]) ** 2
    df, largest = _spread(centred[numbers] / within[numbers, None], sample.strata)
    return Designed(x[alone], scale[numbers], df, largest, quick, numbers, refused, correlation[np.ix_(alone, alone)])


def _spread(x: Floats, strata: Strata) -> tuple[Floats, Floats]:
    """Degrees of freedom of each feature's blocks, and the largest one's share: [features] each."""
    if not len(x):
        return np.zeros(0), np.zeros(0)
    errors = slope_errors(unclipped(x[:, None], strata))
    return errors.df, errors.largest


def _design_of_layers(sample: Sample) -> Designed:
    """Features that can be tested in every layer: the mean of the layers' slopes needs them all."""
    parts = [_layer_design(part) for part in sample.parts]
    refused: dict[int, str] = {}
    for part, layer_design in zip(sample.parts, parts, strict=True):
        for number, reason in layer_design.refused.items():
            everywhere = len({other.refused.get(number) for other in parts}) == 1
            refused.setdefault(number, reason if everywhere else f"{reason}, in layer {part.layer}")
    numbers = np.array([number for number in range(len(FEATURES)) if number not in refused], dtype=np.int64)
    parts = [part.only(numbers) for part in parts]
    rows = np.array([part.rows for part in sample.parts], dtype=np.float64)
    share = rows / rows.sum()
    return Designed(
        x=np.zeros((len(numbers), 0)),
        scale=_mean([part.scale for part in parts], share),
        df=np.min([part.df for part in parts], axis=0),
        largest=np.max([part.largest for part in parts], axis=0),
        quick=_mean([part.quick for part in parts], share),
        tested=numbers,
        refused=refused,
        correlation=_mean([part.correlation for part in parts], share),
        parts=parts,
    )


def _mean(values: list[Floats], share: Floats) -> Floats:
    mean: Floats = np.einsum("p...,p->...", np.stack(values), share)
    return mean
