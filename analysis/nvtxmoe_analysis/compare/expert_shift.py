"""Whether tokens went to other experts: Jensen-Shannon divergence of each layer, and the experts that moved most.

The divergence of two samples of one distribution is not 0: it grows as samples shrink. So beside it stands the noise,
what such samples give when nothing differs (``noise``), and the excess over it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import reduce
from operator import add

import numpy as np
import polars as pl

from nvtxmoe_analysis.compare.divergence_noise import Scatter, expected_noise, noise_tail, scatter
from nvtxmoe_analysis.compare.expert_shares import RunShares, by_kind_and_layer, shares_of
from nvtxmoe_analysis.compare.plan import Kind
from nvtxmoe_analysis.compare.runs import Run
from nvtxmoe_analysis.compare.step_moves import drift_reason
from nvtxmoe_analysis.compare.tables import ACTIVATIONS, ALL, EXPERTS, finished
from nvtxmoe_analysis.core.arrays import Bools, Floats
from nvtxmoe_analysis.stats import student_t
from nvtxmoe_analysis.stats.divergence import js_bits, js_terms
from nvtxmoe_analysis.stats.long_run import drifts
from nvtxmoe_analysis.stats.multiple_testing import holm
from nvtxmoe_analysis.stats.welch import spread


@dataclass(frozen=True)
class _Layer:
    """Divergence of one layer, or the mean of all: bits; NaN where a run has no counts.

    Attributes:
        noise: expected when nothing differs.
        freedom: of the noise, when single assignments are drawn.
        scatter: None where nothing can be said about significance.
    """

    bits: float
    noise: float = float("nan")
    freedom: float = float("nan")
    scatter: Scatter | None = None

    @property
    def tail(self) -> float:
        """Degrees of freedom of the noise: steps scatter in fewer directions than assignments."""
        return self.freedom if self.scatter is None else min(self.freedom, self.scatter.freedom)

    @property
    def drift(self) -> tuple[float, float]:
        """Evidence of each run that its routing drifts; 0 where nothing is known."""
        return (0.0, 0.0) if self.scatter is None else self.scatter.drift


def compare_activations(
    runs: tuple[Run, Run],
    kinds: Sequence[Kind],
    layers: Sequence[int],
    confidence: float,
    random: np.random.Generator,
) -> tuple[pl.DataFrame, pl.DataFrame]:
    """Divergence of all layers (their mean) and of each, over all kinds of step and of each: ACTIVATIONS; and every
    expert of every layer, over all kinds: EXPERTS, the largest terms first.
    """
    sure = [kind for kind in kinds if kind.silent is None]
    scopes = {ALL: sure or list(kinds), **{kind.name: [kind] for kind in kinds}}
    cells = [by_kind_and_layer(side) for side in runs]
    results: dict[str, list[_Layer]] = {name: [] for name in scopes}
    shares: list[tuple[RunShares, RunShares] | None] = []
    for layer in layers:
        width = runs[0].experts[layer][0]
        for name, members in scopes.items():
            a, b = (shares_of(members, cells_of_run, run, layer, width) for run, cells_of_run in enumerate(cells))
            both = None if a is None or b is None else (a, b)
            silent = any(kind.silent for kind in members)
            results[name].append(_Layer(float("nan")) if both is None else _layer(*both, silent, random))
            if name == ALL:
                shares.append(both)
    rows = [_rows(name, members, results[name], layers, confidence) for name, members in scopes.items() if members]
    undecided = _undecided([_mean(results[ALL]), *results[ALL]])[1:]
    experts = [
        _experts(layer, *both, layer_result.scatter if not gone else None, confidence)
        for layer, both, layer_result, gone in zip(layers, shares, results[ALL], undecided, strict=True)
        if both is not None
    ]
    return pl.concat([pl.DataFrame(schema=ACTIVATIONS), *rows]), _ranked(experts, 1.0 - confidence)


def _layer(a: RunShares, b: RunShares, silent: bool, random: np.random.Generator) -> _Layer:
    divergence = float(js_bits(a.shares, b.shares))
    if silent:
        return _Layer(divergence)
    scattered = scatter(a, b)
    noise, freedom = expected_noise(a, b, scattered, random)
    return _Layer(divergence, noise, freedom, scattered)


def _mean(layers: Sequence[_Layer]) -> _Layer:
    """The mean of layers. Their steps are the same ones, which their scatters together know."""
    known = [result for result in layers if not np.isnan(result.bits)]
    if not known:
        return _Layer(float("nan"))
    mean_bits = float(np.mean([result.bits for result in known]))
    scatters = [result.scatter for result in known if result.scatter is not None]
    if len(scatters) < len(known):
        return _Layer(mean_bits)
    noises = np.array([result.noise for result in known])
    variance = (2.0 * noises**2 / np.array([result.freedom for result in known])).sum()
    freedom = 2.0 * noises.sum() ** 2 / variance if variance > 0 else float("inf")
    return _Layer(mean_bits, float(noises.mean()), float(freedom), reduce(add, scatters))


def _rows(
    name: str, kinds: Sequence[Kind], results: Sequence[_Layer], layers: Sequence[int], confidence: float
) -> pl.DataFrame:
    all_results = [_mean(results), *results]
    values, noise = (np.array([getattr(result, what) for result in all_results]) for what in ("bits", "noise"))
    columns = {"js_bits": values, "noise_bits": noise, "excess_bits": np.maximum(values - noise, 0.0)}
    silent = next((kind.silent for kind in kinds if kind.silent is not None), None)
    reasons: list[str | None] = [silent] * len(all_results)
    if silent is None:
        undecided = _undecided(all_results)
        count = np.array([sum(not np.isnan(result.bits) for result in results), *[1] * len(results)])
        error = np.array([_error(result, n) for result, n in zip(all_results, count, strict=True)])
        half = np.where(undecided, np.nan, error * student_t.quantile(confidence, _least(all_results)))
        columns |= {
            "ci_low": np.maximum(values - noise - half, 0.0),
            "ci_high": np.maximum(values - noise + half, 0.0),
            "p_value": np.where(undecided, np.nan, [_p_value(result) for result in all_results]),
        }
        steps = (sum(kind.steps[0] for kind in kinds), sum(kind.steps[1] for kind in kinds))
        reasons = [
            drift_reason("routing", name, steps, result.drift) if gone else None
            for result, gone in zip(all_results, undecided, strict=True)
        ]
    nothing = f"no {name} steps with counts in both runs"
    reasons = [nothing if np.isnan(value) else why for value, why in zip(values, reasons, strict=True)]
    return finished(columns, ACTIVATIONS, layers, reasons, 1.0 - confidence, step_kind=name)


def _least(all_results: Sequence[_Layer]) -> Floats:
    """Degrees of freedom of the divergence's own slope: the fewer cosines of the two runs, [layers]."""
    return np.array([1.0 if result.scatter is None else min(result.scatter.between.shape) for result in all_results])


