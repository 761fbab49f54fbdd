"""What brute force reads of an export: launch calls, ranges, counts, graph nodes, in plain dictionaries.

Payloads are read with the fixed layouts of nvtxmoe.formats.schema. All times are integer nanoseconds.
"""

from __future__ import annotations

import sqlite3
from bisect import bisect_right
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass, field

import numpy as np

from nvtxmoe.formats import schema

HEADER_BYTES = 32
ARRAY_SCHEMA = 2
EVENT_MARK, EVENT_RANGE, EVENT_DOMAIN = 34, 59, 75

CellKey = tuple[int, int, int]  # rank, step, layer


def pid_of(global_id: int) -> int:
    """Process id inside a globalTid or globalPid."""
    return (global_id >> 24) & 0xFFFFFF


@dataclass(frozen=True)
class Step:
    """What a ``moe.step`` payload says."""

    rank: int
    step: int


@dataclass
class Ranges:
    """Ranges of one kind on one thread: ``start_ns <= t < end_ns``."""

    spans: list[tuple[int, int, object]] = field(default_factory=list)
    longest_ns: int = 0

    def add(self, start_ns: int, end_ns: int, value: object) -> None:
        """Remember a range; ``finish`` must follow the last one."""
        self.spans.append((start_ns, end_ns, value))
        self.longest_ns = max(self.longest_ns, end_ns - start_ns)

    def finish(self) -> None:
        """Sort by start, so that ``innermost`` can search."""
        self.spans.sort(key=lambda span: span[:2])
        self.starts = [span[0] for span in self.spans]

    def innermost(self, at_ns: int) -> object | None:
        """Return the value of the last range to start among those that contain a moment."""
        for index in range(bisect_right(self.starts, at_ns) - 1, -1, -1):
            start_ns, end_ns, value = self.spans[index]
            if at_ns < end_ns:
                return value
            if at_ns - start_ns > self.longest_ns:
                break
        return None


@dataclass(frozen=True)
class Cell:
    """One layer of a ``moe.counts`` mark: assignments an expert got in one (rank, step, layer)."""

    num_tokens: int
    counts: tuple[int, ...]


@dataclass
class Capture:
    """The tables of one export that attribution needs, in dictionaries."""

    strings: dict[int, str]
    copy_kinds: dict[int, str]
    steps: dict[int, Ranges] = field(default_factory=lambda: defaultdict(Ranges))
    layers: dict[int, Ranges] = field(default_factory=lambda: defaultdict(Ranges))
    phases: dict[int, Ranges] = field(default_factory=lambda: defaultdict(Ranges))
    cells: dict[CellKey, Cell] = field(default_factory=dict)
    topk_tokens: int = 0
    launches: dict[tuple[int, int], tuple[int, int]] = field(default_factory=dict)
    originals: dict[tuple[int, int], int] = field(default_factory=dict)
    creations: dict[tuple[int, int], tuple[int, int]] = field(default_factory=dict)


def tables_of(connection: sqlite3.Connection) -> set[str]:
    """Names of the tables that are there (exports are lazy)."""
    return {name for (name,) in connection.execute("SELECT name FROM sqlite_master WHERE type = 'table'")}


def is_sealed(connection: sqlite3.Connection) -> bool:
    """Whether structs of counts end with a checksum."""
    if "NVTX_PAYLOAD_SCHEMA_ENTRIES" not in tables_of(connection):
        return False
    query = "SELECT count(*) FROM NVTX_PAYLOAD_SCHEMA_ENTRIES WHERE name = 'checksum'"
    return bool(connection.execute(query).fetchone()[0])


def decode_counts(blob: bytes, is_array: bool, *, sealed: bool) -> Iterator[tuple[CellKey, Cell]]:
    """Decode the payload of a ``moe.counts`` mark, its header included: one struct, or an array of structs.

    Parameters:
        sealed: each struct ends with a checksum of four bytes.
    """
    body = blob[HEADER_BYTES:]
    layers = 1
    if is_array:
        layers, body = int.from_bytes(body[:8], "little"), body[8:]
    size = len(body) // layers
    experts = (size - schema.counts_dtype(0).itemsize) // 4 - sealed
    dtype = np.dtype([*schema.counts_dtype(experts).descr, ("rest", f"V{4 * sealed}")])
    for row in np.frombuffer(body, dtype=dtype, count=layers):
        counts = tuple(int(count) for count in row["counts"])
        if sum(counts) != int(row["num_tokens"]) * int(row["top_k"]):
            raise ValueError(f"counts of step {row['step']}, layer {row['layer']} do not sum to tokens x top_k")
        yield (int(row["rank"]), int(row["step"]), int(row["layer"])), Cell(int(row["num_tokens"]), counts)


