"""A phase of a run (decode, prefill): its halves, the model fitted on one, and values on the other."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from nvtxmoe_analysis.core.arrays import Bools
from nvtxmoe_analysis.core.text import number
from nvtxmoe_analysis.placement.blocks import LEAST_STEPS, Blocks, cut
from nvtxmoe_analysis.placement.cost_model import CostModel, fit
from nvtxmoe_analysis.placement.run_data import PREFILL, LayerData, RunData
from nvtxmoe_analysis.placement.valuing import Calibration, Valuer, calibrate


@dataclass(frozen=True)
class Phase:
    """What is known of a phase.

    Attributes:
        name: decode or prefill.
        steps: how many have all that is needed in at least one layer.
        fits, values: of each layer bool [steps], the halves.
        calibration: None where there are too few steps.
        reason: why nothing can be predicted.
    """

    name: str
    steps: int
    blocks: Blocks
    fits: Sequence[Bools]
    values: Sequence[Bools]
    valuer: Valuer
    calibration: Calibration | None
    reason: str | None

    @property
    def model(self) -> CostModel:
        """The fitted model."""
        return self.valuer.model


def phase_of(run: RunData, name: str, fit_layers: Sequence[int] | None) -> Phase:
    """Fit a phase.

    Parameters:
        fit_layers: the layers whose steps the fit may see; None for all.
    """
    of_phase = [layer.prefill == (name == PREFILL) for layer in run.layers]
    steps = np.unique(
        np.concatenate([layer.steps[of_phase] for layer, of_phase in zip(run.layers, of_phase, strict=True)])
    )
    blocks = cut(steps)
    fits = [
        _half(layer, of_phase, blocks, ~blocks.for_value) for layer, of_phase in zip(run.layers, of_phase, strict=True)
    ]
    values = [
        _half(layer, of_phase, blocks, blocks.for_value) for layer, of_phase in zip(run.layers, of_phase, strict=True)
    ]
    for_fit = np.array([fit_layers is None or layer.layer in fit_layers for layer in run.layers])
    if len(steps) < LEAST_STEPS:
        model = CostModel(reason=f"{number(len(steps), 'step')}, at least {LEAST_STEPS} needed")
    else:
        model = fit(run.layers, blocks, fits, for_fit)
    seen = np.zeros((2, len(model.features)))
    if model.features:
        rows = np.concatenate(
            [
                model.table(layer.load.of(of_half)).reshape(-1, len(model.features))
                for layer, of_half, used in zip(run.layers, fits, for_fit, strict=True)
                if used
            ]
        )
        seen = np.stack([rows.min(axis=0), rows.max(axis=0)])
    valuer = Valuer(run.layers, model, blocks, values, seen)
    calibration = calibrate(valuer) if len(steps) >= LEAST_STEPS else None
    return Phase(name, len(steps), blocks, fits, values, valuer, calibration, model.reason)


def _half(layer: LayerData, of_phase: Bools, blocks: Blocks, in_half: Bools) -> Bools:
    """Return the steps of a phase in the wanted blocks, bool [blocks]."""
    chosen: Bools = of_phase.copy()
    chosen[of_phase] = in_half[blocks.of(layer.steps[of_phase])]
    return chosen
