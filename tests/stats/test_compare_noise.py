"""What is noise: blocks of steps that depend on each other, and the divergence that equal runs have."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import polars as pl
import pytest

from nvtxmoe_analysis.compare.divergence_noise import chi_square_tail, expected_noise, scatter
from nvtxmoe_analysis.compare.expert_shares import RunShares
from nvtxmoe_analysis.compare.plan import summed
from nvtxmoe_analysis.stats.block_bootstrap import Part, draws, spread
from nvtxmoe_analysis.stats.block_length import Dependence, autocovariance, cut, dependence
from nvtxmoe_analysis.stats.divergence import js_bits, js_gradient

pytestmark = pytest.mark.slow

Floats = npt.NDArray[np.float64]


# Blocks ---------------------------------------------------------------------------------------------------------------


def ar(random: np.random.Generator, steps: int, correlation: float) -> Floats:
    """A series of variance 1 that depends on the value before."""
    out = random.normal(size=steps)
    for i in range(1, steps):
        out[i] = correlation * out[i - 1] + np.sqrt(1 - correlation**2) * out[i]
    return out


def test_length_and_reach_are_those_of_theory() -> None:
    """An AR(1) has curvature / spectrum = 2 r / (1 - r^2), and its best length is (that^2 n)^(1/3)."""
    random = np.random.default_rng(1)
    for correlation in (0.5, 0.8):
        reach = 2 * correlation / (1 - correlation**2)
        found = [dependence([autocovariance(ar(random, 4000, correlation)[:, None])], 4000) for _ in range(20)]
        assert np.median([one.length for one in found]) == pytest.approx(2 * (reach**2 * 4000) ** (1 / 3), rel=0.25)
        assert np.median([one.reach for one in found]) == pytest.approx(reach, rel=0.25)
    still = [dependence([autocovariance(random.normal(size=(400, 1)))], 400) for _ in range(40)]
    assert np.median([one.length for one in still]) <= 4
    assert sum(one.reach == 0 for one in still) >= 30


def test_variance_of_blocks_is_that_of_the_mean() -> None:
    """What is drawn from blocks scatters as means of real runs do, single steps far less."""
    random = np.random.default_rng(2)
    means, errors, naive = [], [], []
    for _ in range(150):
        series = ar(random, 400, 0.8)
        found = dependence([autocovariance(series[:, None])], 400)
        sums = np.bincount(cut(400, found.length), series) / 400
        moved = draws(random, len(sums), 300) @ sums[:, None]
        part = Part(len(sums), 1 / (1 - found.missing(found.length)), moved)
        errors.append(spread(moved, [part]).error[0] ** 2)
        naive.append(series.var() / 400)
        means.append(series.mean())
    assert np.mean(errors) == pytest.approx(np.var(means), rel=0.3)
    assert np.mean(naive) < 0.3 * np.var(means)


def test_too_short_series_stand_as_single_steps() -> None:
    assert dependence([np.array([1.0, 1.0])], 2) == Dependence(1, 0.0)
    assert Dependence(4, 9.0).missing(4) == 0.5  # never more than half


def test_spread_of_what_does_not_scatter_or_is_not_there() -> None:
    part = Part(5, 1.0, np.zeros((10, 2)))
    assert spread(np.zeros((10, 2)), [part, part]).p_value(np.array([0.0, 1.0])).tolist() == [1.0, 0.0]
    gone = np.full((10, 1), np.nan)
    assert np.isnan(spread(gone, [Part(5, 1.0, gone)]).p_value(np.array([1.0]))).all()


# The divergence of equal runs -----------------------------------------------------------------------------------------


def run_shares(counts: Floats) -> RunShares:
    """Of blocks of one kind: float64 [blocks, experts]."""
    total, share = counts.sum(), counts.sum(axis=0) / counts.sum()
    off = (counts - counts.sum(axis=1, keepdims=True) * share) / total
    blocks = len(counts)
    return RunShares(counts.sum(axis=0), share, np.sqrt(blocks / (blocks - 1)) * off, (blocks,))


@pytest.mark.parametrize(
    ("experts", "blocks", "picks", "clump"),
    [(16, 40, (32, 32), 1), (64, 30, (16, 400), 1), (16, 40, (64, 64), 8), (128, 20, (6, 6), 1)],
    ids=["plain", "other loads", "clumped", "few tokens"],
)
def test_noise_is_what_equal_runs_have(experts: int, blocks: int, picks: tuple[int, int], clump: int) -> None:
    """Runs of one distribution, whose picks come in clumps: the expected noise is their mean divergence, and one in
    twenty is called significant.
    """
    random = np.random.default_rng(4)
    shares = random.dirichlet(np.full(experts, 2.0))
    found, expected, significant = [], [], 0
    for _ in range(300):
        a, b = (run_shares(clump * random.multinomial(n // clump, shares, size=blocks).astype(float)) for n in picks)
        scattered = scatter(a, b)
        noise, freedom = expected_noise(a, b, scattered, random)
        divergence = float(js_bits(a.shares, b.shares))
        significant += chi_square_tail(divergence / noise, min(freedom, scattered.freedom)) < 0.05
        found.append(divergence)
        expected.append(noise)
    assert np.mean(expected) == pytest.approx(np.mean(found), rel=0.06)
    assert significant / 300 <= 0.09


def test_certain_noise() -> None:
    assert (chi_square_tail(1.0, float("inf")), chi_square_tail(1.1, float("inf"))) == (1.0, 0.0)


def test_gradient_is_what_a_small_change_does() -> None:
    p, q = np.array([0.2, 0.3, 0.5]), np.array([0.4, 0.35, 0.25])
    for step in (np.array([1e-6, -1e-6, 0.0]), np.array([0.0, 1e-6, -1e-6])):
        change = float(js_bits(p + step, q) - js_bits(p, q))
        assert change == pytest.approx(float(step @ js_gradient(p, q)), rel=1e-3)


def test_sums_of_blocks() -> None:
    cells = pl.DataFrame({"block": [2, 0, 2], "counts": [[1, 2], [3, 4], [5, 6]]})
    assert summed(cells, 4, 2).tolist() == [[3, 4], [0, 0], [6, 8], [0, 0]]
