"""Reads the capture to be tiled and cuts it into a head (once a process) and a tile (repeated).

All times are integer nanoseconds of the capture's clock.
"""

from __future__ import annotations

import sqlite3
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import polars as pl

from nvtxmoe.formats import schema
from scripts.bench.brute_capture import pid_of

RUNTIME, NVTX, NODES = "CUPTI_ACTIVITY_KIND_RUNTIME", "NVTX_EVENTS", "CUDA_GRAPH_NODE_EVENTS"
KERNEL = "CUPTI_ACTIVITY_KIND_KERNEL"
#: Tables whose rows belong to a runtime call by correlationId.
ACTIVITIES = (
    KERNEL,
    "CUPTI_ACTIVITY_KIND_MEMCPY",
    "CUPTI_ACTIVITY_KIND_MEMSET",
    "CUPTI_ACTIVITY_KIND_SYNCHRONIZATION",
    "CUPTI_ACTIVITY_KIND_CUDA_EVENT",
)
#: How long after the last step the tile ends: the copies and kernels launched after it belong to it.
SETTLE_NS = 1_000_000
#: NVTX rows that say something once and for all: a category's name, a domain's name.
#: A call that gives no GPU work, as nsys names it.
PADDING_CALL = "cudaStreamIsCapturing_v10000"
ONCE_EVENT_TYPES = (33, 75)

Frames = dict[str, pl.DataFrame]


@dataclass(frozen=True)
class Window:
    """Head: ``head_ns <= t < serving_ns``; tile: ``serving_ns <= t < end_ns`` (starts of launch calls)."""

    head_ns: int
    serving_ns: int
    end_ns: int


@dataclass
class Source:
    """A capture, cut. The frames hold SQLite's values; ``name`` is added to NVTX_EVENTS."""

    declarations: list[str]
    pid: int
    window: Window
    head: Frames = field(default_factory=dict)
    tile: Frames = field(default_factory=dict)
    small: Frames = field(default_factory=dict)


def read_table(connection: sqlite3.Connection, table: str) -> pl.DataFrame:
    """Read one table with types that hold what SQLite holds."""
    types: dict[str, type[pl.DataType]] = {"INTEGER": pl.Int64, "REAL": pl.Float64, "TEXT": pl.String}
    columns = {
        name: pl.Binary if name == "binaryData" else types[declared]
        for _, name, declared, *_ in connection.execute(f'PRAGMA table_info("{table}")')
    }
    rows = connection.execute(f'SELECT * FROM "{table}" ORDER BY rowid').fetchall()
    return pl.DataFrame(rows, schema=columns, orient="row")


def read_source(path: Path) -> Source:
    """Read a capture of one engine process with its CUDA graphs and at least one step."""
    connection = sqlite3.connect(f"file:{path}?mode=ro", uri=True)
    try:
        declared = connection.execute("SELECT name, sql FROM sqlite_master WHERE type = 'table'").fetchall()
        tables = {name: read_table(connection, name) for name, _ in declared}
    finally:
        connection.close()
    strings = tables["StringIds"].select(textId="id", name="value")
    nvtx = tables.pop(NVTX).join(strings, on="textId", how="left", maintain_order="left")
    nvtx = nvtx.with_columns(pl.coalesce("text", "name").alias("name"))
    steps = nvtx.filter(pl.col("name") == schema.STEP)
    pids = {pid_of(tid) for tid in steps["globalTid"]}
    if len(pids) != 1:
        raise ValueError(f"{path}: moe.step ranges of {len(pids)} processes, the tiler wants one")
    window = window_of(steps, nvtx.filter(pl.col("name").str.starts_with("moe.")), tables.get(NODES))
    source = Source([sql for _, sql in declared], pids.pop(), window)
    cut_nvtx(source, nvtx)
    cut_activities(source, tables)
    source.small = tables
    return source


