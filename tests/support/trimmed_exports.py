"""What trimming has to leave of an export, and private things to plant in one."""

from __future__ import annotations

import json
import shutil
import sqlite3
import struct
from pathlib import Path
from typing import Any

import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq

from nvtxmoe_analysis.attribution.attribute import attribute
from nvtxmoe_analysis.attribution.launches import Launches
from nvtxmoe_analysis.attribution.ranges import classify, flatten
from nvtxmoe_analysis.events.decode import read_events
from nvtxmoe_analysis.readers import nsys_tables
from nvtxmoe_analysis.readers.open import open_export
from nvtxmoe_analysis.trimming.trim import Trimmed, trim
from tests.support.export_builder import Export, Process

MARKER = "xyzzy"  # planted wherever an export could hold what is nobody's business

Figures = dict[str, Any]


def figures(path: Path) -> Figures:
    """Everything that the analysis makes of an export, but for positions of rows in it."""
    export = open_export(path)
    events = read_events(export)
    segments = flatten(classify(events.ranges, events.steps))
    launches = Launches(export, segments)
    placed = attribute(export, segments, launches)
    return {
        "coverage": placed.coverage.rows(),
        "in_layer": placed.in_layer.sort(pl.all()).rows(),
        "outside_layers": placed.outside_layers.sort("name", "kind").rows(),
        "names": placed.names,
        "nodes_unresolved": placed.nodes_unresolved,
        "partial_graphs": len(placed.partial_graphs),
        "launches": launches.in_steps().drop("call").sort(pl.all()).rows(),
        "crossings": segments.crossings,
        "steps": events.steps.drop("row").rows(),
        "counts": events.counts.cells.drop("row").rows(),
        "matrix": events.counts.matrix.tolist(),
        "physical": events.physical.matrix.tolist(),
        "topk": events.topk.tokens.rows(),
        "experts": events.topk.experts.tolist(),
        "weights": events.topk.weights.tolist(),
        "pairs": [p.tolist() for p in events.pairs.pairs],
        "metas": {pid: (m.rank, m.world_size, m.tp_rank, m.tp_size, m.layers) for pid, m in events.metas.items()},
        "problems": events.problems,
        "encoding": events.encoding,
        "start": export.read(nsys_tables.SESSION_START).rows(),
        "gpus": export.read(nsys_tables.GPU_INFO).rows(),
        "product": export.metadata(nsys_tables.EXPORT_META).get("EXPORT_PRODUCT_VERSION"),
    }


def trimmed(source: Path, out: Path) -> Trimmed:
    return trim(open_export(source), out)


def content(path: Path) -> dict[str, bytes]:
    """Bytes of a file, or of the files of a folder."""
    return {f.name: f.read_bytes() for f in path.iterdir()} if path.is_dir() else {path.name: path.read_bytes()}


def private_meta(text: bytes, number: int) -> bytes:
    """A moe.meta as a careless capture would write it."""
    raw = json.loads(text)
    more = {
        "host": f"{MARKER}-host",
        "model": f"/home/{MARKER}/models/Qwen3",
        "run_id": f"{MARKER}-run",
        "pid": number,
        "user": MARKER,
        "argv": ["vllm", f"--model=/home/{MARKER}"],
        "extra": {MARKER: 1},
        "seed": 17,
    }
    return json.dumps({**more, **raw}).encode()