def read_nvtx(connection: sqlite3.Connection, capture: Capture) -> None:
    """Sort the ranges and marks of our domain into the capture."""
    rows = connection.execute(
        "SELECT start, end, eventType, globalTid, domainId, coalesce(text, value), binaryData, int64Value"
        " FROM NVTX_EVENTS LEFT JOIN StringIds ON id = textId ORDER BY start"
    ).fetchall()
    moe_domains = {
        (pid_of(tid), domain)
        for _, _, kind, tid, domain, text, _, _ in rows
        if kind == EVENT_DOMAIN and text == schema.DOMAIN
    }
    phases = {schema.PHASE_PREFIX + phase: phase for phase in schema.PHASES}
    query = f"SELECT domainId, schemaId FROM NVTX_PAYLOAD_SCHEMAS WHERE type = {ARRAY_SCHEMA}"
    arrays = set(connection.execute(query)) if "NVTX_PAYLOAD_SCHEMAS" in tables_of(connection) else set()
    sealed = is_sealed(connection)
    for start_ns, end_ns, kind, tid, domain, text, blob, number in rows:
        if (pid_of(tid), domain) not in moe_domains or kind not in (EVENT_MARK, EVENT_RANGE):
            continue
        if text == schema.STEP:
            (row,) = np.frombuffer(blob[HEADER_BYTES:], dtype=schema.STEP_DTYPE)
            capture.steps[tid].add(start_ns, end_ns, Step(int(row["rank"]), int(row["step"])))
        elif text.startswith(schema.LAYER_PREFIX):
            capture.layers[tid].add(start_ns, end_ns, int(text.removeprefix(schema.LAYER_PREFIX)))
        elif text in phases:
            capture.phases[tid].add(start_ns, end_ns, phases[text])
        elif text == schema.COLLECTIVE:  # after its layer's range, and part of the layer
            capture.layers[tid].add(start_ns, end_ns, number)
            capture.phases[tid].add(start_ns, end_ns, "collective")
        elif text == schema.COUNTS:
            is_array = (domain, int.from_bytes(blob[8:16], "little")) in arrays
            for key, cell in decode_counts(blob, is_array, sealed=sealed):
                if key in capture.cells:
                    raise ValueError(f"moe.counts has (rank, step, layer) {key} twice")
                capture.cells[key] = cell
        elif text == schema.TOPK:
            capture.topk_tokens += int.from_bytes(blob[HEADER_BYTES : HEADER_BYTES + 8], "little")
    for ranges in (capture.steps, capture.layers, capture.phases):
        for of_thread in ranges.values():
            of_thread.finish()


def read_capture(connection: sqlite3.Connection) -> Capture:
    """Read everything but the GPU operations."""
    tables = tables_of(connection)
    capture = Capture(dict(connection.execute("SELECT id, value FROM StringIds")), {})
    if "ENUM_CUDA_MEMCPY_OPER" in tables:
        capture.copy_kinds = dict(connection.execute("SELECT id, label FROM ENUM_CUDA_MEMCPY_OPER"))
    read_nvtx(connection, capture)
    for start_ns, tid, correlation in connection.execute(
        "SELECT start, globalTid, correlationId FROM CUPTI_ACTIVITY_KIND_RUNTIME"
    ):
        capture.launches[pid_of(tid), correlation] = (start_ns, tid)
    if "CUDA_GRAPH_NODE_EVENTS" in tables:
        for start_ns, tid, node, original in connection.execute(
            "SELECT start, globalTid, graphNodeId, originalGraphNodeId FROM CUDA_GRAPH_NODE_EVENTS"
        ):
            if original is None:
                capture.creations[pid_of(tid), node] = (start_ns, tid)
            else:
                capture.originals[pid_of(tid), node] = original
    return capture
