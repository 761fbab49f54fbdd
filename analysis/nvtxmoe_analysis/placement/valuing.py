"""The value of a placement: predicted time of every layer, as its slowest rank's, on steps that the fit did not see.

    time of a rank = measured time + speed x slopes x (load under the placement - measured load)
    time of the layer in the step = the largest of its ranks

Noise of a rank raises the largest of several. It is in both times alike, so their difference is not biased by it, and
the predicted time of today's placement is the measured one.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from nvtxmoe_analysis.core.arrays import Bools, Floats, Ints
from nvtxmoe_analysis.placement.blocks import Blocks, jackknife
from nvtxmoe_analysis.placement.cost_model import CostModel
from nvtxmoe_analysis.placement.layout import Load
from nvtxmoe_analysis.placement.run_data import LayerData
from nvtxmoe_analysis.stats.student_t import quantile

CONFIDENCE = 0.95
#: A cell with a residual beyond so many scales (median absolute residual / 0.6745) is an outlier.
OUTLIER, MAD_TO_SIGMA = 10.0, 1.4826


@dataclass(frozen=True)
class Estimate:
    """A mean per step with its 95 % interval, ns. The interval is infinite where there are too few blocks."""

    mean_ns: float
    error_ns: float
    df: float

    def interval(self, confidence: float = CONFIDENCE) -> tuple[float, float]:
        """Return the interval's ends."""
        if not np.isfinite(self.error_ns):
            return -np.inf, np.inf
        half = float(quantile(confidence, max(1.0, self.df))) * self.error_ns
        return self.mean_ns - half, self.mean_ns + half


@dataclass(frozen=True)
class Sums:
    """Of a placement in a phase, by layer.

    Attributes:
        saved_ns, predicted_ns: float64 [layers, value blocks]: sums over the block's steps.
        steps: float64 [layers, value blocks].
        without: float64 [layers, fit blocks]: mean saved with the model that did not see the block.
        outside: share of (step, layer, rank) whose load is beyond what the fit saw.
    """

    saved_ns: Floats
    predicted_ns: Floats
    steps: Floats
    without: Floats
    outside: float

    def saved(self, layer: int | None = None) -> Estimate:
        """Return what a layer saves per step, or all layers together."""
        return self._estimate(self.saved_ns, layer, fitted=True)

    def predicted(self, layer: int | None = None) -> Estimate:
        """Return a layer's predicted time per step, or that of all layers together."""
        return self._estimate(self.predicted_ns, layer, fitted=True)

    def _estimate(self, sums: Floats, layer: int | None, *, fitted: bool) -> Estimate:
        chosen = slice(None) if layer is None else slice(layer, layer + 1)
        total, steps = sums[chosen], self.steps[chosen]
        each = steps.sum(axis=1, keepdims=True)
        with np.errstate(divide="ignore", invalid="ignore"):
            mean = float(np.nansum(total.sum(axis=1) / each[:, 0]))
            left_out = np.nansum((total.sum(axis=1, keepdims=True) - total) / (each - steps), axis=0)
        of_value = float(jackknife(left_out))
        of_fit = float(jackknife(self.without[chosen].sum(axis=0))) if fitted else 0.0
        number = [left_out.shape[-1], self.without.shape[-1]]
        return Estimate(mean, float(np.sqrt(of_value + of_fit)), _degrees([of_value, of_fit], number))


def _degrees(variances: Sequence[float], blocks: Sequence[int]) -> float:
    """Return Satterthwaite's degrees of freedom of a sum of independent variances."""
    below = sum(variance**2 / max(1, many - 1) for variance, many in zip(variances, blocks, strict=True))
    return float(sum(variances) ** 2 / below) if below > 0 and np.isfinite(below) else float(min(blocks) - 1)


