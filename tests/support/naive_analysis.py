"""Every table that `analyze` writes, computed again in plain Python from brute force's answer."""

from __future__ import annotations

import csv
import io
import sqlite3
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from itertools import combinations
from math import sqrt
from pathlib import Path
from typing import Any

import numpy as np

from nvtxmoe.formats import schema
from scripts.bench import brute_force
from scripts.bench.brute_capture import CellKey, pid_of
from tests.support import naive_step_sums


@dataclass(frozen=True)
class Step:
    """A moe.step range."""

    start_ns: int
    num_tokens: int
    prefill_tokens: int
    decode_tokens: int


@dataclass(frozen=True)
class Token:
    """A sampled token: experts and weights in routing order."""

    index: int
    experts: list[int]
    weights: list[float]


@dataclass
class Run:
    """One capture. ``first_ranks`` are those whose tokens count, one of each tensor-parallel group."""

    answer: brute_force.Answer
    first_ranks: Sequence[int]
    top_k: int
    work: naive_step_sums.Work = field(default_factory=naive_step_sums.Work)
    steps: dict[tuple[int, int], Step] = field(default_factory=dict)
    samples: dict[CellKey, list[Token]] = field(default_factory=dict)

    @property
    def counted(self) -> list[CellKey]:
        """Cells whose tokens count, in order."""
        return sorted(key for key in self.answer.cells if key[0] in self.first_ranks)


def read(path: Path, first_ranks: Sequence[int] = (0,), top_k: int = 4) -> Run:
    """Read a golden capture with the fixed layouts of the schema."""
    answer = brute_force.attribute(path)
    run = Run(answer, first_ranks, top_k, naive_step_sums.read(path, answer))
    connection = sqlite3.connect(path)
    rows = connection.execute(
        "SELECT start, globalTid, value, binaryData FROM NVTX_EVENTS JOIN StringIds ON id = textId"
        " WHERE value IN ('moe.step', 'moe.topk') ORDER BY start"
    ).fetchall()
    connection.close()
    rank_of: dict[int, int] = {}
    for start, tid, name, blob in rows:
        if name == schema.STEP:
            (step,) = np.frombuffer(blob[32:], dtype=schema.STEP_DTYPE)
            rank_of[pid_of(tid)] = int(step["rank"])
            run.steps[int(step["rank"]), int(step["step"])] = Step(
                start, *(int(step[f]) for f in ("num_tokens", "prefill_tokens", "decode_tokens"))
            )
    for _, tid, name, blob in rows:
        if name == schema.TOPK:
            for token in np.frombuffer(blob[40:], dtype=schema.topk_dtype(top_k)):
                key = (rank_of[pid_of(tid)], int(token["step"]), int(token["layer"]))
                made = Token(int(token["token"]), token["experts"].tolist(), token["weights"].tolist())
                run.samples.setdefault(key, []).append(made)
    return run


def csv_text(header: str, rows: Iterable[Sequence[Any]]) -> str:
    """CSV as the contract has it."""
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(header.split())
    writer.writerows([f"{v:.9g}" if isinstance(v, float) else "" if v is None else v for v in row] for row in rows)
    return out.getvalue()


def expert_totals(run: Run) -> dict[int, list[int]]:
    """Assignments by layer and expert."""
    totals: dict[int, list[int]] = {}
    for key in run.counted:
        counts = run.answer.cells[key].counts
        before = totals.get(key[2], [0] * len(counts))
        totals[key[2]] = [a + b for a, b in zip(before, counts, strict=True)]
    return dict(sorted(totals.items()))


def deviation(counts: Sequence[int]) -> float:
    """Population standard deviation."""
    mean = sum(counts) / len(counts)
    return sqrt(sum((c - mean) ** 2 for c in counts) / len(counts))


