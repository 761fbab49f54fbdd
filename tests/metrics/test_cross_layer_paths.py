"""moe_cross_layer_paths: a planted path, all by plain Python, none by chance; its bounds against scipy."""

from __future__ import annotations

import math
from collections import Counter

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from nvtxmoe_analysis.metrics import cross_layer as module
from nvtxmoe_analysis.metrics.cross_layer import chernoff, wilson
from tests.support.sampled_tokens import Chosen, compared, ids, independent, of_layers

# Paths ---------------------------------------------------------------------------------------------------------------


def planted(seed: int = 0, tokens: int = 1500) -> Chosen:
    """Top-2 of 16: whoever has expert 3 in layer 0 has 9 in layer 1 with three in four; else all is chance."""
    chosen = independent(seed, tokens, 16, 2)
    rng = np.random.default_rng(seed)
    for key, experts in chosen[0].items():
        if 3 in experts and 9 not in chosen[1][key] and rng.random() < 0.75:
            chosen[1][key][0] = 9
    return chosen


def test_a_planted_path() -> None:
    chosen = planted()
    best = compared(chosen).paths.row(0, named=True)
    assert (best["layer_a"], best["expert_a"], best["layer_b"], best["expert_b"]) == (0, 3, 1, 9)
    with_a = {key for key, experts in chosen[0].items() if 3 in experts}
    with_b = {key for key, experts in chosen[1].items() if 9 in experts}
    assert (best["tokens"], best["tokens_a"], best["tokens_b"], best["tokens_both"]) == (
        1500, len(with_a), len(with_b), len(with_a & with_b),
    )  # fmt: skip
    assert best["probability"] == pytest.approx(len(with_a & with_b) / len(with_a))
    assert best["base_probability"] == pytest.approx(len(with_b) / 1500)
    assert best["lift"] == pytest.approx(best["probability"] / best["base_probability"])
    interval = stats.binomtest(len(with_a & with_b), len(with_a)).proportion_ci(method="wilson")
    assert (best["probability_low"], best["probability_high"]) == pytest.approx(tuple(interval), rel=1e-6)
    assert best["adjacent"] is True


def test_ids_of_experts_are_those_of_the_model() -> None:
    """Also where not every expert got a token."""
    rows = [[[100 + t % 2] for t in range(200)], [[7 * (1 + t % 2)] for t in range(200)]]
    paths = compared(of_layers(rows)).paths
    assert set(paths.select("expert_a", "expert_b").rows()) == {(100, 7), (101, 14)}


def test_all_paths_by_plain_python() -> None:
    """Every strong path, in order; none with fewer than five tokens, below chance, or likely by chance."""
    chosen = planted(tokens=700)
    found = compared(chosen).paths
    pairs: Counter[tuple[int, int]] = Counter()
    of_a: Counter[int] = Counter()
    of_b: Counter[int] = Counter()
    for a, b in zip(ids(chosen, 0), ids(chosen, 1), strict=True):
        pairs.update((x, y) for x in a for y in b)
        of_a.update(a)
        of_b.update(b)
    wanted = []
    for (x, y), number in pairs.items():
        expected = of_a[x] * of_b[y] / 700
        bound = 16 * 16 * math.exp(number - expected) * (expected / number) ** number
        if number >= 5 and number > expected and bound <= 0.05:
            wanted.append((-number * math.log2(number / expected), x, y, number, bound))
    assert [(row["expert_a"], row["expert_b"], row["tokens_both"]) for row in found.rows(named=True)] == [
        (x, y, number) for _, x, y, number, _ in sorted(wanted)
    ]
    assert found["p_value"].to_list() == pytest.approx([bound for *_, bound in sorted(wanted)], rel=1e-6)
    assert 0 < len(found) <= module.ADJACENT_PATHS


def test_at_most_so_many_paths() -> None:
    rows = [[[t % 32] for t in range(3200)] for _ in range(3)]
    paths = compared(of_layers(rows)).paths
    assert paths.group_by("layer_a", "layer_b", maintain_order=True).len().rows() == [
        (0, 1, module.ADJACENT_PATHS), (0, 2, module.OTHER_PATHS), (1, 2, module.ADJACENT_PATHS),
    ]  # fmt: skip


def test_chance_makes_no_paths() -> None:
    """Of 100 unconnected pairs of layers fewer than one in twenty may show one."""
    seen = [len(compared(independent(seed, 300, 16, 2)).paths) > 0 for seed in range(100)]
    assert sum(seen) <= 5


@given(st.integers(1, 60), st.integers(1, 60), st.integers(60, 200), st.data())
def test_the_bound_holds(of_a: int, of_b: int, tokens: int, data: st.DataObject) -> None:
    """It is never below the exact chance, of draws without replacement and of Poisson's."""
    hits = data.draw(st.integers(1, min(of_a, of_b)))
    expected = of_a * of_b / tokens
    (bound,) = chernoff(np.array([hits]), np.array([expected]))
    assert bound >= stats.hypergeom.sf(hits - 1, tokens, of_a, of_b) - 1e-12
    if hits > expected:
        assert bound >= stats.poisson.sf(hits - 1, expected) - 1e-12
        assert bound < 1


@given(st.integers(1, 500), st.data())
def test_wilson(tries: int, data: st.DataObject) -> None:
    hits = data.draw(st.integers(0, tries))
    low, high = wilson(np.array([hits]), np.array([tries]))
    interval = stats.binomtest(hits, tries).proportion_ci(method="wilson")
    assert (low[0], high[0]) == pytest.approx(tuple(interval), rel=1e-6, abs=1e-9)
