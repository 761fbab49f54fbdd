"""Result folders of any size for tests of the report, written as ``analyze`` writes them."""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl

from nvtxmoe_analysis.outputs.registry import tables
from nvtxmoe_analysis.outputs.spec import FOLDER
from nvtxmoe_analysis.outputs.write import as_text
from tests.support.filled_tables import filled
from tests.support.report_limits import roofline, roofline_document, roofline_summary, waterfall

#: A name that would do harm where it is not escaped.
EVIL = '</script><script>document.title="evil"</script><img src=x onerror="document.title=\'evil\'">'
#: Names of tables by the file's stem.
NAMES = {table.stem: name for name, table in tables().items()}
PHASES = ("route", "dispatch", "experts", "combine", "shared", "collective", "other")
CLASSES = ("attention", "collective", "sampling", "dense", "norm", "memory", "recording", "other", "unplaced")


class Made:
    """Results of a run that never was: ``layers`` of ``experts``, ``steps`` on ``ranks``. A layer's time is 5 us and
    2 us an active expert; layer 3 takes half as much again."""

    def __init__(self, layers: int = 6, experts: int = 16, steps: int = 40, ranks: int = 2, top_k: int = 4) -> None:
        self.layers, self.experts, self.steps, self.ranks, self.top_k = layers, experts, steps, ranks, top_k
        self.random = np.random.default_rng(7)
        self.tokens = np.where(np.arange(steps) % 10 == 0, 512, self.random.integers(4, 64, steps))
        popularity = self.random.gamma(0.7, size=(layers, experts)) + 0.02
        popularity[0, -1] = 0.0
        self.popularity = popularity / popularity.sum(axis=1, keepdims=True)
        self.counts = np.stack([self.random.multinomial(self.tokens * top_k, p) for p in self.popularity])  # [L, S, E]

    def tables(self) -> dict[str, pl.DataFrame]:
        """Every table by the stem of its file."""
        return {
            "moe_expert_activations": self.activations(),
            "moe_expert_coselection": self.coselection(),
            "moe_routing_weights_hist": self.weights(),
            "moe_load_imbalance": self.imbalance(),
            "moe_layer_correlation": self.correlation(),
            "moe_kernel_timings": self.kernels(),
            "moe_layer_model": self.model(),
            "moe_straggler": self.straggler(),
            "moe_roofline": roofline(self._cells()),
            "moe_roofline_summary": roofline_summary(self._cells()),
            "moe_waterfall": waterfall(self.steps),
            "moe_capacity": self.capacity(),
            "moe_cross_layer": pl.DataFrame(
                {
                    "layer_a": [0, 1], "layer_b": [1, 2], "adjacent": [True, True], "tokens": [500, 400],
                    "mutual_information_bits": [0.5, 1.25], "explained_pct": [12.5, 31.25],
                }
            ),
            "moe_cross_layer_paths": pl.DataFrame(
                {
                    "layer_a": [1, 1], "expert_a": [2, 3], "layer_b": [2, 2], "expert_b": [5, 6], "tokens": [400, 400],
                    "probability": [0.75, 0.5], "probability_low": [0.7, 0.4], "probability_high": [0.8, 0.6],
                    "base_probability": [0.25, 0.25],
                }
            ),
        }  # fmt: skip

    def activations(self) -> pl.DataFrame:
        total = self.counts.sum(axis=1)
        return pl.DataFrame(
            {
                "layer_idx": np.repeat(np.arange(self.layers), self.experts),
                "expert_id": np.tile(np.arange(self.experts), self.layers),
                "activation_count": total.ravel(),
                "percentage": (100.0 * total / total.sum(axis=1, keepdims=True)).ravel(),
            }
        )

    def coselection(self) -> pl.DataFrame:
        first, second = np.triu_indices(self.experts, 1)
        parts = []
        for layer, share in enumerate(self.popularity):
            number = self.random.poisson(500 * share[first] * share[second] * self.top_k)
            frame = pl.DataFrame(
                {
                    "layer_idx": layer,
                    "expert_id_1": first,
                    "expert_id_2": second,
                    "coselection_count": number,
                    "tokens": 500,
                }
            )
            parts.append(frame.filter(pl.col("coselection_count") > 0))
        return pl.concat(parts)

    def weights(self) -> pl.DataFrame:
        rows = 200 * self.top_k
        parts = []
        for layer in range(self.layers):
            weights = -np.sort(-self.random.dirichlet([0.6] * self.top_k, 200), axis=1)
            parts.append(
                pl.DataFrame(
                    {
                        "layer_idx": layer,
                        "token_idx": np.repeat(np.arange(200), self.top_k),
                        "expert_id": self.random.integers(0, self.experts, rows),
                        "weight": weights.ravel(),
                        "step": 0,
                        "rank": 0,
                    }
                )
            )
        return pl.concat(parts)

    def _cells(self) -> pl.DataFrame:
        """Features of every (step, layer)."""
        counts = self.counts.astype(np.float64)
        mean, top = counts.mean(axis=2), counts.max(axis=2)
        share = counts / counts.sum(axis=2, keepdims=True)
        entropy = -(share * np.log2(np.where(share > 0, share, 1.0))).sum(axis=2)
        ordered = np.sort(counts, axis=2)
        weight = 2 * np.arange(1, self.experts + 1) - self.experts - 1
        return pl.DataFrame(
            {
                "layer_idx": np.repeat(np.arange(self.layers), self.steps),
                "step": np.tile(np.arange(self.steps), self.layers),
                "num_tokens": np.tile(self.tokens, self.layers),
                "total_activations": self.counts.sum(axis=2).ravel(),
                "active_experts": (self.counts > 0).sum(axis=2).ravel(),
                "max_count": self.counts.max(axis=2).ravel(),
                "mean_count": mean.ravel(),
                "std_dev": counts.std(axis=2).ravel(),
                "max_mean_ratio": (top / mean).ravel(),
                "max_min_ratio": np.where(
                    counts.min(axis=2) > 0, top / np.maximum(counts.min(axis=2), 1), np.nan
                ).ravel(),
                "expert_tiles": (-(-self.counts // 16)).sum(axis=2).ravel(),
                "cv": (counts.std(axis=2) / mean).ravel(),
                "entropy_bits": entropy.ravel(),
                "gini": ((ordered * weight).sum(axis=2) / (self.experts * counts.sum(axis=2))).ravel(),
            }
        ).with_columns(pl.col("max_min_ratio").fill_nan(None))

    def imbalance(self) -> pl.DataFrame:
        return self._cells().select(
            "layer_idx",
            (pl.col("step") * 0.01).alias("timestamp_sec"),
            "std_dev",
            "max_min_ratio",
            "max_mean_ratio",
            "step",
            "num_tokens",
            rank=pl.lit(0),
        )

    def correlation(self) -> pl.DataFrame:
        cells = pl.concat([self._cells().with_columns(rank=pl.lit(rank, pl.Int64)) for rank in range(self.ranks)])
        noise = pl.Series(np.random.default_rng(11).normal(0, 800, len(cells)).round())
        slow = pl.when(pl.col("layer_idx") == 3).then(1.5).otherwise(1.0)
        prefill = pl.col("num_tokens") == 512
        time = (((5000 + 2000 * pl.col("active_experts")) * slow) + noise).cast(pl.Int64)
        frame = cells.with_columns(
            kernel_time_ns=time, step_kind=pl.when(prefill).then(pl.lit("prefill")).otherwise(pl.lit("decode"))
        )
        shares = {"route": 10, "experts": 75, "combine": 5}
        frame = frame.with_columns(
            (pl.col("kernel_time_ns") * shares.get(phase, 0) // 100).alias(f"{phase}_ns")
            for phase in PHASES
            if phase != "other"
        )
        frame = frame.with_columns(
            other_ns=pl.col("kernel_time_ns") - pl.sum_horizontal(f"{phase}_ns" for phase in PHASES if phase != "other")
        )
        outside = {
            "attention": 60_000,
            "collective": 90_000,
            "dense": 30_000,
            "norm": 6_000,
            "sampling": 5_000,
            "memory": 2_000,
            "recording": 400,
            "other": 3_000,
        }
        frame = frame.with_columns(pl.lit(outside.get(name, 0), pl.Int64).alias(f"step_{name}_ns") for name in CLASSES)
        total = pl.col("kernel_time_ns").sum().over("rank", "step") + sum(outside.values())
        return (
            frame.with_columns(step_gpu_ns=total)
            .with_columns(
                prefill_tokens=pl.when(prefill).then("num_tokens").otherwise(0),
                decode_tokens=pl.when(prefill).then(0).otherwise("num_tokens"),
                top_k=pl.lit(self.top_k),
                block_m=pl.lit(16),
                block_m_source=pl.lit("default"),
                kernel_count=pl.lit(10),
                busy_ns="kernel_time_ns",
                launched_by=pl.lit("graph"),
                local_experts=pl.lit(self.experts // self.ranks),
                local_activations=pl.col("total_activations") // self.ranks,
                local_active_experts=pl.col("active_experts") // self.ranks,
                local_max_count="max_count",
                local_expert_tiles=pl.col("expert_tiles") // self.ranks,
                weight_bytes=pl.lit(None, pl.Int64),
                collective_inferred_ns=pl.lit(0),
                own_ns="kernel_time_ns",
                between_steps_ns=pl.lit(1000),
                step_share_pct=100.0 * pl.col("kernel_time_ns") / pl.col("step_gpu_ns"),
            )
            .sort("rank", "step", "layer_idx")
        )

    def kernels(self) -> pl.DataFrame:
        names = [
            ("experts", "fused_moe_kernel", 600),
            ("experts", EVIL, 150),
            ("route", "void vllm::moe::topkGating<float, int>(float const*)", 100),
        ]
        rows: list[tuple[object, ...]] = [
            (rank, layer, phase, name, "graph", 10, 1000 * took, float(100 * took), 90 * took, 120 * took)
            for rank in range(self.ranks)
            for layer in range(self.layers)
            for phase, name, took in names
        ]
        rows += [
            (rank, None, "step_attention", "attention_kernel", "graph", 5, 60_000, 12_000.0, 11_000, 13_000)
            for rank in range(self.ranks)
        ]
        columns = {
            "rank": pl.Int64,
            "layer_idx": pl.Int64,
            "phase": pl.String,
            "kernel_name": pl.String,
            "launched_by": pl.String,
            "count": pl.Int64,
            "total_ns": pl.Int64,
            "mean_ns": pl.Float64,
            "min_ns": pl.Int64,
            "max_ns": pl.Int64,
        }
        return pl.DataFrame(rows, schema=columns, orient="row")

    def model(self) -> pl.DataFrame:
        rows: list[dict[str, Any]] = []
        for layer in range(self.layers):
            slope = 3000.0 if layer == 3 else 2000.0
            for kind in ("decode", "prefill"):
                fits = kind == "decode"
                rows.append(
                    {
                        "layer_idx": layer,
                        "step_kind": kind,
                        "target": "own_ns",
                        "feature": "active_experts" if fits else None,
                        "role": "best",
                        "status": "explains" if fits else "refused",
                        "rows": self.steps * 9 // 10 * self.ranks if fits else 4,
                        "steps": self.steps * 9 // 10 if fits else 4,
                        "slope_ns_per_unit": slope if fits else None,
                        "slope_ci_low": slope - 100 if fits else None,
                        "slope_ci_high": slope + 100 if fits else None,
                        "intercept_ns": 2.5 * slope if fits else None,
                        "r2": 0.98 if fits else None,
                        "cv_error_ns": 700.0 if fits else None,
                        "cv_error_constant_ns": 9000.0 if fits else None,
                        "reason": None if fits else "4 rows, at least 12 are needed",
                        "sentence": f"layer {layer}, {kind}: "
                        + (f"each further active expert costs {slope / 1000:.1f} us" if fits else "not fitted, 4 rows"),
                    }
                )
        return pl.DataFrame(rows, infer_schema_length=None)

    def straggler(self) -> pl.DataFrame:
        """The slowest rank's excess is 100 ns times the layer's number plus one."""
        steps, layers = np.tile(np.arange(self.steps), self.layers), np.repeat(np.arange(self.layers), self.steps)
        frame = pl.DataFrame({"step": steps, "layer_idx": layers}).with_columns(
            group=pl.lit(0), ranks=pl.lit(self.ranks), ranks_in_group=pl.lit(self.ranks), mean_own_ns=pl.lit(30_000.0),
            excess_ns=100.0 * (pl.col("layer_idx") + 1), slowest_rank=pl.lit(1), collectives=pl.lit(2),
            wait_ns=pl.lit(900), transfer_ns=pl.lit(300),
        )  # fmt: skip
        return frame.with_columns(max_own_ns=(pl.col("mean_own_ns") + pl.col("excess_ns")).cast(pl.Int64))

    def capacity(self) -> pl.DataFrame:
        """Of every layer, then of all: twice the layer's number in percent are over at 1.25, half of it at 2."""
        rows = [(n, f, 2.0 * n * (1.0 if f < 2 else 0.25), 40.0) for n in range(self.layers) for f in (1.25, 2.0)]
        rows += [(None, 1.25, 5.0, 41.5), (None, 2.0, 1.25, 55.0)]  # type: ignore[list-item]
        names = ("layer_idx", "capacity_factor", "over_capacity_pct", "empty_slots_pct")
        return pl.DataFrame(rows, schema=dict(zip(names, (pl.Int64, *3 * [pl.Float64]), strict=True)), orient="row")

    def documents(self) -> dict[str, Any]:
        """Every JSON document by the stem of its file."""
        summary = {f"layer_{layer}": {"num_experts": self.experts, "top_k": self.top_k} for layer in range(self.layers)}
        process = {
            "rank": 0,
            "world_size": self.ranks,
            "vllm": "0.26.0",
            "device": EVIL,
            "layers": self.layers,
            "overhead": {
                "gpu_us_a_step": 28.2,
                "gpu_us_a_step_ci95": [24.2, 31.7],
                "gpu_pct": 0.13,
                "cpu_us_a_step": 382,
                "measured": "batch 32",
            },
        }
        validation = {
            "verdict": "complete",
            "reasons": [],
            "checks": [
                {
                    "name": "ranks_present",
                    "status": "pass",
                    "message": f"All {self.ranks} ranks present.",
                    "figures": {},
                },
                {"name": "collectives_seen", "status": "warn", "message": "No moe.collective range.", "figures": {}},
            ],
            "coverage": {
                "classes": {
                    "in_layer": {"operations": 10, "time_ns": 1000, "kinds": {}},
                    "unplaced": {"operations": 0, "time_ns": 0, "kinds": {}, "reasons": {}},
                },
                "in_layer_pct_of_step_time": 40.0,
                "placed_pct_of_step_time": 100.0,
                "in_step_outside_layers_names": [],
            },
            "selection": {"steps_kept": self.steps * self.ranks, "steps_captured": self.steps * self.ranks},
            "clock": {"unit": "ns", "reports_aligned": True},
            "options": {"nvtxmoe": "0.1.0"},
            "inputs": [
                {
                    "path": EVIL,
                    "kind": "sqlite",
                    "nsys": "2025.3",
                    "gpus": ["GPU"],
                    "steps": self.steps,
                    "processes": [{"pid": 1, **process}],
                }
            ],
        }
        return {
            "moe_summary": summary,
            "moe_capture_validation": validation,
            "moe_straggler": self.straggler_document(),
            "moe_roofline": roofline_document(EVIL, self.steps * self.layers),
        }

    def straggler_document(self) -> dict[str, Any]:
        """What the table adds up to; the waiting is made up."""
        layers = [
            {"layer_idx": n, "excess_us": 0.1 * (n + 1) * self.steps, "of_layer_pct": 1.5} for n in range(self.layers)
        ]
        saves = sum(layer["excess_us"] for layer in layers)
        return {
            "reason": None,
            "straggler": {
                "cells": self.steps * self.layers,
                "perfect_balance": {"saves_us": saves, "of_layers_pct": 1.25, "of_steps_pct": 2.5},
                "slowest_rank": [{"rank": 1, "cells": 9, "pct": 100.0}],
                "per_layer": layers,
            },
            "collectives": {
                "kernels": 960, "split": 950, "wait_us": 864.0, "transfer_us": 288.0, "wait_pct": 75.0,
                "launched_eagerly": {"split": 10, "wait_us": 100.0}, "first_of_step": {"split": 80, "wait_us": 250.0},
            },
            "clock": {"verdict": "agree", "statement": "One clock; no rank ends before the last began."},
        }  # fmt: skip


def write(
    folder: Path,
    tables: Mapping[str, pl.DataFrame],
    documents: Mapping[str, Any],
    *,
    without: Collection[str] = (),
    parquet: bool = False,
    older: bool = False,
) -> Path:
    """Write the results into ``folder/moe_expert_tracking``; returns ``folder``.

    Parameters:
        older: leave out columns that are not given; else they are there, empty where they may be.
    """
    inner = folder / FOLDER
    inner.mkdir(parents=True)
    for stem, table in tables.items():
        if stem not in without:
            table = table if older else filled(NAMES[stem], table)  # noqa: PLW2901
            if parquet:
                table.write_parquet(inner / f"{stem}.parquet")
            else:
                as_text(table).write_csv(inner / f"{stem}.csv")
    for stem, document in documents.items():
        if stem not in without:
            (inner / f"{stem}.json").write_text(json.dumps(document))
    return folder
