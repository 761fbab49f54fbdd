"""Simulated layers with a planted cause of their time, fitted each as if by itself."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import numpy.typing as npt
import polars as pl
import pytest

from nvtxmoe_analysis.core.arrays import Bools
from nvtxmoe_analysis.metrics.layer_model import choose as choosing
from nvtxmoe_analysis.metrics.layer_model.choice import Choice
from nvtxmoe_analysis.metrics.layer_model.estimates import Estimates
from nvtxmoe_analysis.metrics.layer_model.samples import Sample, samples
from tests.support.compare_simulations import memory
from tests.support.layer_model_terms import of_layers
from tests.support.planted_correlation import Plan, draw
from tests.support.rates import DRAWS, SEED

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]
#: Returns the time of each step in ns, from its tokens and features.
Time = Callable[[Ints, dict[str, Floats]], Floats]


def ramp(random: np.random.Generator, steps: int) -> Ints:
    """Return batches that fill from 4 to 64."""
    return np.clip(np.round(np.linspace(4, 64, steps) + random.normal(0, 2, steps)), 1, None).astype(np.int64)


def wandering(random: np.random.Generator, steps: int) -> Ints:
    """Return batches of about 24, correlated by .95 from step to step."""
    return np.clip(np.round(24 * np.exp(0.5 * memory(random, (steps,), 0.95))), 1, 128).astype(np.int64)


def simulated(
    batches: Callable[[np.random.Generator, int], Ints],
    time: Time,
    noise_ns: float,
    *,
    steps: int = 300,
    draws: int = DRAWS,
    seed: int = 0,
    popularity: float = 0.3,
) -> list[Choice]:
    """Return what the model finds in each of many runs of one layer, each tested without regard to the others.

    The sample of all runs together, which is as large as all others, is left out.

    Parameters:
        popularity: how much the experts' popularity changes from step to step, see ``Plan.drift``.
    """
    frames = []
    for number in range(draws):
        random = np.random.default_rng([seed, number, SEED] if SEED else [seed, number])
        tokens = batches(random, steps)
        rows = draw(random, Plan(tokens, drift=popularity)).with_columns(layer_idx=pl.lit(number, pl.Int64))
        features = {name: rows[name].cast(pl.Float64).to_numpy() for name in rows.columns[5:]}
        own = np.round(time(tokens, features) + random.normal(0, noise_ns, steps)).astype(np.int64)
        frames.append(rows.with_columns(own_ns=pl.Series(own)))
    of_all = choosing._claims

    def apart(estimates: Sequence[Estimates]) -> Bools:
        return np.concatenate([of_all([one]) for one in estimates])

    def of_runs(frame: pl.DataFrame, target: str) -> list[Sample]:
        return [sample for sample in samples(frame, target) if sample.layer is not None]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(choosing, "_claims", apart)
        patch.setattr(choosing, "samples", of_runs)
        return of_layers(choosing.choose(pl.concat(frames)))
