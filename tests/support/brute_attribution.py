"""The attribution rules of design, row by row and without cleverness: what the pipeline is checked against."""

from __future__ import annotations

import sqlite3
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

HOUR_NS = 3600 * 10**9
EARLY_NS = 100_000
OVERRUN_NS = 10**9
FAR_NS = 1 << 45
PHASES = ("route", "dispatch", "experts", "combine", "shared", "collective")


#: Rows by process and id.
Calls = dict[tuple[int, int], list[dict[str, Any]]]
Nodes = dict[tuple[int, int], list[dict[str, Any]]]


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


def places(path: Path) -> list[tuple[str, int, Place]]:  # noqa: PLR0912  one rule after the other
    """(table, row, place) of every GPU operation of a SQLite export."""
    db = sqlite3.connect(path)
    db.row_factory = sqlite3.Row
    tables = {r[0] for r in db.execute("select name from sqlite_master where type = 'table'")}
    text = dict(db.execute("select id, value from StringIds").fetchall())
    rows = [dict(r) for r in db.execute("select rowid as row, * from NVTX_EVENTS")]
    ours = {(pid(r["globalTid"]), r["domainId"]) for r in rows if r["eventType"] == 75 and name(r, text) == "nvtxmoe"}
    threads: dict[int, list[Range]] = {}
    starts = sorted(
        r["start"]
        for r in rows
        if r["eventType"] == 59 and (pid(r["globalTid"]), r["domainId"]) in ours and known(name(r, text))
    )
    middle = starts[len(starts) // 2] if starts else 0
    for r in rows:
        if r["eventType"] == 59 and (pid(r["globalTid"]), r["domainId"]) in ours:
            end = 1 << 60 if r["end"] is None else r["end"]
            made = Range(r["start"], end, name(r, text), r["int64Value"], r["row"])
            if r["end"] is not None and not 0 <= r["end"] - r["start"] < HOUR_NS:
                continue
            if known(made.name) and abs(made.start - middle) <= FAR_NS:
                threads.setdefault(r["globalTid"], []).append(made)
    calls: Calls = {}
    if "CUPTI_ACTIVITY_KIND_RUNTIME" in tables:
        for r in db.execute("select * from CUPTI_ACTIVITY_KIND_RUNTIME"):
            calls.setdefault((pid(r["globalTid"]), r["correlationId"]), []).append(dict(r))
    nodes: Nodes = {}
    if "CUDA_GRAPH_NODE_EVENTS" in tables:
        for r in db.execute("select rowid as row, * from CUDA_GRAPH_NODE_EVENTS"):
            nodes.setdefault((pid(r["globalTid"]), r["graphNodeId"]), []).append(dict(r))
    ops: list[tuple[str, dict[str, Any]]] = []
    for table in ("KERNEL", "MEMCPY", "MEMSET", "GRAPH_TRACE"):
        full = f"CUPTI_ACTIVITY_KIND_{table}"
        if full not in tables:
            continue
        for r in db.execute(f"select rowid as row, * from {full}"):
            ops.append((table, dict(r)))
    db.close()
    wrong = [impossible(op, calls) for _, op in ops]
    if 2 * sum(reason.startswith("starts_") for reason in wrong) > len(wrong):  # the clocks differ, not the rows
        wrong = ["" if reason.startswith("starts_") else reason for reason in wrong]
    fine = [op for (_, op), reason in zip(ops, wrong, strict=True) if not reason]
    out = []
    for (table, op), reason in zip(ops, wrong, strict=True):
        why = reason or ("overruns_its_stream" if overruns(op, fine) else "")
        put = Place("implausible", why, None, None, None) if why else place(op, table, threads, calls, nodes)
        out.append((table, op["row"], put))
    return out


def call_of(op: dict[str, Any], calls: Calls) -> dict[str, Any] | None:
    """The launch call: the last one with the id that began before the operation, else the first read."""
    found = calls.get((pid(op["globalPid"]), op["correlationId"]), []) if op["correlationId"] else []
    before = [call for call in found if call["start"] <= op["start"]]
    latest = max((call["start"] for call in before), default=None)
    return [c for c in before if c["start"] == latest][-1] if before else found[0] if found else None


def impossible(op: dict[str, Any], calls: Calls) -> str:
    """Why an operation's own times can't be, empty if they can."""
    call = call_of(op, calls)
    if op["end"] < op["start"]:
        return "ends_before_start"
    if op["end"] - op["start"] >= HOUR_NS:
        return "lasts_an_hour"
    if call is not None and op["start"] < call["start"] - EARLY_NS:
        return "starts_before_launch"
    if call is not None and op["start"] - call["start"] >= HOUR_NS:
        return "starts_an_hour_after_launch"
    return ""


def overruns(op: dict[str, Any], others: Sequence[dict[str, Any]]) -> bool:
    """Whether later work of another call of the stream began long before the operation's end."""
    if op["end"] - op["start"] <= OVERRUN_NS:
        return False
    stream = ("globalPid", "deviceId", "streamId")
    later = (
        other["start"]
        for other in others
        if all(other[c] == op[c] for c in stream)
        and other["correlationId"] != op["correlationId"]
        and (other["start"], other["end"]) > (op["start"], op["end"])
    )
    return bool(op["end"] - min(later, default=op["end"]) > OVERRUN_NS)


def birth_of(process: int, node: int, time: int, nodes: Nodes) -> dict[str, Any] | None:
    """Creation of the original that a node leads to, as things were at a time."""
    seen: set[tuple[int, int]] = set()
    while True:
        rows = sorted(
            (r for r in nodes.get((process, node), []) if r["start"] <= time),
            key=lambda r: (r["start"], r["originalGraphNodeId"] is not None, r["row"]),
        )
        every = sorted(
            nodes.get((process, node), []), key=lambda r: (r["start"], r["originalGraphNodeId"] is not None, r["row"])
        )
        if not rows:
            return None
        row = rows[-1]
        after = every[every.index(row) + 1 :][:1]
        if row["originalGraphNodeId"] is None and after and after[0]["originalGraphNodeId"] is not None:
            row = after[0]  # both rows are one creation, which holds from the first row on
        if row["originalGraphNodeId"] is None:
            return row
        if (node, row["row"]) in seen:
            return None
        seen.add((node, row["row"]))
        at = every.index(row)
        paired = at > 0 and every[at - 1]["originalGraphNodeId"] is None
        time = every[at - 1]["start"] if paired else row["start"]
        node = row["originalGraphNodeId"]


def place(op: dict[str, Any], table: str, threads: dict[int, list[Range]], calls: Calls, nodes: Nodes) -> Place:
    """Place one operation."""
    process = pid(op["globalPid"])
    if not op["correlationId"]:
        return Place("unplaced", "no_correlation_id", None, None, None)
    call = call_of(op, calls)
    if call is None:
        return Place("unplaced", "launch_call_missing", None, None, None)
    launched = state(threads.get(call["globalTid"], []), call["start"])
    where: dict[str, Any] | None = launched
    node = op.get("graphNodeId")
    if node is not None:
        birth = birth_of(process, node, call["start"], nodes)
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
    """Process of a globalTid or globalPid: all above the thread's 24 bits."""
    return ident >> 24


def name(row: dict[str, Any], text: dict[int, str]) -> str:
    """Text of an event, registered or not."""
    return row["text"] if row["text"] is not None else text.get(row["textId"], "")


def known(label: str) -> bool:
    """Whether a range means anything to the attribution."""
    return label in {"moe.idle", "moe.step"} or label.startswith("moe.layer.") or label.removeprefix("moe.") in PHASES