def plant(source: Path, out: Path) -> Path:
    """A copy of a SQLite export with private things in every table that could carry them, and rows of no use."""
    shutil.copy(source, out)
    connection = sqlite3.connect(out)
    ident = 1_000_000
    for table, columns in {
        "TARGET_INFO_SYSTEM_ENV": ("globalVid", "devStateName", "name", "nameEnum", "value"),
        "ThreadNames": ("nameId", "priority", "globalTid"),
        "ANALYSIS_FILE": ("id", "filename", "contentId", "globalPid"),
        "ProcessStreams": ("globalPid", "filenameId", "contentId"),
    }.items():
        connection.execute(f"CREATE TABLE {table} ({', '.join(columns)})")
        connection.execute(f"INSERT INTO {table} VALUES ({', '.join('?' * len(columns))})", [MARKER] * len(columns))
    for statement in (
        f"INSERT INTO StringIds VALUES ({ident}, '/home/{MARKER}/log'), ({ident + 1}, '{MARKER}'), "
        f"({ident + 2}, 'sem_wait')",
        "ALTER TABLE PROCESSES ADD COLUMN name TEXT",
        f"UPDATE PROCESSES SET name = '{MARKER}'",
        f"INSERT INTO META_DATA_EXPORT VALUES ('EXPORT_HOST', '{MARKER}'), ('EXPORT_USER', '{MARKER}'), "
        f"('EXPORT_PARAM_INPUT_PATH_ABS', '/home/{MARKER}/r.nsys-rep')",
        "CREATE TABLE IF NOT EXISTS META_DATA_CAPTURE (name TEXT NOT NULL, value TEXT)",
        f"INSERT INTO META_DATA_CAPTURE VALUES ('PROCESS_0:COMMAND_LINE', 'vllm serve /home/{MARKER}'), "
        f"('PROCESS_0:ENVIRONMENT:TOKEN', '{MARKER}'), ('PROCESS_0:CUDA_GRAPH_TRACE_OPTIONS:MODE', 'Node')",
        "INSERT INTO DIAGNOSTIC_EVENT (timestamp, severity, text) VALUES "
        f"(5, 1, 'Process /usr/{MARKER} was launched'), (6, 1, 'Number of NVTX events collected: 5. {MARKER}'), "
        "(7, 2, 'Not all CUDA events might have been collected.')",
        # Another domain, a category of ours, and an event of ours with a name of its own.
        f"INSERT INTO NVTX_EVENTS (start, eventType, text, globalTid, domainId) VALUES (1, 75, '{MARKER}', 1, 77), "
        f"(2, 34, '{MARKER} in words', 1, 77), (3, 33, '{MARKER}', 1, 1)",
        "INSERT INTO NVTX_EVENTS (start, eventType, textId, globalTid, domainId) "
        f"SELECT start, 34, {ident}, globalTid, 1 FROM NVTX_EVENTS WHERE eventType = 59 LIMIT 1",
        # A payload on an event that has none, and calls that lead nowhere.
        f"UPDATE NVTX_EVENTS SET binaryData = '{MARKER}' WHERE textId = "
        "(SELECT id FROM StringIds WHERE value = 'moe.layer.0')",
        "INSERT INTO CUPTI_ACTIVITY_KIND_RUNTIME (start, end, globalTid, correlationId, nameId, returnValue) "
        f"SELECT start + 1, end, globalTid, correlationId + 100000000, {ident + 2}, 0 FROM CUPTI_ACTIVITY_KIND_RUNTIME",
        "INSERT INTO CUDA_GRAPH_NODE_EVENTS (start, globalTid, graphNodeId) "
        "SELECT 1, globalTid, graphNodeId + 1000000000000 FROM CUDA_GRAPH_NODE_EVENTS",
    ):
        connection.execute(statement)
    for table in ("TARGET_INFO_GPU", "TARGET_INFO_SESSION_START_TIME"):
        connection.execute(f"ALTER TABLE {table} ADD COLUMN uuid TEXT")
        connection.execute(f"UPDATE {table} SET uuid = '{MARKER}'")
    query = "SELECT n.rowid, CAST(binaryData AS BLOB) FROM NVTX_EVENTS n JOIN StringIds ON id = textId WHERE value = ?"
    for row, blob in connection.execute(query, ("moe.meta",)).fetchall():
        text = private_meta(blob[40:], row)
        head = blob[:16] + struct.pack("<3Q", 8 + len(text), 32, len(text))
        connection.execute("UPDATE NVTX_EVENTS SET binaryData = ? WHERE rowid = ?", (head + text, row))
    connection.commit()
    connection.close()
    return out


