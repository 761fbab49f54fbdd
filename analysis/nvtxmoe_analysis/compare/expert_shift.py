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

from nvtxmoe_analysis.compare.divergence_noise import Scatter, chi_square_tail, expected_noise, scatter
from nvtxmoe_analysis.compare.expert_shares import RunShares, by_kind_and_layer, shares_of
from nvtxmoe_analysis.compare.plan import Kind
from nvtxmoe_analysis.compare.runs import Run
from nvtxmoe_analysis.compare.tables import ACTIVATIONS, ALL, EXPERTS, finished
from nvtxmoe_analysis.core.arrays import Floats
from nvtxmoe_analysis.stats import student_t
from nvtxmoe_analysis.stats.divergence import js_bits, js_terms
from nvtxmoe_analysis.stats.multiple_testing import holm


@dataclass(frozen=True)
class _Layer:
    """Divergence of one layer, or the mean of all: bits; NaN where a run has no counts.

    Attributes:
        noise: expected when nothing differs.
        freedom: of the noise, when single assignments are drawn.
        scatter: None where nothing can be said about significance.
    """

    found: float
    noise: float = float("nan")
    freedom: float = float("nan")
    scatter: Scatter | None = None

    @property
    def tail(self) -> float:
        """Degrees of freedom of the noise: steps scatter in fewer directions than assignments."""
        return self.freedom if self.scatter is None else min(self.freedom, self.scatter.freedom)


def compare_activations(
    sides: tuple[Run, Run],
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
    cells = [by_kind_and_layer(side) for side in sides]
    found: dict[str, list[_Layer]] = {name: [] for name in scopes}
    experts = []
    for layer in layers:
        width = sides[0].experts[layer][0]
        for name, members in scopes.items():
            a, b = (shares_of(members, one, run, layer, width) for run, one in enumerate(cells))
            silent = any(kind.silent for kind in members)
            if a is None or b is None:
                found[name].append(_Layer(float("nan")))
                continue
            found[name].append(_layer(a, b, silent, random))
            if name == ALL:
                experts.append(_experts(layer, a, b, silent, confidence))
    rows = [_rows(name, members, found[name], layers, confidence) for name, members in scopes.items() if members]
    return pl.concat([pl.DataFrame(schema=ACTIVATIONS), *rows]), _ranked(experts, 1.0 - confidence)


def _layer(a: RunShares, b: RunShares, silent: bool, random: np.random.Generator) -> _Layer:
    found = float(js_bits(a.shares, b.shares))
    if silent:
        return _Layer(found)
    scattered = scatter(a, b)
    noise, freedom = expected_noise(a, b, scattered, random)
    return _Layer(found, noise, freedom, scattered)


def _mean(layers: Sequence[_Layer]) -> _Layer:
    """The mean of layers. Their steps are the same ones, which their scatters together know."""
    there = [one for one in layers if not np.isnan(one.found)]
    if not there:
        return _Layer(float("nan"))
    found = float(np.mean([one.found for one in there]))
    scatters = [one.scatter for one in there if one.scatter is not None]
    if len(scatters) < len(there):
        return _Layer(found)
    noises = np.array([one.noise for one in there])
    variance = (2.0 * noises**2 / np.array([one.freedom for one in there])).sum()
    freedom = 2.0 * noises.sum() ** 2 / variance if variance > 0 else float("inf")
    return _Layer(found, float(noises.mean()), float(freedom), reduce(add, scatters))


def _rows(
    name: str, kinds: Sequence[Kind], found: Sequence[_Layer], layers: Sequence[int], confidence: float
) -> pl.DataFrame:
    whole = [_mean(found), *found]
    values, noise = (np.array([getattr(one, what) for one in whole]) for what in ("found", "noise"))
    columns = {"js_bits": values, "noise_bits": noise, "excess_bits": np.maximum(values - noise, 0.0)}
    silent = next((kind.silent for kind in kinds if kind.silent is not None), None)
    if silent is None:
        count = np.array([sum(not np.isnan(one.found) for one in found), *[1] * len(found)])
        least = np.array([min(blocks for kind in kinds for blocks in kind.blocks) - 1.0])
        half = student_t.quantile(confidence, least) * np.array(
            [_error(one, n) for one, n in zip(whole, count, strict=True)]
        )
        columns |= {
            "ci_low": np.maximum(values - noise - half, 0.0),
            "ci_high": np.maximum(values - noise + half, 0.0),
            "p_value": np.array([_p_value(one) for one in whole]),
        }
    said = [f"no {name} steps with counts in both runs" if np.isnan(one) else silent for one in values]
    return finished(columns, ACTIVATIONS, layers, said, 1.0 - confidence, step_kind=name)


def _p_value(one: _Layer) -> float:
    if one.scatter is None or np.isnan(one.found):
        return float("nan")
    if one.noise <= 0:
        return 1.0 if one.found <= 0 else 0.0
    return chi_square_tail(one.found / one.noise, one.tail)


def _error(one: _Layer, layers: int) -> float:
    """Standard error of the divergence in bits: its slope along the shares' scatter, and the noise's own."""
    if one.scatter is None:
        return float("nan")
    return float(np.sqrt(one.scatter.slope_variance / layers**2 + 2.0 * one.noise**2 / one.tail))


def _experts(layer: int, a: RunShares, b: RunShares, silent: bool, confidence: float) -> pl.DataFrame:
    difference = b.shares - a.shares
    half = p = np.full(len(difference), np.nan)
    if not silent:
        variances, freedom = _by_part(a, b)
        error = np.sqrt(variances.sum(axis=0))
        with np.errstate(divide="ignore", invalid="ignore"):
            degrees = variances.sum(axis=0) ** 2 / (variances**2 / freedom).sum(axis=0)
            p = np.where(difference == 0.0, 1.0, student_t.p_value(difference / error, degrees))
            half = np.where(error > 0, error * student_t.quantile(confidence, degrees), 0.0)
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


def _by_part(a: RunShares, b: RunShares) -> tuple[Floats, Floats]:
    """Variance of each expert's share by run and kind, float64 [parts, experts], and degrees of freedom [parts, 1]."""
    variances, freedom = [], []
    for run in (a, b):
        for end, blocks in zip(np.cumsum(run.blocks), run.blocks, strict=True):
            variances.append((run.pulls[end - blocks : end] ** 2).sum(axis=0))
            freedom.append([blocks - 1.0])
    return np.stack(variances), np.array(freedom)


def _ranked(experts: Sequence[pl.DataFrame], alpha: float) -> pl.DataFrame:
    """With Holm's adjustment over all experts of all layers."""
    if not experts:
        return pl.DataFrame(schema=EXPERTS)
    whole = pl.concat(experts)
    return (
        whole.with_columns(p_adjusted=holm(whole["p_value"].to_numpy()))
        .with_columns(pl.when(pl.col(pl.Float64).is_finite()).then(pl.col(pl.Float64)))
        .with_columns(significant=pl.col("p_adjusted") < alpha)
        .select(*EXPERTS)
        .sort(["js_bits", "layer_idx", "expert_id"], descending=[True, False, False])
    )
