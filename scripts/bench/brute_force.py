"""Places every GPU operation of a small capture by plain loops: the independent check of the analysis.

``python scripts/bench/brute_force.py CAPTURE.sqlite`` prints the reference figures as JSON. Nothing of
nvtxmoe_analysis is used; the rules are those of docs/design.md. All times are integer nanoseconds.
"""

from __future__ import annotations

import argparse
import json
import sqlite3
import sys
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from scripts.bench.brute_capture import Capture, Cell, CellKey, Ranges, Step, pid_of, read_capture, tables_of

#: Classes of an operation; the last is for what can't be placed.
IN_LAYER, IN_STEP, OUTSIDE, UNPLACED = "in_layer", "in_step_outside_layers", "outside_steps", "unplaced"
OPERATION_TABLES = {
    "kernel": ("CUPTI_ACTIVITY_KIND_KERNEL", "demangledName"),
    "memcpy": ("CUPTI_ACTIVITY_KIND_MEMCPY", "copyKind"),
    "memset": ("CUPTI_ACTIVITY_KIND_MEMSET", "0"),
}


@dataclass(frozen=True)
class Operation:
    """One kernel, copy or memset, placed.

    Attributes:
        launch_ns: start of its launch call.
        step: (rank, step) in which it was launched.
        origin: when and on which thread it was launched eagerly, or its node's original was created.
        original: id of that original node.
    """

    kind: str
    name: str
    start_ns: int
    end_ns: int
    launched_by: str
    launch_ns: int | None = None
    placed: str = UNPLACED
    key: CellKey | None = None
    phase: str = "other"
    pid: int = 0
    step: tuple[int, int] | None = None
    origin: tuple[int, int] | None = None
    original: int | None = None


def creation_of(capture: Capture, pid: int, node: int) -> tuple[int, int] | None:
    """Return when and on which thread a replayed node's original was created, if that is known."""
    original = capture.originals.get((pid, node))
    return None if original is None else capture.creations.get((pid, original))


def value_at(ranges: dict[int, Ranges], tid: int, at_ns: int) -> object | None:
    """Value of the innermost range open on a thread at a moment."""
    return ranges[tid].innermost(at_ns) if tid in ranges else None


def operations(connection: sqlite3.Connection, capture: Capture) -> Iterator[Operation]:
    """Place every GPU operation of the export, table by table."""
    tables = tables_of(connection)
    for kind, (table, name_column) in OPERATION_TABLES.items():
        if table not in tables:
            continue
        rows = connection.execute(
            f"SELECT start, end, globalPid, correlationId, graphNodeId, {name_column} FROM {table}"
        )
        for start_ns, end_ns, global_pid, correlation, node, name_id in rows:
            names = {"kernel": capture.strings, "memcpy": capture.copy_kinds}.get(kind, {})
            name = names.get(name_id, kind)
            operation = Operation(kind, name, start_ns, end_ns, "eager" if node is None else "graph")
            yield place(capture, operation, pid_of(global_pid), correlation, node)


def place(capture: Capture, operation: Operation, pid: int, correlation: int, node: int | None) -> Operation:
    """Give one operation its class and, in a layer of a step, its cell and phase."""
    placed = placement(capture, pid, correlation, node)
    return replace(operation, **placed) if placed else operation


def placement(capture: Capture, pid: int, correlation: int, node: int | None) -> dict[str, Any]:
    """What is known of where an operation belongs: fields of ``Operation``."""
    launch = capture.launches.get((pid, correlation))
    if launch is None:
        return {}
    launch_ns, launch_tid = launch
    placed: dict[str, Any] = {"launch_ns": launch_ns, "pid": pid}
    step = value_at(capture.steps, launch_tid, launch_ns)
    if not isinstance(step, Step):
        return placed | {"placed": OUTSIDE}
    placed["step"] = (step.rank, step.step)
    origin = launch if node is None else creation_of(capture, pid, node)
    if origin is None:
        return placed
    placed |= {"origin": origin, "original": None if node is None else capture.originals[pid, node]}
    origin_ns, origin_tid = origin
    layer = value_at(capture.layers, origin_tid, origin_ns)
    if not isinstance(layer, int):
        return placed | {"placed": IN_STEP}
    phase = value_at(capture.phases, origin_tid, origin_ns) or "other"
    return placed | {"placed": IN_LAYER, "key": (step.rank, step.step, layer), "phase": str(phase)}


