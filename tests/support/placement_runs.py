"""Results of constructed runs, in which the time of every rank is a known function of its tiles and active experts."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import polars as pl

from nvtxmoe_analysis.outputs.registry import tables
from nvtxmoe_analysis.placement.layout import Layout, Load, contiguous
from tests.support.filled_tables import filled

TOP_K = 2


@dataclass(frozen=True)
class Planted:
    """A run with its truth.

    Attributes:
        active_ns, tiles_ns: cost of an active expert and of a tile at the mean GPU's speed.
        token_ns: of a token of the batch, on every rank. noise_ns: standard deviation, independent.
        speed: of each rank.
        skew: 0 for experts chosen alike; the larger, the more the first experts of a layer get.
        prefill_every: every so many steps a prefill of ``prefill_tokens``; 0 for none.
    """

    ranks: int = 2
    layers: int = 4
    experts: int = 16
    steps: int = 200
    batches: tuple[int, ...] = (8, 12)
    active_ns: float = 1000.0
    tiles_ns: float = 0.0
    base_ns: float = 20_000.0
    token_ns: float = 40.0
    noise_ns: float = 500.0
    speed: tuple[float, ...] = (1.0, 1.0)
    skew: float = 1.0
    shuffled: bool = False
    prefill_every: int = 0
    prefill_tokens: int = 400
    block_m: int = 16
    expert_bytes: int | None = 1_000_000
    seed: int = 0
    layout: Layout | None = None
    settings: Mapping[str, Any] = field(default_factory=dict)

    @property
    def today(self) -> Layout:
        return self.layout or contiguous(self.experts, self.ranks)

    def popularity(self) -> npt.NDArray[np.float64]:
        """[layers, experts], logits."""
        rng = np.random.default_rng(7)
        logits = -self.skew * np.arange(self.experts) / self.experts * 4
        rows = [rng.permutation(logits) if self.shuffled else logits for _ in range(self.layers)]
        logits_of_layers: npt.NDArray[np.float64] = np.array(rows)
        return logits_of_layers

    def tokens(self, steps: int) -> npt.NDArray[np.int64]:
        """[steps]: batches hold for ten steps each."""
        batch = np.array(self.batches)[(np.arange(steps) // 10) % len(self.batches)]
        if self.prefill_every:
            batch[:: self.prefill_every] = self.prefill_tokens
        return batch

    def counts(self, layer: int, tokens: npt.NDArray[np.int64], rng: np.random.Generator) -> npt.NDArray[np.int64]:
        """[steps, experts]: each token chooses TOP_K different experts."""
        logits = self.popularity()[layer]
        found = np.zeros((len(tokens), self.experts), dtype=np.int64)
        for at, number in enumerate(tokens):
            drawn = logits + rng.gumbel(size=(number, self.experts))
            chosen = np.argpartition(-drawn, TOP_K, axis=1)[:, :TOP_K]
            found[at] = np.bincount(chosen.ravel(), minlength=self.experts)
        return found

    def time(self, load: Load, tokens: npt.NDArray[np.int64]) -> npt.NDArray[np.float64]:
        """[steps, ranks] without noise."""
        own = self.base_ns + self.token_ns * tokens[:, None]
        own = own + self.active_ns * load.active + self.tiles_ns * load.tiles
        timed: npt.NDArray[np.float64] = np.array(self.speed) * own
        return timed

    def true_saving(self, layer: int, layout: Layout, *, prefill: bool = False, steps: int = 4000) -> float:
        """Mean over many further steps of what another placement of a layer saves, under the same noise."""
        rng = np.random.default_rng(10_000 + layer)
        tokens = np.full(steps, self.prefill_tokens) if prefill else self.tokens_of_decode(steps)
        counts = self.counts(layer, tokens, rng)
        block = np.full(steps, self.block_m)
        noise = self.noise_ns * rng.standard_normal((steps, self.ranks))
        slowest = []
        for one in (self.today, layout):
            own = self.time(one.load(counts, block, np.arange(steps)), tokens) + noise
            slowest.append(own.max(axis=1).mean())
        return float(slowest[0] - slowest[1])

    def tokens_of_decode(self, steps: int) -> npt.NDArray[np.int64]:
        return np.array(self.batches)[(np.arange(steps) // 10) % len(self.batches)]


def write_run(planted: Planted, folder: Path, form: str = "parquet") -> Path:
    """Write the results of a planted run: counts, times and the validation document. Returns ``folder``."""
    rng = np.random.default_rng(planted.seed)
    tokens = planted.tokens(planted.steps)
    steps = np.arange(planted.steps)
    prefill = np.zeros(planted.steps, dtype=bool)
    if planted.prefill_every:
        prefill[:: planted.prefill_every] = True
    block = np.full(planted.steps, planted.block_m)
    timed, counted = [], []
    for layer in range(planted.layers):
        counts = planted.counts(layer, tokens, rng)
        load = planted.today.load(counts, block, steps)
        own = planted.time(load, tokens) + planted.noise_ns * rng.standard_normal((planted.steps, planted.ranks))
        counted.append(
            pl.DataFrame(
                {
                    "rank": np.zeros(planted.steps, dtype=np.int64),
                    "step": steps,
                    "layer_idx": np.full(planted.steps, layer),
                    "num_tokens": tokens,
                    "counts": list(counts.astype(np.uint32)),
                },
                schema_overrides={"counts": pl.List(pl.UInt32)},
            )
        )
        for rank in range(planted.ranks):
            active = load.active[:, rank]
            size = planted.expert_bytes
            timed.append(
                pl.DataFrame(
                    {
                        "rank": np.full(planted.steps, rank),
                        "step": steps,
                        "layer_idx": np.full(planted.steps, layer),
                        "num_tokens": tokens,
                        "prefill_tokens": np.where(prefill, tokens, 0),
                        "decode_tokens": np.where(prefill, 0, tokens),
                        "block_m": block,
                        "launched_by": np.where(prefill, "eager", "graph"),
                        "local_experts": np.full(planted.steps, int(planted.today.sizes[rank])),
                        "local_activations": load.rows[:, rank],
                        "local_active_experts": active,
                        "local_expert_tiles": load.tiles[:, rank],
                        "weight_bytes": [None] * planted.steps if size is None else active * size,
                        "own_ns": np.rint(own[:, rank]).astype(np.int64),
                        "step_gpu_ns": np.full(planted.steps, round(planted.layers * own.max(axis=1).mean() * 1.5)),
                    }
                )
            )
    types = tables()["layer_correlation"].types
    rows = pl.concat(timed, how="vertical_relaxed")
    rows = filled("layer_correlation", rows).select(types.keys())
    rows = rows.cast(dict(types)).sort("rank", "step", "layer_idx")  # type: ignore[arg-type]
    inner = folder / "moe_expert_tracking"
    inner.mkdir(parents=True)
    if form == "csv":
        rows.write_csv(inner / "moe_layer_correlation.csv")
    else:
        rows.write_parquet(inner / "moe_layer_correlation.parquet")
    pl.concat(counted).write_parquet(inner / "moe_step_activations.parquet")
    process = {"rank": 0, "eplb": False, **planted.settings.get("process", {})}
    document = {"inputs": [{"processes": [process]}], "selection": planted.settings.get("selection", {})}
    (inner / "moe_capture_validation.json").write_text(json.dumps(document))
    return folder
