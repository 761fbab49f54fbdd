"""Rows of moe_layer_correlation with a known cause: routing that is drawn, features counted from it, time planted."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import polars as pl

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]
Features = Mapping[str, Floats]
#: Time of each row in ns, from its features; the noise comes on top.
Cause = Callable[[Features], Floats]

BLOCK_M = 4


@dataclass(frozen=True)
class Plan:
    """What is drawn.

    Attributes:
        tokens: of each step.
        ranks: all of which see the same tokens; ``expert_parallel``: each holds a share of the experts.
        skew: Dirichlet concentration of the experts' popularity; small is uneven.
        drift: how much popularity changes from step to step, so that imbalance varies by itself.
    """

    tokens: Ints
    layers: int = 1
    ranks: int = 1
    experts: int = 32
    top_k: int = 4
    expert_parallel: bool = False
    skew: float = 3.0
    drift: float = 0.3
    kind: str = "decode"


def decode_tokens(rng: np.random.Generator, steps: int, most: int = 48) -> Ints:
    """Batch sizes that wander, as requests come and go."""
    walk = np.cumsum(rng.normal(0, 0.15, steps))
    return np.clip(np.round(most * 0.5 * (1 + np.tanh(walk))), 1, most).astype(np.int64)


def draw(rng: np.random.Generator, plan: Plan) -> pl.DataFrame:
    """Rows without a time: rank, step, layer_idx, step_kind, launched_by, num_tokens and every feature."""
    frames = []
    for layer in range(plan.layers):
        base = rng.dirichlet(np.full(plan.experts, plan.skew))
        counts = _counts(rng, plan, base)
        for rank in range(plan.ranks):
            frames.append(_rows(plan, layer, rank, counts))
    return pl.concat(frames).sort("rank", "step", "layer_idx")


def _counts(rng: np.random.Generator, plan: Plan, base: Floats) -> Ints:
    """Counts of each step, [steps, experts]."""
    steps = len(plan.tokens)
    popular = (base + 1e-9) * np.exp(rng.normal(0, plan.drift, (steps, plan.experts)))
    step = np.repeat(np.arange(steps), plan.tokens)
    # Top-k without replacement: the shortest of exponential waits whose rates are the popularity.
    waits = rng.standard_exponential((len(step), plan.experts)) / popular[step]
    chosen = np.argpartition(waits, plan.top_k - 1, axis=1)[:, : plan.top_k]
    cells = (step[:, None] * plan.experts + chosen).ravel()
    return np.bincount(cells, minlength=steps * plan.experts).reshape(steps, plan.experts)


def _rows(plan: Plan, layer: int, rank: int, counts: Ints) -> pl.DataFrame:
    size = plan.experts // plan.ranks if plan.expert_parallel else plan.experts
    local = counts[:, rank * size : (rank + 1) * size] if plan.expert_parallel else counts
    total = counts.sum(axis=1)
    share = counts / total[:, None]
    ordered = np.sort(counts, axis=1)
    place = np.arange(1, plan.experts + 1)
    return pl.DataFrame(
        {
            "rank": np.full(len(counts), rank),
            "step": np.arange(len(counts)),
            "layer_idx": np.full(len(counts), layer),
            "step_kind": [plan.kind] * len(counts),
            "launched_by": ["graph"] * len(counts),
            "num_tokens": np.asarray(plan.tokens),
            "local_activations": local.sum(axis=1),
            "local_active_experts": (local > 0).sum(axis=1),
            "local_expert_tiles": (-(-local // BLOCK_M)).sum(axis=1),
            "local_max_count": local.max(axis=1),
            "cv": counts.std(axis=1) / counts.mean(axis=1),
            "max_mean_ratio": counts.max(axis=1) / counts.mean(axis=1),
            "entropy_bits": -(share * np.log2(np.where(share > 0, share, 1))).sum(axis=1),
            "gini": (2 * (ordered * place).sum(axis=1) / total - (plan.experts + 1)) / plan.experts,
        }
    )


def timed(rows: pl.DataFrame, cause: Cause, noise_ns: Floats) -> pl.DataFrame:
    """With own_ns: the cause's time plus the noise, in whole ns."""
    features = {name: rows[name].cast(pl.Float64).to_numpy() for name in rows.columns[5:]}
    own = np.round(cause(features) + noise_ns).astype(np.int64)
    return rows.with_columns(own_ns=pl.Series(own))


def step_noise(
    rng: np.random.Generator, rows: pl.DataFrame, scale_ns: float, *, shared: float = 0.5, tails: float | None = None
) -> Floats:
    """Noise of which a share is the step's, on all ranks and layers alike; Student's t with ``tails`` degrees."""
    step = rows["step"].to_numpy()

    def noise(size: int) -> Floats:
        return rng.standard_normal(size) if tails is None else rng.standard_t(tails, size)

    own, common = noise(len(step)), noise(int(step.max()) + 1)[step]
    noise_ns: Floats = scale_ns * (np.sqrt(1 - shared) * own + np.sqrt(shared) * common)
    return noise_ns


def active_experts(features: Features) -> Floats:
    return 20_000 + 1500 * features["local_active_experts"]


def planted(seed: int, noise_ns: float, *, steps: int = 200, **plan: object) -> pl.DataFrame:
    """Each active expert costs 1500 ns."""
    rng = np.random.default_rng(seed)
    rows = draw(rng, Plan(decode_tokens(rng, steps), **plan))  # type: ignore[arg-type]
    return timed(rows, active_experts, step_noise(rng, rows, noise_ns))