def _undecided(all_results: Sequence[_Layer]) -> Bools:
    """Where drift of the routing leaves the divergence undecided. Drift of all layers together is drift of each."""
    a, b = (np.array([result.drift[run] for result in all_results]) for run in (0, 1))
    mean = drifts(a[:1], b[:1])
    return np.concatenate([mean, drifts(a[1:], b[1:], max(1, len(all_results) - 1)) | mean])


def _p_value(result: _Layer) -> float:
    if result.scatter is None or np.isnan(result.bits):
        return float("nan")
    if result.noise <= 0:
        return 1.0 if result.bits <= 0 else 0.0
    return noise_tail(result.bits / result.noise, result.tail, result.scatter.noise_freedom)


def _error(result: _Layer, layers: int) -> float:
    """Standard error of the divergence in bits: its slope along the shares' scatter, and the noise's own."""
    if result.scatter is None:
        return float("nan")
    return float(np.sqrt(result.scatter.slope_variance / layers**2 + 2.0 * result.noise**2 / result.tail))


def _experts(layer: int, a: RunShares, b: RunShares, scattered: Scatter | None, confidence: float) -> pl.DataFrame:
    """Rows of EXPERTS of one layer, without adjustment; no p-values where ``scattered`` is None."""
    difference = b.shares - a.shares
    half = p = np.full(len(difference), np.nan)
    if scattered is not None:
        cosines = [len(run.pulls) for run in (a, b)]
        variances = [
            grown * np.square(run.pulls).sum(axis=0) / number
            for grown, run, number in zip(scattered.growth, (a, b), cosines, strict=True)
        ]
        uncertainty = spread(np.stack(variances), np.array(cosines, dtype=np.float64)[:, None])
        p, half = uncertainty.p_value(difference), uncertainty.half_width(confidence)
    return pl.DataFrame(
        {
            "layer_idx": np.full(len(difference), layer, dtype=np.int64),
            "expert_id": np.arange(len(difference), dtype=np.int64),
            "share_a_pct": 100.0 * a.shares,
            "share_b_pct": 100.0 * b.shares,
            "difference_pct": 100.0 * difference,
            "ci_low": 100.0 * (difference - half),
            "ci_high": 100.0 * (difference + half),
            "js_bits": js_terms(a.shares, b.shares),
            "p_value": p,
        }
    )


def _ranked(experts: Sequence[pl.DataFrame], alpha: float) -> pl.DataFrame:
    """With Holm's adjustment over all experts of all layers."""
    if not experts:
        return pl.DataFrame(schema=EXPERTS)
    all_experts = pl.concat(experts)
    return (
        all_experts.with_columns(p_adjusted=holm(all_experts["p_value"].to_numpy()[None])[0])
        .with_columns(pl.when(pl.col(pl.Float64).is_finite()).then(pl.col(pl.Float64)))
        .with_columns(significant=pl.col("p_adjusted") < alpha)
        .select(*EXPERTS)
        .sort(["js_bits", "layer_idx", "expert_id"], descending=[True, False, False])
    )
