"""The true answer of a tiled export: the source's brute-force answer, replicated for every rank and tile."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

import polars as pl

from scripts.bench import brute_force
from scripts.bench.tile_payloads import Payloads
from scripts.bench.tile_source import Window

CELL_KEY = ["rank", "step", "layer_idx"]


@dataclass(frozen=True)
class Shape:
    """How often the source was repeated."""

    ranks: range
    tiles: int
    steps_per_tile: int
    sampled_tiles: int


@dataclass(frozen=True)
class SourceAnswer:
    """The source's operations placed by brute force, cut like its rows."""

    cells: pl.DataFrame
    kernels: pl.DataFrame
    head: dict[str, dict[str, int]]
    tile: dict[str, dict[str, int]]


def source_answer(capture: Path, window: Window) -> SourceAnswer:
    """Attribute the source; operations belong to head or tile by their launch call, like the rows."""
    answer = brute_force.attribute(capture)
    launched = [(op.launch_ns, op) for op in answer.operations if op.launch_ns is not None]
    head = [op for at_ns, op in launched if window.head_ns <= at_ns < window.serving_ns]
    tile = [op for at_ns, op in launched if window.serving_ns <= at_ns < window.end_ns]
    return SourceAnswer(
        pl.DataFrame(brute_force.cell_rows(answer.cells, tile)),
        pl.DataFrame(brute_force.kernel_rows(tile)),
        brute_force.coverage(head),
        brute_force.coverage(tile),
    )


def true_cells(answer: SourceAnswer, shape: Shape) -> pl.DataFrame:
    """One row for every (rank, step, layer)."""
    ranks = pl.DataFrame({"rank": shape.ranks}, schema={"rank": pl.Int64})
    first_steps = [tile * shape.steps_per_tile for tile in range(shape.tiles)]
    tiles = pl.DataFrame({"first_step": first_steps}, schema={"first_step": pl.Int64})
    rows = answer.cells.drop("rank").join(tiles, how="cross").join(ranks, how="cross")
    rows = rows.with_columns(pl.col("step") + pl.col("first_step"))
    return rows.select(answer.cells.columns).sort(CELL_KEY)


def true_kernels(answer: SourceAnswer, shape: Shape) -> pl.DataFrame:
    """In-layer operations by rank, layer, phase, kind, name and way of launch."""
    ranks = pl.DataFrame({"rank": shape.ranks}, schema={"rank": pl.Int64})
    rows = answer.kernels.drop("rank").join(ranks, how="cross")
    rows = rows.with_columns(pl.col("count", "total_ns") * shape.tiles)
    return rows.select(answer.kernels.columns).sort(answer.kernels.columns[:-2])


def true_activations(payloads: Payloads) -> pl.DataFrame:
    """Assignments by layer and expert, summed over ranks and steps."""
    experts = payloads.num_experts
    return pl.DataFrame(
        {
            "layer_idx": [layer for layer in payloads.layers for _ in range(experts)],
            "expert_id": list(range(experts)) * len(payloads.layers),
            "activation_count": payloads.activations.ravel().tolist(),
        }
    )


def true_coverage(answer: SourceAnswer, shape: Shape) -> dict[str, dict[str, int]]:
    """Operations and nanoseconds by class."""
    return {
        where: {
            unit: len(shape.ranks) * (answer.head[where][unit] + shape.tiles * answer.tile[where][unit])
            for unit in ("operations", "ns")
        }
        for where in answer.tile
    }


def write_truth(folder: Path, answer: SourceAnswer, payloads: Payloads, shape: Shape, rows: dict[str, int]) -> None:
    """Write truth_*.parquet and truth.json; ``rows`` are the numbers of rows written, by what they are."""
    cells = true_cells(answer, shape)
    cells.write_parquet(folder / "truth_cells.parquet")
    true_kernels(answer, shape).write_parquet(folder / "truth_kernels.parquet")
    true_activations(payloads).write_parquet(folder / "truth_activations.parquet")
    topk_tokens = payloads.topk_elements * shape.sampled_tiles
    summary = rows | {
        "calls_per_kernel": rows["runtime_calls"] / rows["kernels"],
        "ranges_and_marks_per_kernel": (rows["ranges"] + rows["marks"]) / rows["kernels"],
        "processes": len(shape.ranks),
        "tiles": shape.tiles,
        "steps_per_rank": shape.tiles * shape.steps_per_tile,
        "count_cells": cells.height,
        "topk_tokens": topk_tokens,
        "coverage": true_coverage(answer, shape),
    }
    (folder / "truth.json").write_text(json.dumps(summary, indent=2) + "\n")
