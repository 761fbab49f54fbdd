"""Runs in memory for simulations of comparisons, and their rates over many draws."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, cast

import numpy as np
import numpy.typing as npt
import polars as pl
from scipy.signal import lfilter

from nvtxmoe_analysis.compare.measures import METRICS, measure
from nvtxmoe_analysis.compare.plan import plan
from nvtxmoe_analysis.compare.runs import Run
from tests.support.rates import DRAWS, SEED

Floats = npt.NDArray[np.float64]


def memory(random: np.random.Generator, shape: tuple[int, ...], correlation: float) -> Floats:
    """Stationary autoregressive series along the first axis, of variance 1."""
    fresh = random.normal(size=shape)
    if correlation == 0.0:
        return fresh
    fresh[1:] *= np.sqrt(1.0 - correlation**2)
    series: Floats = lfilter([1.0], [1.0, -correlation], fresh, axis=0)
    return series


@dataclass(frozen=True)
class Timed:
    """A run to make up: kernel time is 20 us and 150 ns per token in each layer.

    Attributes:
        batch_memory: correlation of a step's number of tokens with the step's before.
        noise, noise_memory: relative noise common to the layers of a step, and its correlation.
        own_noise: relative noise of each layer, independent.
        walk, walk_memory: relative size of a slow clock walk common to all layers, and its correlation.
        slow: factor of layer 0.
    """

    steps: int = 300
    layers: int = 3
    batch_memory: float = 0.0
    noise: float = 0.05
    noise_memory: float = 0.0
    own_noise: float = 0.03
    walk: float = 0.0
    walk_memory: float = 0.99
    slow: float = 1.0


def timed_run(name: str, load: Timed, random: np.random.Generator) -> Run:
    """Make up a run of GPU times without files."""
    steps, layers = load.steps, load.layers
    tokens = np.clip(np.rint(20.0 + 6.0 * memory(random, (steps,), load.batch_memory)), 1, None).astype(np.int64)
    common = load.noise * memory(random, (steps, 1), load.noise_memory)
    common = common + load.walk * memory(random, (steps, 1), load.walk_memory)
    relative = np.exp(common + load.own_noise * random.normal(size=(steps, layers)))
    relative[:, 0] *= load.slow
    ns = ((20_000 + 150 * tokens[:, None]) * relative).astype(np.int64).ravel()
    times = pl.DataFrame(
        {
            "rank": np.zeros(steps * layers, dtype=np.int64),
            "step": np.repeat(np.arange(steps), layers),
            "layer_idx": np.tile(np.arange(layers), steps),
            "num_tokens": np.repeat(tokens, layers),
            "step_kind": ["decode"] * (steps * layers),
            "kernel_time_ns": ns,
            "own_ns": ns,
            "step_gpu_ns": ns,
        }
    )
    return Run(name, cast(Any, None), dict.fromkeys(range(layers), (8, 2)), times, pl.DataFrame())


@dataclass(frozen=True)
class Rates:
    """Shares of the draws.

    Attributes:
        whole: all layers together are called different.
        slow: layer 0 is called different.
        others: any other layer is called different.
        undecided: nothing is told of all layers together.
        covered: intervals of all layers together that hold the true change, of those that are told.
    """

    whole: float
    slow: float
    others: float
    undecided: float
    covered: float


def rates(metric: str, load: Timed, *, slow: float = 1.0, draws: int = DRAWS, seed: int = 1) -> Rates:
    """Compare pairs of runs of one load, layer 0 of B being slower by ``slow``."""
    random = np.random.default_rng(seed + SEED)
    changed = replace(load, slow=slow)
    truth = 100.0 * (slow - 1.0) / load.layers
    told_of: dict[str, list[bool]] = {name: [] for name in ("whole", "slow", "others", "undecided", "covered")}
    for _ in range(draws):
        sides = timed_run("A", load, random), timed_run("B", changed, random)
        rows = measure(METRICS[metric], sides, plan(*sides), range(load.layers), 0.95).filter(step_kind="all")
        told = rows["significant"].fill_null(False).to_list()
        told_of["whole"].append(told[0])
        told_of["slow"].append(told[1])
        told_of["others"].append(any(told[2:]))
        row = rows.row(0, named=True)
        told_of["undecided"].append(row["p_value"] is None)
        if row["p_value"] is not None:
            told_of["covered"].append(row["change_pct_ci_low"] <= truth <= row["change_pct_ci_high"])
    return Rates(**{name: float(np.mean(one)) if one else float("nan") for name, one in told_of.items()})
