"""What rows of a SQLite export weigh, and how many a step has: from exports of real GPU captures."""

from __future__ import annotations

import sqlite3
from contextlib import closing
from pathlib import Path

#: Tables that are weighed, and what a row is.
TABLES = {
    "NVTX_EVENTS": "NVTX event, without its blob",
    "CUPTI_ACTIVITY_KIND_KERNEL": "kernel",
    "CUPTI_ACTIVITY_KIND_RUNTIME": "runtime call",
    "CUPTI_ACTIVITY_KIND_MEMCPY": "copy",
    "CUPTI_ACTIVITY_KIND_SYNCHRONIZATION": "synchronisation",
    "CUPTI_ACTIVITY_KIND_CUDA_EVENT": "CUDA event",
    "CUDA_GRAPH_NODE_EVENTS": "graph node",
}
NAMED = (
    "SELECT e.globalTid, e.start, e.end FROM NVTX_EVENTS e LEFT JOIN StringIds s ON s.id = e.textId "
    "WHERE coalesce(e.text, s.value) = ? ORDER BY e.start"
)
COUNTS = (
    "SELECT e.domainId, CAST(e.binaryData AS BLOB) FROM NVTX_EVENTS e LEFT JOIN StringIds s ON s.id = e.textId "
    "WHERE coalesce(e.text, s.value) = 'moe.counts'"
)
CALLS = "SELECT correlationId FROM CUPTI_ACTIVITY_KIND_RUNTIME WHERE globalTid = ? AND start >= ? AND start < ?"


def row_bytes(export: Path) -> dict[str, tuple[int, int, float]]:
    """Columns, rows and bytes a row (the table's pages over its rows, blobs left out) of the tables that are there."""
    out = {}
    with closing(sqlite3.connect(export)) as database:
        pages = dict(database.execute("SELECT name, sum(pgsize) FROM dbstat GROUP BY name").fetchall())
        for table in sorted(pages.keys() & TABLES.keys()):
            columns = [row[1] for row in database.execute(f"PRAGMA table_info({table})")]
            blobs = "total(length(binaryData))" if "binaryData" in columns else "0"
            rows, blob_bytes = database.execute(f"SELECT count(*), {blobs} FROM {table}").fetchone()
            out[table] = (len(columns), rows, (pages[table] - blob_bytes) / rows)
    return out


def activity(export: Path) -> tuple[float, float]:
    """Kernels, copies and memsets launched in steps, a (step, layer); and the runtime calls of steps a kernel.

    The second leaves out each thread's first step. Of a model with few layers the first is high: what runs once a
    step counts in full.
    """
    with closing(sqlite3.connect(export)) as database:
        names = {name for (name,) in database.execute("SELECT name FROM sqlite_master")}
        kinds = [k for k in ("KERNEL", "MEMCPY", "MEMSET") if f"CUPTI_ACTIVITY_KIND_{k}" in names]
        # An array of counts begins, behind its header, with the number of its layers.
        arrays = set(database.execute("SELECT domainId, schemaId FROM NVTX_PAYLOAD_SCHEMAS WHERE type = 2"))
        cells = 0
        for domain, blob in database.execute(COUNTS).fetchall():
            is_array = (domain, int.from_bytes(blob[8:16], "little")) in arrays
            cells += int.from_bytes(blob[32:40], "little") if is_array else 1
        operations = kernels = calls = 0
        seen: set[int] = set()
        for tid, start, end in database.execute(NAMED, ("moe.step",)).fetchall():
            counts = {}
            for kind in kinds:
                query = (
                    f"SELECT count(*) FROM CUPTI_ACTIVITY_KIND_{kind} "
                    f"WHERE globalPid >> 24 & 0xFFFFFF = ? AND correlationId IN ({CALLS})"
                )
                counts[kind] = database.execute(query, (tid >> 24 & 0xFFFFFF, tid, start, end)).fetchone()[0]
            operations += sum(counts.values())
            if tid in seen:
                kernels += counts["KERNEL"]
                calls += database.execute(f"SELECT count(*) FROM ({CALLS})", (tid, start, end)).fetchone()[0]
            seen.add(tid)
    return operations / cells, calls / kernels
