"""Results of runs that never were, for comparisons: folders as `analyze` writes them, with known differences."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl

from nvtxmoe_analysis.outputs.registry import tables
from nvtxmoe_analysis.outputs.spec import FOLDER
from tests.support.compare_simulations import memory
from tests.support.filled_tables import filled


@dataclass(frozen=True)
class Load:
    """A run to make up. Kernel time is linear in tokens, with noise common to a step and noise of each layer.

    Attributes:
        correlation: of a step's noise with the step's before.
        slow: factor of kernel time by layer.
        moved: share of a layer's activations that goes to its expert 0 beyond its own, by layer.
        prefill: part of the steps that are prefill.
    """

    steps: int = 60
    layers: int = 3
    experts: int = 16
    top_k: int = 2
    ranks: int = 1
    tokens: tuple[int, int] = (8, 24)
    prefill: float = 0.0
    prefill_tokens: tuple[int, int] = (256, 511)
    noise: float = 0.05
    correlation: float = 0.0
    scatter: float = 0.3
    slow: dict[int, float] = field(default_factory=dict)
    moved: dict[int, float] = field(default_factory=dict)
    gpu: bool = True
    meta: dict[str, Any] = field(default_factory=dict)


def make_results(folder: Path, load: Load, seed: int) -> Path:
    """Write a folder of results. Two seeds of one load are two runs of the same thing."""
    random = np.random.default_rng(seed)
    shares = np.random.default_rng(0).dirichlet(np.full(load.experts, 2.0), load.layers)
    prefill = random.random(load.steps) < load.prefill
    tokens = np.where(
        prefill,
        random.integers(load.prefill_tokens[0], load.prefill_tokens[1] + 1, load.steps),
        random.integers(load.tokens[0], load.tokens[1] + 1, load.steps),
    )
    common = np.exp(load.noise * memory(random, (load.steps,), load.correlation))
    times, counts = [], []
    for layer in range(load.layers):
        share = shares[layer].copy()
        share *= 1.0 - load.moved.get(layer, 0.0)
        share[0] += load.moved.get(layer, 0.0)
        of_step = share * np.exp(load.scatter * memory(random, (load.steps, load.experts), load.correlation))
        of_step /= of_step.sum(axis=1, keepdims=True)
        drawn = [random.multinomial(n * load.top_k, p).tolist() for n, p in zip(tokens.tolist(), of_step, strict=True)]
        cell = {"step": np.arange(load.steps), "layer_idx": layer, "num_tokens": tokens}
        counts.append(pl.DataFrame({"rank": 0, **cell, "counts": pl.Series(drawn, dtype=pl.List(pl.UInt32))}))
        for rank in range(load.ranks):
            own = np.exp(random.normal(0.0, 0.03, load.steps)) * common * load.slow.get(layer, 1.0)
            ns = ((20_000 + 150 * tokens) * own).astype(np.int64)
            kind = np.where(prefill, "prefill", "decode")
            more = {"step_kind": kind, "kernel_time_ns": ns, "own_ns": ns, "step_gpu_ns": 9 * ns}
            times.append(pl.DataFrame({"rank": rank, **cell, **more}))
    _write(folder / FOLDER, load, pl.concat(times), pl.concat(counts))
    return folder


def _write(folder: Path, load: Load, times: pl.DataFrame, counts: pl.DataFrame) -> None:
    folder.mkdir(parents=True)
    _as_frame(counts, "step_activations").write_parquet(folder / "moe_step_activations.parquet")
    if load.gpu:
        _as_frame(times, "layer_correlation").write_parquet(folder / "moe_layer_correlation.parquet")
    layers = {f"layer_{n}": {"num_experts": load.experts, "top_k": load.top_k} for n in range(load.layers)}
    (folder / "moe_summary.json").write_text(json.dumps(layers))
    processes = [{"rank": rank, "device": "a device", **load.meta} for rank in range(load.ranks)]
    validation = {
        "verdict": load.meta.get("verdict", "complete"),
        "selection": {"only": None},
        "inputs": [{"processes": processes}],
    }
    (folder / "moe_capture_validation.json").write_text(json.dumps(validation))


def _as_frame(table: pl.DataFrame, name: str) -> pl.DataFrame:
    """With all columns of the frame, in their order."""
    return filled(name, table).select(*tables()[name].types)