def plant_parquet(source: Path, out: Path) -> Path:
    """The same for a folder of Parquet files: the tables that hold texts."""
    shutil.copytree(source, out)
    for name in ("TARGET_INFO_SYSTEM_ENV", "ThreadNames", "ANALYSIS_FILE", "ProcessStreams"):
        pq.write_table(pa.table({"name": [MARKER], "value": [MARKER]}), out / f"{name}.parquet")
    rows: dict[str, dict[str, Any]] = {
        "StringIds": {"id": 1_000_000, "value": MARKER},
        "META_DATA_EXPORT": {"name": "EXPORT_HOST", "value": MARKER},
        "META_DATA_CAPTURE": {"name": "PROCESS_0:COMMAND_LINE", "value": MARKER},
        "DIAGNOSTIC_EVENT": {"timestamp": 5, "severity": 1, "text": MARKER},
        "NVTX_EVENTS": {"start": 2, "eventType": 34, "text": MARKER, "globalTid": 1, "domainId": 77},
    }
    for table, row in rows.items():
        file = out / f"{table}.parquet"
        old = pq.read_table(file) if file.exists() else pa.table({k: pa.array([], pa.large_string()) for k in row})
        new = pa.table({f.name: pa.array([row.get(f.name)], f.type) for f in old.schema})
        pq.write_table(pa.concat_tables([old, new]), file)
    processes = pq.read_table(out / "PROCESSES.parquet")
    pq.write_table(processes.append_column("name", pa.array([MARKER] * len(processes))), out / "PROCESSES.parquet")
    return out


def holds(path: Path, text: str) -> bool:
    """Whether a text stands anywhere in an export: in its bytes, its decoded columns, or spelled in words."""
    needle = text.encode()
    if any(needle in data for data in content(path).values()):
        return True
    export = open_export(path)
    words = export.read(nsys_tables.NVTX, ("globalTid", "start", "int64Value"), row=True).sort(
        "globalTid", "start", "row"
    )
    if needle in words["int64Value"].fill_null(0).to_numpy().astype("<i8").tobytes():
        return True
    if path.is_dir():
        return any(needle in uncompressed(file) for file in path.iterdir())
    return False


def uncompressed(file: Path) -> bytes:
    """A Parquet file's columns as they lie in memory, texts and bytes alike."""
    return b"".join(
        bytes(buffer)
        for column in pq.read_table(file).columns
        for chunk in column.chunks
        for buffer in (chunk.dictionary_decode() if pa.types.is_dictionary(chunk.type) else chunk).buffers()
        if buffer is not None
    )


def cloned(depth: int, encoding: str) -> Export:
    """Two processes that replay clones of clones of nodes of two layers, among nodes and clones that nobody replays."""
    export = Export()
    for rank in range(2):
        worker = Process(export, pid=100 + rank, rank=rank, world_size=2, tp_size=2, encoding=encoding)
        worker.send_meta()
        for layer in range(2):
            with worker.layer(layer):
                worker.create_node(1 + layer)
        worker.create_node(3)  # outside layers
        worker.create_node(5)  # of no use: nobody replays it or its clones
        for deep in range(1, depth + 1):
            for node in (1, 2, 3, 4, 5):  # node 4 was never created
                worker.clone_node(10 * deep + node, 10 * (deep - 1) + node)
        for number in range(3):
            with worker.step(number):
                launch = worker.call("cudaGraphLaunch_v10000")
                for node, ns in ((1, 100), (2, 200), (3, 50), (4, 25)):
                    worker.kernel(ns + rank, correlation=launch, node=10 * depth + node)
            for layer in range(2):
                worker.counts(number, layer, [3, 2, 1, 0])
    return export
