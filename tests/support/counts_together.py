"""Rewrite an export whose moe.counts are one mark per (step, layer): one mark per step with an array of all layers."""

from __future__ import annotations

import shutil
import sqlite3
import struct
from collections import defaultdict
from contextlib import closing
from pathlib import Path

HEADER_BYTES = 32
ARRAY, U64, LENGTH_ARRAY = 2, 18, 48
#: Identifiers of the new schemas: those of real exports are far below.
FIRST_SCHEMA = 1 << 40


def with_counts_together(source: Path, out: Path) -> tuple[int, int]:
    """Copy a SQLite export and put the counts of each step and schema into its first mark.

    Returns:
        Marks of moe.counts and moe.physical before and after.
    """
    shutil.copy(source, out)
    with closing(sqlite3.connect(out)) as database:
        rows = database.execute(
            "SELECT e.rowid, e.globalTid, e.domainId, coalesce(e.text, s.value), CAST(e.binaryData AS BLOB) "
            "FROM NVTX_EVENTS e LEFT JOIN StringIds s ON s.id = e.textId "
            "WHERE e.eventType = 34 AND coalesce(e.text, s.value) IN ('moe.counts', 'moe.physical') ORDER BY e.start"
        ).fetchall()
        steps: dict[tuple[int, int, str, int, bytes], list[tuple[int, bytes]]] = defaultdict(list)
        for row, tid, domain, name, blob in rows:
            _, ident, _, offset = struct.unpack_from("<4Q", blob)
            assert offset == HEADER_BYTES
            steps[tid, domain, name, ident, blob[HEADER_BYTES : HEADER_BYTES + 8]].append((row, blob[HEADER_BYTES:]))
        arrays: set[tuple[int, int]] = set()
        for (_, domain, _, ident, _), marks in steps.items():
            arrays.add((domain, ident))
            data = struct.pack("<Q", len(marks)) + b"".join(body for _, body in marks)
            blob = struct.pack("<4Q", 1, FIRST_SCHEMA + ident, len(data), HEADER_BYTES) + data
            database.execute("UPDATE NVTX_EVENTS SET binaryData = ? WHERE rowid = ?", (blob, marks[0][0]))
            database.executemany("DELETE FROM NVTX_EVENTS WHERE rowid = ?", [(row,) for row, _ in marks[1:]])
        for domain, ident in sorted(arrays):
            _add(database, "NVTX_PAYLOAD_SCHEMAS", domainId=domain, schemaId=FIRST_SCHEMA + ident, type=ARRAY)
            for index, (name, kind, flags) in enumerate((("size", U64, 0), ("data", ident, LENGTH_ARRAY))):
                _add(
                    database,
                    "NVTX_PAYLOAD_SCHEMA_ENTRIES",
                    domainId=domain, schemaId=FIRST_SCHEMA + ident, idx=index, flags=flags, type=kind, name=name,
                )  # fmt: skip
        database.commit()
    return len(rows), len(steps)


def _add(database: sqlite3.Connection, table: str, **values: object) -> None:
    """Insert a row; columns that the export lacks are left out."""
    columns = {row[1] for row in database.execute(f"PRAGMA table_info({table})")}
    kept = {name: value for name, value in values.items() if name in columns}
    marks = ", ".join("?" * len(kept))
    database.execute(f'INSERT INTO "{table}" ({", ".join(kept)}) VALUES ({marks})', tuple(kept.values()))
