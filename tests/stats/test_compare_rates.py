"""Rates of false and of true claims of a comparison, over many pairs of made-up runs.

Two runs of the same thing may be called different in 5 %; a test allows 8 % of 200 draws. "Can't tell" is no claim.
``TEST_DRAWS=1000 TEST_SEED=7`` draws more than the 200 of a usual run, and others.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from nvtxmoe_analysis.compare.divergence_noise import expected_noise, noise_tail, scatter
from nvtxmoe_analysis.compare.expert_shares import RunShares, share_moves
from nvtxmoe_analysis.stats.divergence import js_bits
from nvtxmoe_analysis.stats.long_run import cosine_sums, drifts
from tests.support.compare_simulations import Floats, Timed, memory, rates
from tests.support.rates import DRAWS, SEED

pytestmark = pytest.mark.slow

MOST_FALSE = 0.08
LOAD = Timed()


@pytest.mark.parametrize("steps", [300, 1000])
def test_time_per_token_when_batches_have_memory(steps: int) -> None:
    """The mean batch is unsure when batches resemble each other, and time per token depends on it."""
    found = rates("kernel_time_per_token", replace(LOAD, steps=steps, batch_memory=0.95))
    assert max(found.whole, found.others) <= MOST_FALSE
    if steps == 1000:
        assert found.undecided <= 0.35
        assert found.covered >= 0.9


def test_time_per_token_of_independent_batches() -> None:
    found = rates("kernel_time_per_token", LOAD)
    assert found.whole <= MOST_FALSE
    assert found.undecided <= 0.08


@pytest.mark.parametrize(
    "load",
    [
        replace(LOAD, noise=0.03, own_noise=0.02, walk=0.02),
        replace(LOAD, walk=0.02),
        replace(LOAD, steps=1000, walk=0.02),
    ],
    ids=["300 steps", "300 steps, more noise", "1000 steps"],
)
def test_a_slow_walk_of_the_clock_is_no_difference(load: Timed) -> None:
    """The walk lasts about as long as the run: how far it goes can't be told."""
    found = rates("kernel_time", load)
    assert max(found.whole, found.slow, found.others) <= MOST_FALSE
    assert found.undecided >= 0.5


@pytest.mark.parametrize(("correlation", "least"), [(0.0, 0.95), (0.6, 0.8)])
def test_a_slower_layer_is_found(correlation: float, least: float) -> None:
    """5 % more time in one of three layers, without and with memory of the noise."""
    found = rates("kernel_time", replace(LOAD, noise_memory=correlation), slow=1.05)
    # a rate of `least` is not refuted at 5 %: TEST_DRAWS=1000 measures it closer
    assert found.slow >= least - 1.65 * (least * (1 - least) / DRAWS) ** 0.5
    assert found.others <= MOST_FALSE
    assert found.covered >= 0.92


@pytest.mark.parametrize("steps", [300, 1000])
def test_intervals_when_noise_has_long_memory(steps: int) -> None:
    found = rates("kernel_time", replace(LOAD, steps=steps, noise_memory=0.9))
    assert found.whole <= MOST_FALSE
    assert found.covered >= 0.92


# The divergence of routing --------------------------------------------------------------------------------------------


def routed(
    random: np.random.Generator, shares: Floats, steps: int, correlation: float, moved: float = 0.0
) -> RunShares:
    """Shares of a run whose experts' popularity scatters by 30 %; ``moved`` goes to expert 0."""
    of_step = (shares * (1.0 - moved) + moved * (np.arange(len(shares)) == 0)) * np.exp(
        0.3 * memory(random, (steps, len(shares)), correlation)
    )
    of_step /= of_step.sum(axis=1, keepdims=True)
    counts = random.multinomial(2 * random.integers(8, 25, steps), of_step).astype(np.float64)
    share, moves = share_moves(counts)
    return RunShares(counts.sum(axis=0), share, cosine_sums(moves))


def divergence_rates(steps: int, correlation: float, moved: float = 0.0, experts: int = 16) -> tuple[float, float]:
    """Share of the draws in which a layer's routing is called different, and in which nothing is told."""
    random = np.random.default_rng(2 + SEED)
    shares = random.dirichlet(np.full(experts, 2.0))
    claimed, undecided = 0, 0
    for _ in range(DRAWS):
        a, b = routed(random, shares, steps, correlation), routed(random, shares, steps, correlation, moved)
        found = scatter(a, b)
        noise, freedom = expected_noise(a, b, found, random)
        of_a, of_b = found.drift
        if drifts(np.array([of_a]), np.array([of_b]))[0]:
            undecided += 1
            continue
        quotient = float(js_bits(a.shares, b.shares)) / noise
        claimed += noise_tail(quotient, min(freedom, found.freedom), found.noise_freedom) < 0.05
    return claimed / DRAWS, undecided / DRAWS


@pytest.mark.parametrize("steps", [300, 1000])
@pytest.mark.parametrize("correlation", [0.0, 0.8])
def test_routing_whose_popularity_has_memory(steps: int, correlation: float) -> None:
    claimed, undecided = divergence_rates(steps, correlation)
    assert claimed <= MOST_FALSE
    assert undecided <= 0.15


@pytest.mark.parametrize("correlation", [0.0, 0.8])
def test_routing_of_many_experts_in_few_steps(correlation: float) -> None:
    claimed, undecided = divergence_rates(60, correlation, experts=64)
    assert claimed <= MOST_FALSE
    assert undecided <= 0.3


@pytest.mark.parametrize(("correlation", "moved"), [(0.0, 0.05), (0.8, 0.1)])
def test_moved_routing_is_found(correlation: float, moved: float) -> None:
    claimed, _ = divergence_rates(300, correlation, moved)
    assert claimed >= 0.8