def activations(run: Run) -> str:
    rows = [
        (layer, expert, count, 100.0 * count / sum(counts))
        for layer, counts in expert_totals(run).items()
        for expert, count in enumerate(counts)
    ]
    return csv_text("layer_idx expert_id activation_count percentage", rows)


def summary(run: Run) -> dict[str, dict[str, Any]]:
    return {
        f"layer_{layer}": {
            "num_experts": len(counts),
            "top_k": run.top_k,
            "total_activations": sum(counts),
            "unique_experts_activated": sum(c > 0 for c in counts),
            "activation_coverage_pct": 100.0 * sum(c > 0 for c in counts) / len(counts),
            "mean_activations_per_expert": sum(counts) / len(counts),
            "std_dev_activations": deviation(counts),
            "min_activations": min(counts),
            "max_activations": max(counts),
            "load_balance_ratio": max(counts) / min(counts) if min(counts) else None,
        }
        for layer, counts in expert_totals(run).items()
    }


def coselection(run: Run) -> str:
    pairs: Counter[tuple[int, int, int]] = Counter()
    tokens: Counter[int] = Counter()
    for (rank, _, layer), sampled in run.samples.items():
        if rank in run.first_ranks:
            tokens[layer] += len(sampled)
            for token in sampled:
                pairs.update((layer, a, b) for a, b in combinations(sorted(token.experts), 2))
    rows = [(*key, pairs[key], tokens[key[0]]) for key in sorted(pairs)]
    return csv_text("layer_idx expert_id_1 expert_id_2 coselection_count tokens", rows)


def routing_weights(run: Run) -> str:
    rows = [
        (layer, token.index, expert, weight, step, rank)
        for rank, step, layer in sorted(run.samples)
        if rank in run.first_ranks
        for token in run.samples[rank, step, layer]
        for expert, weight in zip(token.experts, token.weights, strict=True)
    ]
    return csv_text("layer_idx token_idx expert_id weight step rank", rows)


def load_imbalance(run: Run) -> str:
    origin = min(step.start_ns for step in run.steps.values())
    rows = []
    for rank, step, layer in run.counted:
        cell = run.answer.cells[rank, step, layer]
        counts = cell.counts
        least_ratio = max(counts) / min(counts) if min(counts) else None
        mean_ratio = max(counts) / (sum(counts) / len(counts))
        at = (run.steps[rank, step].start_ns - origin) / 1e9
        rows.append((layer, at, deviation(counts), least_ratio, mean_ratio, step, cell.num_tokens, rank))
    return csv_text("layer_idx timestamp_sec std_dev max_min_ratio max_mean_ratio step num_tokens rank", rows)


def layer_timings(run: Run) -> str:
    extent: dict[CellKey, list[brute_force.Operation]] = defaultdict(list)
    for op in run.answer.operations:
        if op.key is not None:
            extent[op.key].append(op)
    rows = []
    for row in brute_force.cell_rows(run.answer.cells, run.answer.operations):
        key = (int(str(row["rank"])), int(str(row["step"])), int(str(row["layer_idx"])))
        step = run.steps[key[0], key[1]]
        timed = [row[f"{kind}_{what}"] for kind in ("kernel", "memcpy", "memset") for what in ("count", "time_ns")]
        start, end = min(op.start_ns for op in extent[key]), max(op.end_ns for op in extent[key])
        tokens = (row["num_tokens"], step.prefill_tokens, step.decode_tokens)
        rows.append((*key, *tokens, *timed, row["busy_ns"], start, end, row["launched_by"]))
    header = (
        "rank step layer_idx num_tokens prefill_tokens decode_tokens kernel_count kernel_time_ns memcpy_count "
        "memcpy_time_ns memset_count memset_time_ns busy_ns gpu_start_ns gpu_end_ns launched_by"
    )
    return csv_text(header, rows)


