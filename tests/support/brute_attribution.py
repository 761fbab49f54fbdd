"""The attribution rules of design, row by row and without cleverness: what the pipeline is checked against."""

from __future__ import annotations

import sqlite3
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

PHASES = ("route", "dispatch", "experts", "combine", "shared", "collective")


class Range(NamedTuple):
    """A push/pop range of one thread."""

    start: int
    end: int
    name: str
    value: int | None
    row: int


class Place(NamedTuple):
    """Where an operation belongs: class, reason, row of the step's range, layer, phase."""

    kind: str
    reason: str
    step: int | None
    layer: int | None
    phase: str | None


def covering(ranges: Sequence[Range], time: int) -> tuple[list[Range], bool]:
    """Ranges that contain a time, outermost first, and whether any two of them cross."""
    found = [r for r in ranges if r.start <= time < r.end]
    found.sort(key=lambda r: (r.start, -r.end, rank_of(r.name), r.row))
    crossing = any(a.start < b.start < a.end < b.end for a in found for b in found)
    return found, crossing


def rank_of(name: str) -> int:
    """Nesting order of ranges of equal times."""
    return 0 if name == "moe.idle" else 1 if name == "moe.step" else 2 if name.startswith("moe.layer.") else 3


def state(ranges: Sequence[Range], time: int) -> dict[str, Any]:
    """Step row, layer, phase, idle and crossing at a time."""
    found, crossing = covering(ranges, time)
    now: dict[str, Any] = {"step": None, "layer": None, "phase": None, "idle": False, "crossing": crossing}
    for r in found:
        short = r.name.removeprefix("moe.")
        if r.name == "moe.idle":
            now["idle"] = True
        elif r.name == "moe.step":
            now["step"] = r.row
        elif r.name.startswith("moe.layer."):
            now["layer"], now["phase"] = r.value, None
        elif short in PHASES:
            now["layer"] = now["layer"] if r.value is None else r.value
            now["phase"] = short
    return now


def places(path: Path) -> list[tuple[str, int, Place]]:
    """(table, row, place) of every GPU operation of a SQLite export."""
    db = sqlite3.connect(path)
    db.row_factory = sqlite3.Row
    tables = {r[0] for r in db.execute("select name from sqlite_master where type = 'table'")}
    text = dict(db.execute("select id, value from StringIds").fetchall())
    rows = [dict(r) for r in db.execute("select rowid as row, * from NVTX_EVENTS")]
    ours = {(pid(r["globalTid"]), r["domainId"]) for r in rows if r["eventType"] == 75 and name(r, text) == "nvtxmoe"}
    threads: dict[int, list[Range]] = {}
    for r in rows:
        if r["eventType"] == 59 and (pid(r["globalTid"]), r["domainId"]) in ours:
            end = 1 << 60 if r["end"] is None else r["end"]
            made = Range(r["start"], end, name(r, text), r["int64Value"], r["row"])
            if known(made.name):
                threads.setdefault(r["globalTid"], []).append(made)
    calls: dict[tuple[int, int], dict[str, Any]] = {}
    if "CUPTI_ACTIVITY_KIND_RUNTIME" in tables:
        for r in db.execute("select * from CUPTI_ACTIVITY_KIND_RUNTIME"):
            calls.setdefault((pid(r["globalTid"]), r["correlationId"]), dict(r))
    created: dict[tuple[int, int], dict[str, Any]] = {}
    original: dict[tuple[int, int], int] = {}
    if "CUDA_GRAPH_NODE_EVENTS" in tables:
        for r in db.execute("select * from CUDA_GRAPH_NODE_EVENTS"):
            key = (pid(r["globalTid"]), r["graphNodeId"])
            if r["originalGraphNodeId"] is None:
                created.setdefault(key, dict(r))
            else:
                original.setdefault(key, r["originalGraphNodeId"])
    out = []
    for table in ("KERNEL", "MEMCPY", "MEMSET", "GRAPH_TRACE"):
        full = f"CUPTI_ACTIVITY_KIND_{table}"
        if full not in tables:
            continue
        for r in db.execute(f"select rowid as row, * from {full}"):
            out.append((table, r["row"], place(dict(r), table, threads, calls, created, original)))
    db.close()
    return out


def place(
    op: dict[str, Any], table: str, threads: dict[int, list[Range]], calls: dict[tuple[int, int], dict[str, Any]],
    created: dict[tuple[int, int], dict[str, Any]], original: dict[tuple[int, int], int],
) -> Place:  # fmt: skip
    """Place one operation."""
    process = pid(op["globalPid"])
    if not op["correlationId"]:
        return Place("unplaced", "no_correlation_id", None, None, None)
    call = calls.get((process, op["correlationId"]))
    if call is None:
        return Place("unplaced", "launch_call_missing", None, None, None)
    launched = state(threads.get(call["globalTid"], []), call["start"])
    where: dict[str, Any] | None = launched
    node = op.get("graphNodeId")
    if node is not None:
        birth = created.get((process, original.get((process, node), node)))
        where = None if birth is None else state(threads.get(birth["globalTid"], []), birth["start"])
    if launched["crossing"] or (where is not None and where["crossing"]):
        return Place("unplaced", "crossing_ranges", None, None, None)
    if launched["step"] is None:
        return Place("outside_steps", "idle" if launched["idle"] else "", None, None, None)
    if table == "GRAPH_TRACE":
        return Place("unplaced", "graph_level_tracing", None, None, None)
    if where is None:
        return Place("unplaced", "graph_node_unresolved", None, None, None)
    if where["layer"] is None or where["layer"] < 0:
        return Place("in_step", "", launched["step"], None, None)
    return Place("in_layer", "", launched["step"], where["layer"], where["phase"] or "other")


def totals(path: Path) -> Counter[Place]:
    """Operations by place."""
    return Counter(found for _, _, found in places(path))


def pid(ident: int) -> int:
    """Process of a globalTid or globalPid."""
    return (ident >> 24) & 0xFFFFFF


def name(row: dict[str, Any], text: dict[int, str]) -> str:
    """Text of an event, registered or not."""
    return row["text"] if row["text"] is not None else text.get(row["textId"], "")


def known(label: str) -> bool:
    """Whether a range means anything to the attribution."""
    return label in {"moe.idle", "moe.step"} or label.startswith("moe.layer.") or label.removeprefix("moe.") in PHASES
