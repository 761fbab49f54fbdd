"""Work outside layers and of whole steps, computed again in plain Python from brute force's answer."""

from __future__ import annotations

import json
import sqlite3
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field
from math import log2
from pathlib import Path
from typing import Any

from nvtxmoe.formats import schema
from scripts.bench.brute_capture import CellKey, pid_of
from scripts.bench.brute_force import IN_LAYER, IN_STEP, OUTSIDE, Answer, Operation

#: Names of kernels of the golden captures, by the class of their work in a step: what they begin with or contain.
CLASSES = {
    "attention": ("kernel_unified_attention", "reduce_segments", "reshape_and_cache_kernel_flash"),
    "collective": ("cross_device_reduce_1stage", "ncclDevKernel_AllGather_RING_LL"),
    "sampling": ("_topk_topp_kernel", "ArgMaxOps", "cunn_SoftMaxForward", "softmax_warp_forward"),
    "dense": ("nvjet_sm90_",),
    "norm": ("rms_norm",),
    "recording": ("nvtxmoe_count",),
}
ORDER = ("attention", "collective", "sampling", "dense", "norm", "memory", "recording", "other")


def class_of(op: Operation) -> str:
    """The class of an operation of a step outside layers."""
    if op.kind != "kernel":
        return "memory"
    found = {name for name, parts in CLASSES.items() if any(part in op.name for part in parts)}
    assert len(found) <= 1, op.name
    return next(iter(found), "other")


@dataclass
class Work:
    """Of a capture: sums by (rank, step), inferred collectives by cell, and local experts by (rank, layer)."""

    by_step: dict[tuple[int, int], dict[str, int]] = field(
        default_factory=lambda: defaultdict(lambda: defaultdict(int))
    )
    outside: list[tuple[int, str, Operation]] = field(default_factory=list)
    inferred: dict[CellKey, int] = field(default_factory=lambda: defaultdict(int))
    local: dict[tuple[int, int], list[int]] = field(default_factory=dict)


def read(path: Path, answer: Answer) -> Work:
    """Walk over all operations."""
    work = Work()
    steps = process_steps(answer)
    for op in answer.operations:
        ns = op.end_ns - op.start_ns
        if op.placed == IN_LAYER:
            assert op.step is not None
            work.by_step[op.step]["layers"] += ns
        elif op.placed == IN_STEP:
            assert op.step is not None
            work.by_step[op.step][class_of(op)] += ns
            work.outside.append((op.step[0], f"step_{class_of(op)}", op))
        else:
            assert (op.placed, op.launch_ns is None) == (OUTSIDE, False)
            before = [step for start, step in steps[op.pid] if start <= (op.launch_ns or 0)]
            if before:
                work.by_step[before[-1]]["between"] += ns
                work.outside.append((before[-1][0], "between_steps", op))
    for op, layer in reductions(answer):
        assert op.step is not None
        work.inferred[op.step[0], op.step[1], layer] += op.end_ns - op.start_ns
    for rank, layers in metas(path).items():
        for one in layers:
            work.local[rank, one["layer"]] = one["local_experts"]
    return work


def process_steps(answer: Answer) -> dict[int, list[tuple[int, tuple[int, int]]]]:
    """(start, (rank, step)) of the steps of each process, in the order of time."""
    steps: dict[int, list[tuple[int, tuple[int, int]]]] = defaultdict(list)
    for tid, ranges in answer.capture.steps.items():
        steps[pid_of(tid)] += [(start, (step.rank, step.step)) for start, _, step in ranges.spans]  # type: ignore[attr-defined]
    return {pid: sorted(found) for pid, found in steps.items()}


def reductions(answer: Answer) -> list[tuple[Operation, int]]:
    """Collectives that are the first kernel after a layer's range, and that layer."""
    by_thread: dict[int, list[Operation]] = defaultdict(list)
    for op in answer.operations:
        if op.placed in (IN_LAYER, IN_STEP) and op.kind == "kernel" and op.origin is not None:
            by_thread[op.origin[1]].append(op)
    found = []
    for tid, ops in by_thread.items():
        spans = answer.capture.layers[tid].spans
        marks: list[tuple[int, int, Any, Operation | None]] = [(end, 0, layer, None) for _, end, layer in spans]
        marks += [(start, 1, None, None) for start, _, _ in spans]
        marks += [(op.origin[0], 2, None, op) for op in ops if op.origin is not None]
        layer: Any = None  # whose range has ended
        first: int | None = None  # when the kernel after it was launched or created
        within: set[Any] = set()  # the steps, or graphs, of the kernels in the layer before
        inside: set[Any] = set()
        for at, kind, ended, made in sorted(marks, key=lambda mark: mark[:2]):
            if kind == 0:
                layer, first, within, inside = ended, None, inside, set()
            elif kind == 1:
                layer, inside = None, set()
            elif made is not None and layer is None:
                inside.add(place_of(made))
            elif made is not None and first in (None, at):
                if class_of(made) == "collective" and place_of(made) in within:
                    found.append((made, layer))
                first = at
    return found


def place_of(op: Operation) -> Any:
    """The graph whose capture made an operation, or its step."""
    return op.step if op.original is None else ("graph", op.pid, op.original >> 32)


def metas(path: Path) -> dict[int, list[dict[str, Any]]]:
    """Layers of moe.meta by rank."""
    connection = sqlite3.connect(path)
    rows = connection.execute(
        "SELECT binaryData FROM NVTX_EVENTS JOIN StringIds ON id = textId WHERE value = ?", (schema.META,)
    ).fetchall()
    connection.close()
    said = [json.loads(blob[40:]) for (blob,) in rows]
    return {one["rank"]: one["layers"] for one in said}


def unevenness(counts: Sequence[int]) -> tuple[float, float]:
    """Entropy in bits, Gini coefficient by all pairs."""
    total = sum(counts)
    entropy = -sum(c / total * log2(c / total) for c in counts if c)
    return entropy, sum(abs(a - b) for a in counts for b in counts) / (2 * len(counts) * total)


def block_m(tokens: int) -> int:
    """vLLM's default."""
    return 16 if tokens <= 32 else 32 if tokens <= 96 else 64 if tokens <= 512 else 128


def tiles(counts: Sequence[int], block: int) -> int:
    return sum(-(-c // block) for c in counts)


def rows_per_tile(tokens: int, top_k: int, experts: int, held: int) -> int:
    """Assignments per tile: 1 where a rank with all experts gets so few tokens that vLLM does not sort them."""
    return 1 if held == experts and tokens * top_k * 4 <= experts else block_m(tokens)


def local_columns(work: Work, key: CellKey, counts: Sequence[int], block: int) -> tuple[Any, ...]:
    """local_experts to weight_bytes; no golden capture tells the bytes of an expert."""
    held = work.local[key[0], key[2]]
    mine = [counts[expert] for expert in held]
    return len(held), sum(mine), sum(c > 0 for c in mine), max(mine), tiles(mine, block), None


def step_columns(work: Work, key: CellKey, of_layer: int) -> tuple[Any, ...]:
    """step_gpu_ns to step_share_pct."""
    sums = work.by_step[key[:2]]
    whole = sum(sums[name] for name in (*ORDER, "layers"))
    return whole, *(sums[name] for name in ORDER), 0, sums["between"], 100.0 * of_layer / whole
