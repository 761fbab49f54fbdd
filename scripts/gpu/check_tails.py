#!/usr/bin/env python3
"""Is a capture complete? Told by brute force over its SQLite export, with nothing of nvtxmoe's analysis.

    python scripts/gpu/check_tails.py out/report.sqlite [--steps 200]

Every launch call inside a ``moe.step`` range must have its work on the GPU, every launch of a CUDA graph as many
operations as the others of that graph, every step a count for every layer, and the last step must be the program's.
Prints a line of JSON for each export; exits with 1 when one is incomplete.
"""

from __future__ import annotations

import argparse
import json
import sqlite3
import sys
from bisect import bisect_right
from collections import Counter, defaultdict
from pathlib import Path
from typing import Any

LAUNCHES = ("LaunchKernel", "GraphLaunch", "MemcpyAsync", "MemsetAsync", "Memcpy2DAsync")
WORK = ("CUPTI_ACTIVITY_KIND_KERNEL", "CUPTI_ACTIVITY_KIND_MEMCPY", "CUPTI_ACTIVITY_KIND_MEMSET")


def pid_of(global_id: int) -> int:
    """Process id inside a globalTid or globalPid."""
    return (global_id >> 24) & 0xFFFFFF


def check(path: Path, steps: int | None) -> dict[str, Any]:
    """What is missing in one export."""
    base = sqlite3.connect(f"file:{path}?mode=ro", uri=True)
    table_names = {name for (name,) in base.execute("SELECT name FROM sqlite_master WHERE type = 'table'")}
    strings = dict(base.execute("SELECT id, value FROM StringIds"))
    ranges: dict[int, list[tuple[int, int]]] = defaultdict(list)
    marks: Counter[str] = Counter()
    layers: set[tuple[int, str]] = set()
    arrays = set(base.execute("SELECT domainId, schemaId FROM NVTX_PAYLOAD_SCHEMAS WHERE type = 2"))
    for kind, tid, start, end, text, text_id, domain, blob in base.execute(
        "SELECT eventType, globalTid, start, end, text, textId, domainId, CAST(binaryData AS BLOB) FROM NVTX_EVENTS "
        "WHERE eventType IN (34, 59)"
    ):
        name = text or strings.get(text_id, "")
        if kind == 59 and name == "moe.step":
            ranges[tid].append((start, end if end is not None else 1 << 62))
        elif kind == 59 and name.startswith("moe.layer."):
            layers.add((pid_of(tid), name))
        elif kind == 34:  # an array of counts begins, behind its header, with the number of its layers
            is_array = name == "moe.counts" and blob and (domain, int.from_bytes(blob[8:16], "little")) in arrays
            marks[name] += int.from_bytes(blob[32:40], "little") if is_array else 1
    for spans in ranges.values():
        spans.sort()
    starts = {tid: [start for start, _ in spans] for tid, spans in ranges.items()}
    work: Counter[tuple[int, int]] = Counter()
    for table in WORK:
        if table in table_names:
            for global_pid, correlation in base.execute(f"SELECT globalPid, correlationId FROM {table}"):
                work[pid_of(global_pid), correlation] += 1
    graph_of: dict[tuple[int, int], int] = {}
    if WORK[0] in table_names:
        query = f"SELECT globalPid, correlationId, min(graphNodeId) FROM {WORK[0]} WHERE graphNodeId IS NOT NULL"
        for global_pid, correlation, graph in base.execute(f"{query} GROUP BY 1, 2"):
            graph_of[pid_of(global_pid), correlation] = graph
    launches = missing = 0
    sizes: dict[tuple[int, int], Counter[int]] = defaultdict(Counter)
    for tid, start, correlation, name_id, failed in base.execute(
        "SELECT globalTid, start, correlationId, nameId, returnValue FROM CUPTI_ACTIVITY_KIND_RUNTIME"
    ):
        name = strings.get(name_id, "")
        if tid not in starts or failed or not any(launch in name for launch in LAUNCHES):
            continue
        at = bisect_right(starts[tid], start) - 1
        if at < 0 or start >= ranges[tid][at][1]:
            continue
        launches += 1
        key = (pid_of(tid), correlation)
        missing += work[key] == 0
        if "GraphLaunch" in name:
            sizes[key[0], graph_of.get(key, -1)][work[key]] += 1
    uneven = sum(len(counter) > 1 for counter in sizes.values())
    seen = sum(len(spans) for spans in ranges.values())
    counts = marks["moe.counts"]
    per_process = Counter(pid for pid, _ in layers)
    expected_launches = sum(len(spans) * per_process[pid_of(tid)] for tid, spans in ranges.items())
    complete = bool(seen and launches) and not missing and not uneven and counts == expected_launches
    if steps is not None:
        complete = complete and seen == steps
    return {
        "file": path.name, "complete": complete, "steps": seen, "launches": launches, "launches_without_work": missing,
        "graphs_with_uneven_launches": uneven, "counts": counts, "counts_wanted": expected_launches,
    }  # fmt: skip


def main() -> int:
    """Check the exports given."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("exports", nargs="+", type=Path)
    parser.add_argument("--steps", type=int, help="Steps of all processes together that there must be.")
    options = parser.parse_args()
    results = [check(path, options.steps) for path in options.exports]
    for result in results:
        print(json.dumps(result))
    return 0 if all(result["complete"] for result in results) else 1


if __name__ == "__main__":
    sys.exit(main())
