"""Rates of false and of true claims of the layer model, over many simulated layers.

A slope may be claimed falsely in 5 %; a test allows 8 % of 200 draws. TEST_DRAWS sets the number of draws.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import numpy.typing as npt
import pytest

from nvtxmoe_analysis.metrics.layer_model.choice import ALIKE, EXPLAINS, Choice
from tests.support.layer_model_simulations import ramp, simulated, wandering

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]

pytestmark = pytest.mark.slow

MOST_FALSE = 0.08
#: Time of a step without its cause, and the noise.
BASE_NS, NOISE_NS = 30_000.0, 300.0
#: Batches that vLLM's graphs are captured for.
GRAPHS = np.array([1, 2, 4, *range(8, 257, 8)])


def claimed(choices: list[Choice]) -> float:
    """Share of the draws in which some feature is said to explain the time."""
    return float(np.mean([choice.best.status in (EXPLAINS, ALIKE) for choice in choices]))


def added(choices: list[Choice]) -> float:
    """Share of the draws in which a second feature is said to add to the first."""
    return float(np.mean([any(term.status == EXPLAINS for term in choice.added) for choice in choices]))


# Drift ----------------------------------------------------------------------------------------------------------------


def slower(share: Floats) -> Floats:
    """Time per step of a clock that has lost this share of its rate."""
    return BASE_NS / (1 - share)


def linear(steps: int, share: float) -> Floats:
    return share * np.arange(steps) / steps


def settling(steps: int, share: float) -> Floats:
    return share * (1 - np.exp(-3 * np.arange(steps) / steps))


@pytest.mark.parametrize("falls", [linear, settling])
def test_a_clock_that_falls_while_batches_fill(falls: Callable[[int, float], Floats]) -> None:
    """The clock loses 5 %, batches grow from 4 to 64, routing costs nothing."""
    choices = simulated(ramp, lambda tokens, _: slower(falls(len(tokens), 0.05)), NOISE_NS)
    assert claimed(choices) <= MOST_FALSE


def test_a_clock_that_falls_while_batches_wander() -> None:
    choices = simulated(wandering, lambda tokens, _: slower(linear(len(tokens), 0.02)), NOISE_NS)
    assert claimed(choices) <= MOST_FALSE


def throttled(tokens: Ints, memory_steps: float = 20) -> Floats:
    """Time under a clock that follows the load of the steps before, by 5 % of its rate per mean load."""
    heat, share = float(tokens.mean()), np.zeros(len(tokens))
    for step, load in enumerate(tokens.tolist()):
        share[step] = 0.05 * (heat / tokens.mean() - 1)
        heat += (load - heat) / memory_steps
    return slower(share)


def test_a_clock_that_follows_load() -> None:
    choices = simulated(wandering, lambda tokens, _: throttled(tokens), NOISE_NS)
    assert claimed(choices) <= MOST_FALSE


def test_a_small_cost_is_found_without_drift() -> None:
    """Each activation costs 5 ns, under noise of 300 ns per step and batches that change slowly."""
    choices = simulated(wandering, lambda _, features: BASE_NS + 5 * features["local_activations"], NOISE_NS)
    assert claimed(choices) >= 0.95


# A second feature -----------------------------------------------------------------------------------------------------


def test_stairs_of_padded_batches_are_no_second_feature() -> None:
    def padded(tokens: Ints, _: dict[str, Floats]) -> Floats:
        return 10_000 + 300.0 * GRAPHS[np.searchsorted(GRAPHS, tokens)]

    assert added(simulated(wandering, padded, NOISE_NS, seed=1)) <= MOST_FALSE


def test_a_curve_in_active_experts_is_no_second_feature() -> None:
    def curved(_: Ints, features: dict[str, Floats]) -> Floats:
        return BASE_NS + 6000 * np.sqrt(features["local_active_experts"])

    choices = simulated(wandering, curved, NOISE_NS, seed=2)
    assert {choice.best.feature for choice in choices} == {"local_active_experts"}
    assert added(choices) <= MOST_FALSE


@pytest.mark.parametrize(("second", "ns"), [("cv", 8000.0), ("local_max_count", 300.0)])
def test_a_real_second_feature_is_found(second: str, ns: float) -> None:
    """Beside active experts; of features that move together another may be named."""

    def both(_: Ints, features: dict[str, Floats]) -> Floats:
        return 20_000 + 1500 * features["local_active_experts"] + ns * features[second]

    assert added(simulated(wandering, both, NOISE_NS, draws=60, seed=3, popularity=0.8)) >= 0.9
