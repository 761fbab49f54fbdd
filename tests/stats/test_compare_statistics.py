"""Comparisons over many runs: false alarms, coverage of intervals, and the tools against scipy."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import numpy.typing as npt
import polars as pl
import pytest
from scipy import stats
from scipy.spatial.distance import jensenshannon

from nvtxmoe_analysis.compare.compare import Comparison, compare
from nvtxmoe_analysis.compare.divergence_noise import noise_tail
from nvtxmoe_analysis.stats.divergence import js_bits, js_terms
from nvtxmoe_analysis.stats.welch import spread
from tests.support.compare_runs import Load, make_results

Floats = npt.NDArray[np.float64]
RUNS = 24
#: So many of RUNS a rate of 5 % passes once in 5,000.
MOST = int(stats.binom.ppf(1 - 1 / 5000, RUNS, 0.05))


def pairs(folder: Path, a: Load, b: Load, seed: int = 100) -> list[Comparison]:
    """Comparisons of RUNS pairs of runs."""
    found = []
    for i in range(RUNS):
        one = make_results(folder / f"a{i}", a, seed + 2 * i)
        other = make_results(folder / f"b{i}", b, seed + 2 * i + 1)
        found.append(compare(one, other))
    return found


def alarms(found: list[Comparison]) -> dict[str, int]:
    """In how many comparisons something is called significant: all layers together, and any layer."""
    out: dict[str, int] = {}
    for one in found:
        tables = {str(name): rows for (name,), rows in one.metrics.group_by("metric")} | {"js": one.activations}
        for name, rows in tables.items():
            there = rows.filter(pl.col("step_kind") == "all", pl.col("significant"))
            layers = there["layer_idx"].is_not_null()
            out[name] = out.get(name, 0) + int((~layers).any())
            out[f"layer_{name}"] = out.get(f"layer_{name}", 0) + int(layers.any())
        out["experts"] = out.get("experts", 0) + int(one.experts["significant"].fill_null(False).any())
    return out


@pytest.mark.slow
def test_runs_of_the_same_thing(tmp_path: Path) -> None:
    load = Load(steps=60, experts=8, layers=3)
    found = alarms(pairs(tmp_path, load, load))
    assert {"kernel_time", "layer_kernel_time", "imbalance", "layer_js", "experts", "step_time"} <= set(found)
    assert max(found.values()) <= MOST, found


@pytest.mark.slow
def test_runs_of_the_same_thing_whose_steps_are_alike(tmp_path: Path) -> None:
    """Noise that lasts from step to step: drawing single steps would call about every third pair different."""
    load = Load(steps=200, experts=8, layers=2, correlation=0.7)
    found = pairs(tmp_path, load, load)
    assert max(alarms(found).values()) <= MOST, alarms(found)
    naive = 0
    for one in found:
        means, errors = [], []
        for side in one.runs:
            assert side.times is not None
            steps = side.times.group_by("step").agg(pl.col("kernel_time_ns").sum(), pl.col("num_tokens").first())
            y = steps["kernel_time_ns"].to_numpy() / (20_000 + 150 * steps["num_tokens"].to_numpy())
            means.append(y.mean())
            errors.append(y.var(ddof=1) / len(y))
        naive += abs(means[1] - means[0]) > 1.96 * np.sqrt(sum(errors))
    assert naive > MOST


@pytest.mark.slow
def test_a_planted_change_lies_in_its_interval(tmp_path: Path) -> None:
    """8 % more kernel time in every layer, and other numbers of tokens, which must not count."""
    slow = dict.fromkeys(range(2), 1.08)
    found = pairs(tmp_path, Load(layers=2, experts=8), Load(layers=2, experts=8, slow=slow, tokens=(12, 30)))
    rows = [
        one.metrics.filter(metric="kernel_time", step_kind="all").filter(pl.col("layer_idx").is_null()) for one in found
    ]
    whole = pl.concat(rows)
    inside = whole.filter(pl.col("change_pct_ci_low") <= 8.0, pl.col("change_pct_ci_high") >= 8.0)
    assert len(inside) >= RUNS - MOST
    assert whole["change_pct"].mean() == pytest.approx(8.0, abs=0.7)
    assert whole["significant"].sum() >= RUNS - 2
    assert (whole["change_pct_ci_high"] - whole["change_pct_ci_low"]).max() < 13.0


# Tools ----------------------------------------------------------------------------------------------------------------


def test_tail_of_the_noise() -> None:
    """Near the limits that matter; further out it is too large, the more so the fewer degrees of freedom."""
    for freedom, far in ((3.0, 0.14), (15.0, 0.05), (255.0, 0.01)):
        for p, near in ((0.5, 0.02), (0.05, 0.02), (0.01, 0.02), (0.001, far)):
            quotient = stats.chi2.isf(p, freedom) / freedom
            assert noise_tail(quotient, freedom) == pytest.approx(p, rel=near), (freedom, p)
    for freedom, of_noise in ((15.0, 100.0), (60.0, 400.0)):
        for p in (0.5, 0.05, 0.01):
            assert noise_tail(stats.f.isf(p, freedom, of_noise), freedom, of_noise) == pytest.approx(p, rel=0.03)


def test_divergence_is_scipys() -> None:
    p, q = np.random.default_rng(1).dirichlet(np.ones(16), 2)
    p[3] = 0.0
    p /= p.sum()
    assert js_bits(p, q) == pytest.approx(jensenshannon(p, q, base=2) ** 2, rel=1e-12)
    assert js_terms(p, q).min() >= 0
    assert float(js_bits(p, p)) == 0.0
    assert float(js_bits(np.eye(2)[0], np.eye(2)[1])) == 1.0


def test_the_spread_of_means_is_welchs() -> None:
    random = np.random.default_rng(3)
    a, b = random.normal(0, 1, 12), random.normal(0.5, 2, 20)
    found = spread(np.array([[x.var(ddof=1) / len(x)] for x in (a, b)]), np.array([[len(x) - 1.0] for x in (a, b)]))
    welch = stats.ttest_ind(b, a, equal_var=False)
    assert found.df[0] == pytest.approx(welch.df, rel=1e-9)
    assert found.p_value(np.array([b.mean() - a.mean()]))[0] == pytest.approx(welch.pvalue, rel=1e-9)
    low, high = welch.confidence_interval()
    assert 2 * found.half_width(0.95)[0] == pytest.approx(high - low, rel=1e-6)
