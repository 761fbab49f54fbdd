"""How often the intervals of moe_layer_model hold: simulated runs with a known slope.

    python scripts/bench/model_coverage.py --runs 2000

prints a table for docs/explanation/models-coverage.md. Tests use `simulate` with fewer runs.
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from nvtxmoe_analysis.metrics.layer_model.design import design
from nvtxmoe_analysis.metrics.layer_model.estimates import alone, batches, infer
from nvtxmoe_analysis.metrics.layer_model.samples import FEATURES, make_sample

Floats = npt.NDArray[np.float64]

FEATURE = FEATURES.index("local_active_experts")
SLOPE_NS, NOISE_NS = 1500.0, 4000.0


@dataclass(frozen=True)
class Case:
    """What is simulated.

    Attributes:
        steps, ranks: all ranks see the same feature.
        feature: ``even`` (independent), ``tail`` (alike, then falling over the last fifth of the steps, as a batch
            runs out), ``falling`` (all along), ``skewed`` (a few large values), ``two`` (two values).
        feature_memory, noise_memory: correlation of neighbouring steps, 0 to 1.
        shared: share of the noise's variance that all ranks have alike.
        noise: ``normal``, ``t2`` (Student's t with two degrees of freedom) or ``skewed`` (log-normal).
        outliers: share of rows with a large delay on top.
    """

    steps: int
    ranks: int = 1
    feature: str = "even"
    feature_memory: float = 0.0
    noise: str = "normal"
    noise_memory: float = 0.0
    shared: float = 0.0
    outliers: float = 0.0


CASES: Mapping[str, Case] = {
    "20 steps": Case(20),
    "40 steps": Case(40),
    "200 steps": Case(200),
    "40 steps, heavy tails": Case(40, noise="t2"),
    "40 steps, skewed noise": Case(40, noise="skewed"),
    "40 steps, 10 % outliers": Case(40, outliers=0.1),
    "8 steps, 8 ranks that share noise": Case(8, 8, shared=0.5),
    "40 steps, 4 ranks that share noise": Case(40, 4, shared=0.8),
    "40 steps, feature of two values": Case(40, feature="two"),
    "40 steps, skewed feature": Case(40, feature="skewed"),
    "40 steps, feature falls": Case(40, feature="falling"),
    "40 steps, feature falls at the end": Case(40, feature="tail"),
    "200 steps, feature falls at the end": Case(200, feature="tail"),
    "40 steps with memory 0.6": Case(40, feature_memory=0.8, noise_memory=0.6),
    "200 steps with memory 0.6": Case(200, feature_memory=0.8, noise_memory=0.6),
    "1000 steps with memory 0.6": Case(1000, feature_memory=0.8, noise_memory=0.6),
    "40 steps with memory 0.9": Case(40, feature_memory=0.8, noise_memory=0.9),
    "200 steps with memory 0.9": Case(200, feature_memory=0.8, noise_memory=0.9),
    "1000 steps with memory 0.9": Case(1000, feature_memory=0.8, noise_memory=0.9),
    "200 steps with memory 0.97": Case(200, feature_memory=0.8, noise_memory=0.97),
}


@dataclass(frozen=True)
class Outcome:
    """Of many runs.

    Attributes:
        coverage: share of intervals that hold the slope, of those that were given.
        half: half an interval's width, in slopes (median).
        spread: 1.96 standard deviations of the slopes found, in slopes: what half an interval would be at best.
        refused: share of runs without an interval.
    """

    coverage: float
    half: float
    spread: float
    refused: float


def simulate(case: Case, runs: int, seed: int = 0) -> Outcome:
    """Fit so many simulated runs."""
    rng = np.random.default_rng(seed)
    step = np.tile(np.arange(case.steps), case.ranks)
    rank = np.repeat(np.arange(case.ranks), case.steps)
    samples = []
    for _ in range(runs):
        values = np.ones((len(FEATURES), len(step)))
        values[FEATURE] = _feature(rng, case)[step]
        y = 20_000 + 1000.0 * rank + SLOPE_NS * values[FEATURE] + _noise(rng, case)
        samples.append(make_sample(0, "decode", values, y, rank, step))
    estimates = []
    for batch in batches(samples):
        fitted_at_once = [samples[at] for at in batch]
        estimates += [estimate.single for estimate in alone(fitted_at_once, [design(run) for run in fitted_at_once])]
    inferred = infer(estimates)
    judged = np.array([not estimate.too_few[0] for estimate in inferred])
    slope, low, high = (
        np.array([getattr(estimate, name)[0] for estimate in inferred]) for name in ("slope", "low", "high")
    )
    covered = (low <= SLOPE_NS) & (high >= SLOPE_NS)
    return Outcome(
        coverage=float(covered[judged].mean()) if judged.any() else float("nan"),
        half=float(np.median((high - low)[judged])) / 2 / SLOPE_NS if judged.any() else float("nan"),
        spread=float(1.96 * slope.std()) / SLOPE_NS,
        refused=float(1 - judged.mean()),
    )


def _feature(rng: np.random.Generator, case: Case) -> Floats:
    """Of each step, about 24 at most."""
    steps = case.steps
    if case.feature == "tail":
        last = steps // 5
        jitter = 21 + 1.5 * rng.standard_normal(steps)
        return jitter * np.append(np.ones(steps - last), np.linspace(1, 0.1, last))
    if case.feature == "falling":
        return np.asarray(24 * np.linspace(1, 0.05, steps) + rng.standard_normal(steps))
    if case.feature == "two":
        return np.where(rng.random(steps) < 0.3, 16.0, 15.0)
    even = _remembering(rng.standard_normal(steps), case.feature_memory)
    return np.asarray(6 * np.exp(even)) if case.feature == "skewed" else 16 + 4 * even


def _noise(rng: np.random.Generator, case: Case) -> Floats:
    """Of each rank's steps, one rank after the other, ns."""

    def draw() -> Floats:
        if case.noise == "t2":
            return rng.standard_t(2, case.steps)
        if case.noise == "skewed":
            return rng.lognormal(0, 1, case.steps)
        return rng.standard_normal(case.steps)

    common = _remembering(draw(), case.noise_memory)
    rank_noise = [_remembering(draw(), case.noise_memory) for _ in range(case.ranks)]
    noise = np.concatenate(
        [np.sqrt(1 - case.shared) * noise_of_rank + np.sqrt(case.shared) * common for noise_of_rank in rank_noise]
    )
    late = np.where(rng.random(len(noise)) < case.outliers, 20 * rng.exponential(size=len(noise)), 0.0)
    return np.asarray(NOISE_NS * (noise + late))


def _remembering(values: Floats, memory: float) -> Floats:
    """An autoregression of first order with the variance of ``values``."""
    out: Floats = values.copy()
    for at in range(1, len(out)) if memory else ():
        out[at] = memory * out[at - 1] + np.sqrt(1 - memory**2) * values[at]
    return out


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("--runs", type=int, default=2000)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    print("| simulated | coverage | half an interval | 1.96 x spread | refused |")
    print("| --- | --- | --- | --- | --- |")
    for name, case in CASES.items():
        outcome = simulate(case, arguments.runs, arguments.seed)
        print(
            f"| {name} | {outcome.coverage:.1%} | {outcome.half:.3f} | {outcome.spread:.3f} | {outcome.refused:.1%} |",
            flush=True,
        )


if __name__ == "__main__":
    main()