@dataclass(frozen=True)
class Valuer:
    """Values placements in a phase.

    Attributes:
        chosen: of each layer bool [steps]: those to value by.
        seen: of the fit's rows the least and the largest of each feature: float64 [2, features].
    """

    layers: Sequence[LayerData]
    model: CostModel
    blocks: Blocks
    chosen: Sequence[Bools]
    seen: Floats

    def value(self, loads: Mapping[int, Load]) -> Sums:
        """Return the sums of a placement.

        Parameters:
            loads: by position of the layer, in all of its steps; layers that are absent keep the measured load.
        """
        blocks = np.flatnonzero(self.blocks.for_value)
        shape = (len(self.layers), len(blocks))
        saved, predicted, steps = np.zeros(shape), np.zeros(shape), np.zeros(shape)
        without = np.zeros((len(self.layers), len(self.model.left_out[0])))
        beyond = cells = 0
        for at, (layer, chosen) in enumerate(zip(self.layers, self.chosen, strict=True)):
            block = np.searchsorted(blocks, self.blocks.of(layer.steps[chosen]))
            own_ns = layer.own_ns[chosen]
            today = own_ns.max(axis=1)
            load = loads.get(at)
            change = self._change(layer, chosen, load)
            new = self._slowest(own_ns, change, self.model.slopes[at], self.model.speed)
            for sums, values in ((saved, today - new), (predicted, new), (steps, np.ones(len(new)))):
                sums[at] = np.bincount(block, weights=values, minlength=len(blocks))
            if not len(own_ns):
                continue
            for left, (slopes, speed) in enumerate(zip(*self.model.left_out, strict=True)):
                without[at, left] = today.mean() - self._slowest(own_ns, change, slopes[at], speed).mean()
            if load is not None:
                new_load = self.model.table(load.of(chosen))
                beyond += int(((new_load < self.seen[0]) | (new_load > self.seen[1])).any(axis=-1).sum())
            cells += own_ns.size
        return Sums(saved, predicted, steps, without, beyond / cells if cells else 0.0)

    def _change(self, layer: LayerData, chosen: Bools, load: Load | None) -> Floats:
        if load is None:
            return np.zeros((int(chosen.sum()), len(layer.ranks), len(self.model.features)))
        return self.model.table(load.of(chosen)) - self.model.table(layer.load.of(chosen))

    @staticmethod
    def _slowest(own_ns: Floats, change: Floats, slopes: Floats, speed: Floats) -> Floats:
        slowest: Floats = (own_ns + speed * (change @ slopes)).max(axis=1)
        return slowest


@dataclass(frozen=True)
class Calibration:
    """How well the model knows today's ranks on steps that it did not see.

    Attributes:
        predicted_ns: the slowest rank over the mean one per step, all layers together.
        explained: share of the ranks' squared differences from the mean rank that the model explains, without cells in
            which a rank is beyond OUTLIER scales from it.
        measured: the slowest rank over the mean one, as measured.
    """

    predicted_ns: float
    explained: float | None
    measured: Estimate


def calibrate(valuer: Valuer) -> Calibration:
    """Compare the ranks' differences under today's placement with the model's."""
    model = valuer.model
    blocks = np.flatnonzero(valuer.blocks.for_value)
    shape = (len(valuer.layers), len(blocks))
    measured, predicted, steps = np.zeros(shape), np.zeros(shape), np.zeros(shape)
    differences, residuals = [], []
    for at, (layer, chosen) in enumerate(zip(valuer.layers, valuer.chosen, strict=True)):
        own_ns = layer.own_ns[chosen]
        if not len(own_ns):
            continue
        block: Ints = np.searchsorted(blocks, valuer.blocks.of(layer.steps[chosen]))
        if model.features:
            cost = model.table(layer.load.of(chosen)) @ model.slopes[at]
            level = (own_ns / model.speed - cost).mean(axis=1, keepdims=True)
            fitted = model.speed * (level + cost)
        else:
            fitted = np.repeat(own_ns.mean(axis=1, keepdims=True), own_ns.shape[1], axis=1)
        difference = own_ns - own_ns.mean(axis=1, keepdims=True)
        centred_cost = fitted - fitted.mean(axis=1, keepdims=True)
        differences.append(difference)
        residuals.append(difference - centred_cost)
        measured[at] = np.bincount(block, weights=difference.max(axis=1), minlength=len(blocks))
        predicted[at] = np.bincount(block, weights=centred_cost.max(axis=1), minlength=len(blocks))
        steps[at] = np.bincount(block, minlength=len(blocks))
    none = np.zeros((len(valuer.layers), 0))
    sums = Sums(measured, predicted, steps, none, 0.0)
    return Calibration(
        sums._estimate(predicted, None, fitted=False).mean_ns,
        _explained(differences, residuals),
        sums._estimate(measured, None, fitted=False),
    )


def _explained(differences: Sequence[Floats], residuals: Sequence[Floats]) -> float | None:
    """Return the share of squared differences that is not in the residuals; None where there is no difference."""
    if not differences:
        return None
    differences_all, left = np.concatenate(differences), np.concatenate(residuals)
    scale = MAD_TO_SIGMA * float(np.median(np.abs(left)))
    inliers = (np.abs(left) <= OUTLIER * scale).all(axis=1) if scale > 0 else np.ones(len(left), dtype=np.bool_)
    total = float((differences_all[inliers] ** 2).sum())
    return 1.0 - float((left[inliers] ** 2).sum()) / total if total > 0 else None
