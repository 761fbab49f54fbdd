#!/usr/bin/env python3
"""Does recording make the host wait for the device? Waiting calls a step, in captures with recording off and on.

    VLLM_NVTX_SCOPES_FOR_PROFILING=1 nsys profile -o off ... python scripts/gpu/offline.py
    VLLM_NVTX_SCOPES_FOR_PROFILING=1 NVTXMOE_ENABLE=1 nsys profile -o on ... python scripts/gpu/offline.py
    python scripts/gpu/compare_calls.py off.sqlite on.sqlite

A step lasts from the start of one of vLLM's own ``forward`` ranges to the start of the next. Calls that wait are those
that synchronise, copies that are not asynchronous, and asynchronous copies from or to memory that is not pinned. Prints
JSON; exits with 1 when the steps differ.
"""

from __future__ import annotations

import json
import sqlite3
import sys
from bisect import bisect_right
from collections import Counter
from pathlib import Path
from typing import Any

FORWARD = "gpu_model_runner: forward"


def pid_of(global_id: int) -> int:
    """Process id inside a globalTid or globalPid."""
    return (global_id >> 24) & 0xFFFFFF


def steps(path: Path) -> tuple[list[Counter[str]], Counter[str]]:
    """Waiting calls of each step but the last, and all other calls in them by name."""
    base = sqlite3.connect(f"file:{path}?mode=ro", uri=True)
    strings = dict(base.execute("SELECT id, value FROM StringIds"))
    table_names = {name for (name,) in base.execute("SELECT name FROM sqlite_master WHERE type = 'table'")}
    starts: dict[int, list[int]] = {}
    for tid, start, text, ident in base.execute(
        "SELECT globalTid, start, text, textId FROM NVTX_EVENTS WHERE eventType = 59 ORDER BY start"
    ):
        if (text or strings.get(ident)) == FORWARD:
            starts.setdefault(pid_of(tid), []).append(start)
    if not starts:
        raise SystemExit(f"{path}: no range {FORWARD!r}; was VLLM_NVTX_SCOPES_FOR_PROFILING=1 set?")
    pageable: set[tuple[int, int]] = set()
    if {"CUPTI_ACTIVITY_KIND_MEMCPY", "ENUM_CUDA_MEM_KIND"} <= table_names:
        kinds = [row[0] for row in base.execute("SELECT id FROM ENUM_CUDA_MEM_KIND WHERE label LIKE '%ageable%'")]
        marks = ",".join("?" * len(kinds))
        query = f"SELECT globalPid, correlationId FROM CUPTI_ACTIVITY_KIND_MEMCPY WHERE srcKind IN ({marks})"
        pageable = {(pid_of(pid), c) for pid, c in base.execute(f"{query} OR dstKind IN ({marks})", kinds * 2)}
    waits: dict[int, list[Counter[str]]] = {pid: [Counter() for _ in at] for pid, at in starts.items()}
    others: Counter[str] = Counter()
    for tid, start, ident, correlation in base.execute(
        "SELECT globalTid, start, nameId, correlationId FROM CUPTI_ACTIVITY_KIND_RUNTIME"
    ):
        pid, name = pid_of(tid), strings[ident].split("_v")[0]
        step = bisect_right(starts.get(pid, []), start) - 1
        if step < 0 or step == len(starts[pid]) - 1:
            continue
        copies = "Memcpy" in name
        if "Synchronize" in name or (copies and ("Async" not in name or (pid, correlation) in pageable)):
            waits[pid][step][name] += 1
        else:
            others[name] += 1
    return [wait for pid in sorted(waits) for wait in waits[pid][:-1]], others


def main() -> int:
    """Compare two captures."""
    (off, off_others), (on, on_others) = (steps(Path(name)) for name in sys.argv[1:3])
    total_off, total_on = sum(off, Counter()), sum(on, Counter())
    differing = [at for at, (a, b) in enumerate(zip(off, on, strict=False)) if a != b]
    names = {*off_others, *on_others}
    comparison: dict[str, Any] = {
        "equal": not differing and len(off) == len(on),
        "steps": [len(off), len(on)],
        "waiting_calls_off": dict(total_off),
        "waiting_calls_on": dict(total_on),
        "differing_steps": differing[:20],
        "other_calls_off_on": {
            name: [off_others[name], on_others[name]] for name in sorted(names) if off_others[name] != on_others[name]
        },
    }
    print(json.dumps(comparison))
    return 0 if comparison["equal"] else 1


if __name__ == "__main__":
    sys.exit(main())