def busy_ns(intervals: Iterable[tuple[int, int]]) -> int:
    """Length of the union of intervals."""
    total, covered_to = 0, None
    for start_ns, end_ns in sorted(intervals):
        begin = start_ns if covered_to is None else max(start_ns, covered_to)
        total += max(0, end_ns - begin)
        covered_to = end_ns if covered_to is None else max(covered_to, end_ns)
    return total


def launched_by(kinds: set[str]) -> str:
    """One word for how the operations of a cell were launched."""
    return {0: "none", 1: next(iter(kinds), "none")}.get(len(kinds), "mixed")


def cell_rows(cells: dict[CellKey, Cell], placed: list[Operation]) -> list[dict[str, object]]:
    """One row for every counted (rank, step, layer), in that order."""
    inside: dict[CellKey, list[Operation]] = defaultdict(list)
    for operation in placed:
        if operation.key is not None:
            inside[operation.key].append(operation)
    rows: list[dict[str, object]] = []
    for key in sorted(cells):
        row: dict[str, object] = dict(zip(("rank", "step", "layer_idx"), key, strict=True))
        row["num_tokens"] = cells[key].num_tokens
        for kind in OPERATION_TABLES:
            durations = [op.end_ns - op.start_ns for op in inside[key] if op.kind == kind]
            row[f"{kind}_count"], row[f"{kind}_time_ns"] = len(durations), sum(durations)
        row["busy_ns"] = busy_ns((op.start_ns, op.end_ns) for op in inside[key])
        row["launched_by"] = launched_by({op.launched_by for op in inside[key]})
        rows.append(row)
    return rows


def kernel_rows(placed: list[Operation]) -> list[dict[str, object]]:
    """Count and nanoseconds of in-layer operations by rank, layer, phase, name and way of launch."""
    count: Counter[tuple[int, int, str, str, str, str]] = Counter()
    total_ns: Counter[tuple[int, int, str, str, str, str]] = Counter()
    for op in placed:
        if op.key is not None:
            group = (op.key[0], op.key[2], op.phase, op.kind, op.name, op.launched_by)
            count[group] += 1
            total_ns[group] += op.end_ns - op.start_ns
    names = ("rank", "layer_idx", "phase", "kind", "name", "launched_by")
    return [
        dict(zip(names, group, strict=True)) | {"count": count[group], "total_ns": total_ns[group]}
        for group in sorted(count)
    ]


def activation_rows(cells: dict[CellKey, Cell]) -> list[dict[str, int]]:
    """Assignments by layer and expert, summed over ranks and steps; experts at zero included."""
    totals: dict[int, list[int]] = {}
    for (_, _, layer), cell in cells.items():
        totals[layer] = [a + b for a, b in zip(totals.get(layer, [0] * len(cell.counts)), cell.counts, strict=True)]
    return [
        {"layer_idx": layer, "expert_id": expert, "activation_count": total}
        for layer in sorted(totals)
        for expert, total in enumerate(totals[layer])
    ]


def coverage(placed: list[Operation]) -> dict[str, dict[str, int]]:
    """Operations and nanoseconds of every class."""
    result = {where: {"operations": 0, "ns": 0} for where in (IN_LAYER, IN_STEP, OUTSIDE, UNPLACED)}
    for op in placed:
        result[op.placed]["operations"] += 1
        result[op.placed]["ns"] += op.end_ns - op.start_ns
    return result


@dataclass(frozen=True)
class Answer:
    """What brute force finds in one export."""

    cells: dict[CellKey, Cell]
    operations: list[Operation]
    topk_tokens: int
    capture: Capture


def attribute(path: Path) -> Answer:
    """Open an SQLite export and place all its operations."""
    connection = sqlite3.connect(f"file:{path}?mode=ro", uri=True)
    try:
        capture = read_capture(connection)
        return Answer(capture.cells, list(operations(connection, capture)), capture.topk_tokens, capture)
    finally:
        connection.close()


def summary(answer: Answer) -> dict[str, object]:
    """Return the figures that the captures' README gives."""
    result: dict[str, object] = {"count_cells": len(answer.cells), "topk_tokens": answer.topk_tokens}
    rows = cell_rows(answer.cells, answer.operations)
    for kind in OPERATION_TABLES:
        for column in (f"{kind}_count", f"{kind}_time_ns"):
            result[column] = sum(int(str(row[column])) for row in rows)
    uncounted = {op.key for op in answer.operations if op.key is not None} - set(answer.cells)
    return result | {"uncounted_cells": len(uncounted), "coverage": coverage(answer.operations)}


def main() -> None:
    """Print the figures of one capture."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("capture", type=Path, help="SQLite export, unpacked")
    print(json.dumps(summary(attribute(parser.parse_args().capture)), indent=2))


if __name__ == "__main__":
    main()
