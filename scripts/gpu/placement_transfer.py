#!/usr/bin/env python3
"""Check the cost model of `nvtxmoe place` on another capture of the same engine, in which tokens choose other experts.

    python scripts/gpu/placement_transfer.py FITTED OTHER [OTHER ...]

Each argument is a results folder of `nvtxmoe analyze`. The model is fitted on FITTED alone. Where ranks get another
load, their kernel time changes: the predicted change of every (layer, rank, batch size) is compared with the measured
one. To a kernel it is the same whether its load changed because gates changed or because experts moved. Prints a table
with the median error of the changes of at least 5 us, and of all.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from nvtxmoe_analysis import load
from nvtxmoe_analysis.core.arrays import Bools, Floats
from nvtxmoe_analysis.placement.cost_model import CostModel
from nvtxmoe_analysis.placement.predict import Predictor
from nvtxmoe_analysis.placement.run_data import PHASES, PREFILL, LayerData

#: Steps of one batch size that both captures must have.
LEAST_STEPS = 30
#: Changes below this are left out of relative errors: noise and clocks alone make about 1 us.
LEAST_CHANGE_US = 5.0


@dataclass(frozen=True)
class Change:
    """Change of a rank's mean own kernel time in a layer, from one capture to the other, us."""

    layer: int
    rank: int
    tokens: int
    predicted_us: float
    measured_us: float


def changes(fitted: Predictor, other: Predictor, phase: str) -> list[Change]:
    """Return the change of each (layer, rank, batch size) that both captures hold often enough.

    The time at FITTED's load is FITTED's own mean; what is predicted is what the other load changes.
    """
    model = fitted.phases[phase].model
    if model.reason is not None:
        return []
    changes_of_layers = []
    before = dict(_kinds(fitted, phase))
    for key, (data, chosen) in _kinds(other, phase):
        if key not in before:
            continue
        old, old_chosen = before[key]
        at = next(at for at, layer in enumerate(fitted.run.layers) if layer.layer == key[0])
        load_change = _mean_load(model, data, chosen) - _mean_load(model, old, old_chosen)
        predicted = model.speed * (load_change @ model.slopes[at])
        measured = data.own_ns[chosen].mean(axis=0) - old.own_ns[old_chosen].mean(axis=0)
        for rank, (predicted_ns, seen) in enumerate(zip(predicted, measured, strict=True)):
            changes_of_layers.append(Change(key[0], rank, key[2], float(predicted_ns) / 1000, float(seen) / 1000))
    return changes_of_layers


def _mean_load(model: CostModel, data: LayerData, chosen: Bools) -> Floats:
    mean: Floats = model.table(data.load.of(chosen)).mean(axis=0)
    return mean


def _kinds(run: Predictor, phase: str) -> Iterator[tuple[tuple[int, int, int], tuple[LayerData, Bools]]]:
    """Steps of a phase by (layer, block_m, batch size)."""
    for data in run.run.layers:
        of_phase = data.prefill == (phase == PREFILL)
        kinds = np.unique(np.stack([data.block_m[of_phase], data.tokens[of_phase]], axis=1), axis=0)
        for block_m, tokens in kinds:
            chosen = of_phase & (data.block_m == block_m) & (data.tokens == tokens)
            if chosen.sum() >= LEAST_STEPS:
                yield (data.layer, int(block_m), int(tokens)), (data, chosen)


def summary(changes: list[Change]) -> tuple[int, float, float]:
    """Return the number of large changes, the median of their relative errors, and that of all errors in us."""
    predicted = np.array([change.predicted_us for change in changes])
    measured = np.array([change.measured_us for change in changes])
    error = np.abs(predicted - measured)
    large = np.abs(measured) >= LEAST_CHANGE_US
    relative = float(np.median(error[large] / np.abs(measured[large]))) if large.any() else float("nan")
    return int(large.sum()), relative, float(np.median(error))


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("fitted", type=Path)
    parser.add_argument("other", type=Path, nargs="+")
    options = parser.parse_args()
    fitted = Predictor(load(options.fitted))
    print(
        "| fitted on | other | phase | (layer, rank, batch size) | median change us | changes of at least 5 us", end=""
    )
    print(" | median error of these | median error of all us |")
    print("| --- | --- | --- | --- | --- | --- | --- | --- |")
    for folder in options.other:
        other = Predictor(load(folder))
        for phase in PHASES:
            pairs = changes(fitted, other, phase)
            if pairs:
                large, relative, error = summary(pairs)
                median = float(np.median([abs(change.measured_us) for change in pairs]))
                cells = [options.fitted, folder, phase, len(pairs), f"{median:.1f}", large]
                print("|", " | ".join(map(str, cells)), f"| {100 * relative:.1f} % | {error:.2f} |")


if __name__ == "__main__":
    main()
