"""Noise: sums over steps that depend on each other, and the divergence that equal runs have."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import polars as pl
import pytest

from nvtxmoe_analysis.compare.divergence_noise import expected_noise, noise_tail, scatter
from nvtxmoe_analysis.compare.expert_shares import RunShares, share_moves, summed
from nvtxmoe_analysis.stats.divergence import js_bits, js_gradient
from nvtxmoe_analysis.stats.long_run import LongRun, cosine_number, cosine_sums, drifts, long_run
from nvtxmoe_analysis.stats.welch import spread
from tests.support.compare_simulations import memory
from tests.support.rates import at_most

pytestmark = pytest.mark.slow

Floats = npt.NDArray[np.float64]
#: Of pairs of runs: so many for their mean to be near what is expected.
DRAWS = 100


# The variance of sums over steps --------------------------------------------------------------------------------------


def long_runs(steps: int, correlation: float, columns: int = 400) -> tuple[LongRun, Floats]:
    """Of series of variance 1: what is estimated, and the sums."""
    series = memory(np.random.default_rng(2), (steps, columns), correlation)
    return long_run(np.square(cosine_sums(series))), series.sum(axis=0)


def test_cosines_of_independent_steps_have_the_variance_of_the_sum() -> None:
    series = np.random.default_rng(1).normal(5.0, 1.0, (200, 500))
    sums = cosine_sums(series)
    assert sums.shape == (24, 500)
    assert np.square(sums).mean() == pytest.approx(200, rel=0.03)
    assert np.abs(cosine_sums(np.ones((50, 1)))).max() < 1e-9
    assert [cosine_number(steps) for steps in (8, 40, 1000)] == [4, 10, 24]


@pytest.mark.parametrize("correlation", [0.0, 0.6, 0.8])
def test_estimated_variance_is_that_of_the_sums(correlation: float) -> None:
    """A stationary AR(1) has (1 + r) / (1 - r) times the variance of independent steps."""
    found, sums = long_runs(1000, correlation)
    truth = 1000 * (1 + correlation) / (1 - correlation)
    assert sums.var() == pytest.approx(truth, rel=0.2)
    assert 0.9 * truth < np.median(found.variance) < 1.4 * truth
    assert np.median(found.df) > 8


def test_drift_shows_and_short_memory_is_none() -> None:
    still, _ = long_runs(300, 0.0)
    short, _ = long_runs(300, 0.6)
    long, _ = long_runs(300, 0.99)
    assert drifts(still.drift[:200], still.drift[200:]).mean() <= 0.08
    assert drifts(short.drift[:200], short.drift[200:]).mean() <= 0.08
    assert drifts(long.drift[:200], long.drift[200:]).mean() >= 0.9
    # Each of many columns needs stronger evidence.
    assert drifts(np.array([10.0]), np.array([0.1]))[0] and not drifts(np.array([10.0]), np.array([0.1]), 3)[0]


def test_series_that_do_not_scatter() -> None:
    found = long_run(np.zeros((4, 2)))
    assert (found.variance.tolist(), found.drift.tolist()) == ([0.0, 0.0], [0.0, 0.0])
    nothing = spread(np.zeros((2, 2)), np.full((2, 2), 8.0))
    assert nothing.p_value(np.array([0.0, 1.0])).tolist() == [1.0, 0.0]


# The divergence of equal runs -----------------------------------------------------------------------------------------


def run_shares(counts: Floats) -> RunShares:
    """Of one kind of step: float64 [steps, experts]."""
    share, moves = share_moves(counts)
    return RunShares(counts.sum(axis=0), share, cosine_sums(moves))


@pytest.mark.parametrize(
    ("experts", "steps", "picks", "clump"),
    [(16, 40, (32, 32), 1), (64, 30, (16, 400), 1), (16, 40, (64, 64), 8), (128, 20, (6, 6), 1)],
    ids=["plain", "other loads", "clumped", "few tokens"],
)
def test_noise_is_what_equal_runs_have(experts: int, steps: int, picks: tuple[int, int], clump: int) -> None:
    """Runs of one distribution, whose picks come in clumps: the expected noise is their mean divergence, and one in
    twenty is called significant.
    """
    random = np.random.default_rng(4)
    shares = random.dirichlet(np.full(experts, 2.0))
    found, expected, significant = [], [], 0
    for _ in range(DRAWS):
        a, b = (run_shares(clump * random.multinomial(n // clump, shares, size=steps).astype(float)) for n in picks)
        scattered = scatter(a, b)
        noise, freedom = expected_noise(a, b, scattered, random)
        divergence = float(js_bits(a.shares, b.shares))
        significant += noise_tail(divergence / noise, min(freedom, scattered.freedom), scattered.noise_freedom) < 0.05
        found.append(divergence)
        expected.append(noise)
    # A few dozen steps can't exclude memory, so the expectation is a little large.
    assert 0.94 < np.mean(expected) / np.mean(found) < 1.12
    assert significant / DRAWS <= at_most(0.05, DRAWS)


def test_certain_noise() -> None:
    assert (noise_tail(1.0, float("inf")), noise_tail(1.1, float("inf"))) == (1.0, 0.0)


def test_gradient_is_what_a_small_change_does() -> None:
    p, q = np.array([0.2, 0.3, 0.5]), np.array([0.4, 0.35, 0.25])
    for step in (np.array([1e-6, -1e-6, 0.0]), np.array([0.0, 1e-6, -1e-6])):
        change = float(js_bits(p + step, q) - js_bits(p, q))
        assert change == pytest.approx(float(step @ js_gradient(p, q)), rel=1e-3)


def test_sums_by_place() -> None:
    cells = pl.DataFrame({"place": [2, 0, 2], "counts": [[1, 2], [3, 4], [5, 6]]})
    assert summed(cells, 4, 2).tolist() == [[3, 4], [0, 0], [6, 8], [0, 0]]
