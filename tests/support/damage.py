"""Damage to the rows of an export: what a bug in a tool, or a cut capture, does to it."""

from __future__ import annotations

import sqlite3
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np

KERNELS, CALLS, NODES = "CUPTI_ACTIVITY_KIND_KERNEL", "CUPTI_ACTIVITY_KIND_RUNTIME", "CUDA_GRAPH_NODE_EVENTS"
NVTX = "NVTX_EVENTS"

#: What rows of a table are, by the kind that is damaged.
ROWS: Mapping[str, tuple[str, str]] = {
    "steps": (NVTX, "textId in (select id from StringIds where value = 'moe.step')"),
    "counts": (NVTX, "textId in (select id from StringIds where value = 'moe.counts')"),
    "layers": (NVTX, "textId in (select id from StringIds where value like 'moe.layer.%')"),
    "kernels": (KERNELS, "true"),
    "calls": (CALLS, "true"),
    "nodes": (NODES, "true"),
}
#: The column whose exchange makes two rows change places.
KEYS: Mapping[str, str] = {
    "steps": "binaryData",
    "counts": "binaryData",
    "kernels": "correlationId",
    "calls": "correlationId",
    "nodes": "graphNodeId",
}
#: Rows of a rank, by table: the column whose upper bits are the process.
PROCESS: Mapping[str, str] = {NVTX: "globalTid", CALLS: "globalTid", NODES: "globalTid", KERNELS: "globalPid"}
THREAD_BITS = 24
SECOND_NS = 1_000_000_000


@dataclass(frozen=True)
class Damage:
    """What was done.

    Attributes:
        kind: a key of ``WAYS``, and what it was done to: ``remove kernels``.
        rows: how many rows.
    """

    kind: str
    rows: int


def damage(path: Path, random: np.random.Generator) -> Damage:
    """Damage a SQLite export in place, in one way drawn at random."""
    ways = [(way, kind) for way, (_, kinds) in WAYS.items() for kind in kinds]
    way, kind = ways[random.integers(len(ways))]
    with sqlite3.connect(path) as database:
        rows = WAYS[way][0](database, kind, random)
    database.close()
    return Damage(f"{way} {kind}", rows)


def _some(database: sqlite3.Connection, kind: str, random: np.random.Generator) -> list[int]:
    """Rows of the kind: one, a few anywhere, or a block of neighbours."""
    table, where = ROWS[kind]
    ids = [row[0] for row in database.execute(f"select rowid from {table} where {where} order by start, rowid")]
    number = min(len(ids), int(random.choice([1, 2, 5, 20, max(1, len(ids) // 10)])))
    if random.random() < 0.5:
        first = int(random.integers(len(ids) - number + 1))
        return ids[first : first + number]
    return [ids[at] for at in sorted(random.choice(len(ids), number, replace=False))]


def _remove(database: sqlite3.Connection, kind: str, random: np.random.Generator) -> int:
    rows = _some(database, kind, random)
    database.executemany(f"delete from {ROWS[kind][0]} where rowid = ?", [(row,) for row in rows])
    return len(rows)


def _repeat(database: sqlite3.Connection, kind: str, random: np.random.Generator) -> int:
    rows = _some(database, kind, random)
    table = ROWS[kind][0]
    database.executemany(f"insert into {table} select * from {table} where rowid = ?", [(row,) for row in rows])
    return len(rows)


def _shift(database: sqlite3.Connection, kind: str, random: np.random.Generator) -> int:
    """Move rows in time by 2 seconds to 30 years, either way."""
    rows = _some(database, kind, random)
    table = ROWS[kind][0]
    by = int(2 * SECOND_NS * 10 ** random.uniform(0, 8.7)) * int(random.choice([-1, 1]))
    columns = {row[1] for row in database.execute(f"pragma table_info({table})")}
    moved = ", ".join(f'"{name}" = "{name}" + {by}' for name in ("start", "end") if name in columns)
    database.executemany(f"update {table} set {moved} where rowid = ?", [(row,) for row in rows])
    return len(rows)


def _swap(database: sqlite3.Connection, kind: str, random: np.random.Generator) -> int:
    """Two rows of the kind change their keys."""
    table, where = ROWS[kind]
    key = KEYS[kind]
    ids = [row[0] for row in database.execute(f"select rowid from {table} where {where} order by start, rowid")]
    one, two = (ids[at] for at in random.choice(len(ids), 2, replace=False))
    values = dict(database.execute(f"select rowid, {key} from {table} where rowid in ({one}, {two})").fetchall())
    database.execute(f"update {table} set {key} = ? where rowid = {one}", (values[two],))
    database.execute(f"update {table} set {key} = ? where rowid = {two}", (values[one],))
    return 2


def _lose_rank(database: sqlite3.Connection, kind: str, random: np.random.Generator) -> int:
    """All rows of one process go from a table."""
    table, where = ROWS[kind]
    of = f"({PROCESS[table]} >> {THREAD_BITS})"
    processes = [row[0] for row in database.execute(f"select distinct {of} from {table} where {where} order by 1")]
    gone = processes[random.integers(len(processes))]
    return database.execute(f"delete from {table} where {where} and {of} = {gone}").rowcount


#: What can be done, and to what.
WAYS: Mapping[str, tuple[Callable[[sqlite3.Connection, str, np.random.Generator], int], tuple[str, ...]]] = {
    "remove": (_remove, tuple(ROWS)),
    "repeat": (_repeat, tuple(ROWS)),
    "shift": (_shift, tuple(ROWS)),
    "swap": (_swap, tuple(KEYS)),
    "lose a rank's": (_lose_rank, tuple(ROWS)),
}