def kernel_timings(run: Run) -> str:
    groups: dict[tuple[Any, ...], list[int]] = defaultdict(list)
    inside = [(op.key[0], op.key[2], op.phase, op) for op in run.answer.operations if op.key is not None]
    outside = [(rank, None, phase, op) for rank, phase, op in run.work.outside]
    for rank, layer, phase, op in [*inside, *outside]:
        name = {"memcpy": f"[CUDA memcpy {op.name}]", "memset": "[CUDA memset]"}.get(op.kind, op.name)
        groups[rank, layer, phase, name, op.launched_by].append(op.end_ns - op.start_ns)
    ordered = sorted(groups, key=lambda g: (g[0], g[1] is None, g[1] or 0, -sum(groups[g]), *g[2:]))
    rows = [(*g, len(ns), sum(ns), sum(ns) / len(ns), min(ns), max(ns)) for g, ns in ((g, groups[g]) for g in ordered)]
    header = "rank layer_idx phase kernel_name launched_by count total_ns mean_ns min_ns max_ns"
    return csv_text(header, rows)


PHASES = ("route", "dispatch", "experts", "combine", "shared", "collective", "other")


def layer_correlation(run: Run) -> str:
    by_phase: dict[CellKey, Counter[str]] = defaultdict(Counter)
    for op in run.answer.operations:
        if op.key is not None and op.kind == "kernel":
            by_phase[op.key][op.phase] += op.end_ns - op.start_ns
    rows = []
    for row in brute_force.cell_rows(run.answer.cells, run.answer.operations):
        key = (int(str(row["rank"])), int(str(row["step"])), int(str(row["layer_idx"])))
        step, counts = run.steps[key[0], key[1]], run.answer.cells[key].counts
        mean = sum(counts) / len(counts)
        features = (run.top_k, sum(counts), sum(c > 0 for c in counts), max(counts), mean, deviation(counts))
        block = naive_step_sums.block_m(step.num_tokens)
        held = len(run.work.local[key[0], key[2]])
        rows_per_tile = naive_step_sums.rows_per_tile(step.num_tokens, run.top_k, len(counts), held)
        tiles = (max(counts) / mean, block, naive_step_sums.tiles(counts, rows_per_tile))
        tokens = (row["num_tokens"], step.prefill_tokens, step.decode_tokens)
        timed = (row["kernel_count"], row["kernel_time_ns"], row["busy_ns"], row["launched_by"])
        kind = "mixed" if step.prefill_tokens and step.decode_tokens else "prefill" if step.prefill_tokens else "decode"
        more = (kind, deviation(counts) / mean, *naive_step_sums.unevenness(counts), "default")
        phases = [by_phase[key][phase] for phase in PHASES]
        of_layer = sum(int(str(row[f"{what}_time_ns"])) for what in ("kernel", "memcpy", "memset"))
        own = None if row["launched_by"] == "none" else row["kernel_time_ns"]
        rows.append(
            (
                *(*key, *tokens, *features, *tiles, *timed, *more),
                *naive_step_sums.local_columns(run.work, key, counts, rows_per_tile),
                *(*phases, run.work.inferred[key], own),  # no collective runs in a layer
                *naive_step_sums.step_columns(run.work, key, of_layer),
            )
        )
    header = (
        "rank step layer_idx num_tokens prefill_tokens decode_tokens top_k total_activations active_experts max_count "
        "mean_count std_dev max_mean_ratio block_m expert_tiles kernel_count kernel_time_ns busy_ns launched_by "
        "step_kind cv entropy_bits gini block_m_source local_experts local_activations local_active_experts "
        "local_max_count local_expert_tiles weight_bytes route_ns dispatch_ns experts_ns combine_ns shared_ns "
        "collective_ns other_ns collective_inferred_ns own_ns step_gpu_ns step_attention_ns step_collective_ns "
        "step_sampling_ns step_dense_ns step_norm_ns step_memory_ns step_recording_ns step_other_ns step_unplaced_ns "
        "between_steps_ns step_share_pct"
    )
    return csv_text(header, rows)