def window_of(steps: pl.DataFrame, nvtx_rows: pl.DataFrame, nodes: pl.DataFrame | None) -> Window:
    """Find where the head begins (the first graph node), and where serving begins and ends."""
    serving_ns = int(steps["start"].to_numpy().min())
    last_ns = max(int(steps["end"].to_numpy().max()), int(nvtx_rows["start"].to_numpy().max()))
    head_ns = serving_ns if nodes is None else min(serving_ns, int(nodes["start"].to_numpy().min()))
    return Window(head_ns, serving_ns, last_ns + SETTLE_NS)


def of_process(column: str, pid: int) -> pl.Expr:
    """Rows whose globalTid or globalPid is the process's."""
    return (pl.col(column) // 2**24) % 2**24 == pid


def cut_nvtx(source: Source, nvtx: pl.DataFrame) -> None:
    """All ranges and marks before serving are the head's; other processes' rows stay there, once."""
    window, start = source.window, pl.col("start")
    source.head[NVTX] = nvtx.filter(start < window.serving_ns)
    source.tile[NVTX] = nvtx.filter(start.is_between(window.serving_ns, window.end_ns, closed="left"))


def cut_activities(source: Source, tables: Frames) -> None:
    """Cut runtime calls by their start, what they caused by correlationId; removes them from tables."""
    window, start = source.window, pl.col("start")
    calls = tables.pop(RUNTIME).filter(of_process("globalTid", source.pid))
    source.head[RUNTIME] = calls.filter(start.is_between(window.head_ns, window.serving_ns, closed="left"))
    source.tile[RUNTIME] = calls.filter(start.is_between(window.serving_ns, window.end_ns, closed="left"))
    if NODES in tables:
        source.head[NODES] = tables.pop(NODES).filter(of_process("globalTid", source.pid))
    for table in ACTIVITIES:
        if table not in tables:
            continue
        rows = tables.pop(table).filter(of_process("globalPid", source.pid))
        for part in (source.head, source.tile):
            part[table] = rows.join(
                part[RUNTIME].select("correlationId"), on="correlationId", how="semi", maintain_order="left"
            )
    if source.head[RUNTIME].height and not (
        int(source.head[RUNTIME]["correlationId"].to_numpy().max())
        < int(source.tile[RUNTIME]["correlationId"].to_numpy().min())
    ):
        raise ValueError("correlation ids of the head reach into the tile's")


def _padding_name(small: Frames) -> int:
    """Id of PADDING_CALL, which is added to the strings if it is not there."""
    strings = small["StringIds"]
    known = strings.filter(pl.col("value") == PADDING_CALL)["id"]
    if len(known):
        return int(known[0])
    ident = int(strings["id"].to_numpy().max()) + 1
    new = pl.DataFrame({"id": [ident], "value": [PADDING_CALL]}, schema=strings.schema)
    small["StringIds"] = pl.concat([strings, new])
    return ident


def fit_calls(tile: Frames, small: Frames, number: int, rng: np.random.Generator) -> None:
    """Pad or thin the tile's runtime calls that nothing refers to, as far as that goes.

    A padding call stands right after the call it copies, as long as that one and with an id of its own. A trimmed
    capture has no call that nothing refers to: there the copies are renamed to one that gives no GPU work.
    """
    calls = tile[RUNTIME].with_row_index("row")
    used = pl.concat([tile[table].select("correlationId") for table in ACTIVITIES if table in tile])
    idle = calls.join(used, on="correlationId", how="anti", maintain_order="left")
    missing = number - calls.height
    if missing < 0:
        dropped = rng.choice(idle["row"].to_numpy(), size=min(-missing, idle.height), replace=False)
        calls = calls.filter(~pl.col("row").is_in(dropped.tolist()))
    elif missing > 0:
        first_id = int(calls["correlationId"].to_numpy().max()) + 1
        idle = idle if idle.height else calls.with_columns(nameId=pl.lit(_padding_name(small), pl.Int64))
        copies = idle[rng.integers(idle.height, size=missing).tolist()].with_columns(
            start=pl.col("end"),
            end=2 * pl.col("end") - pl.col("start"),
            correlationId=pl.int_range(first_id, first_id + missing, dtype=pl.Int64),
        )
        calls = pl.concat([calls, copies])
    tile[RUNTIME] = calls.drop("row").sort("start", maintain_order=True)
