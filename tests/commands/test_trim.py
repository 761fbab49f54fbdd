"""`nvtxmoe trim`: every figure survives, nothing private does."""

from __future__ import annotations

import json
import os
import shutil
import sqlite3
import struct
import subprocess
import sys
from pathlib import Path
from typing import Any

import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from nvtxmoe import cli
from nvtxmoe.commands.demo import CAPTURE
from nvtxmoe.errors import NvtxmoeError
from nvtxmoe_analysis.analyze import analyze
from nvtxmoe_analysis.attribution.attribute import attribute
from nvtxmoe_analysis.attribution.launches import Launches
from nvtxmoe_analysis.attribution.ranges import classify, flatten
from nvtxmoe_analysis.events.decode import read_events
from nvtxmoe_analysis.readers import nsys_tables
from nvtxmoe_analysis.readers.open import open_export
from nvtxmoe_analysis.trimming import write_export
from nvtxmoe_analysis.trimming.scrub_meta import scrub_text
from nvtxmoe_analysis.trimming.trim import Trimmed, select, trim
from tests.support.cli import RESULTS, TWO_GPUS, run
from tests.support.export_builder import Export, Process, simple_run

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


# What is planted ------------------------------------------------------------------------------------------------------


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


@pytest.fixture(scope="module", params=["one GPU", "two GPUs", "Parquet"])
def planted(
    request: pytest.FixtureRequest,
    tmp_path_factory: pytest.TempPathFactory,
    golden_1gpu: Path,
    golden_2gpu: Path,
    golden_1gpu_parquet: Path,
) -> Path:
    """A capture with private things in it, as people have them."""
    folder = tmp_path_factory.mktemp("planted")
    if request.param == "Parquet":
        return plant_parquet(golden_1gpu_parquet, folder / "capture")
    return plant(golden_1gpu if request.param == "one GPU" else golden_2gpu, folder / "capture.sqlite")


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


# Figures --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["out.sqlite", "out"])
def test_every_figure_survives_and_nothing_private(planted: Path, tmp_path: Path, name: str) -> None:
    assert holds(planted, MARKER)
    out = tmp_path / name
    done = trimmed(planted, out)
    assert figures(out) == figures(planted)
    assert not holds(out, MARKER)
    assert not holds(out, "sem_wait")
    assert done.bytes_after < done.bytes_before or planted.is_dir() != out.is_dir()
    assert done.rows_after < done.rows_before


@pytest.mark.parametrize("name", ["out.sqlite", "out"])
def test_twice_gives_the_same(planted: Path, tmp_path: Path, name: str) -> None:
    once, twice = tmp_path / name, tmp_path / "again" / name
    twice.parent.mkdir()
    trimmed(planted, once)
    done = trimmed(once, twice)
    assert content(once) == content(twice)
    assert all(before == after for before, after in done.rows.values())


def test_the_same_through_the_other_format(golden_2gpu: Path, tmp_path: Path) -> None:
    trimmed(golden_2gpu, tmp_path / "folder")
    trimmed(tmp_path / "folder", tmp_path / "back.sqlite")
    trimmed(tmp_path / "back.sqlite", tmp_path / "again")
    assert content(tmp_path / "folder") == content(tmp_path / "again")
    trimmed(golden_2gpu, tmp_path / "straight.sqlite")
    assert (tmp_path / "back.sqlite").read_bytes() == (tmp_path / "straight.sqlite").read_bytes()


#: tests/golden/README.md: kernels and copies in layers, (number, ns); operations in steps outside layers; outside.
REFERENCE = {
    "one": ((1300, 9_029_262), (552, 601_830), 3044, 21_632),
    "two": ((3408, 14_442_661), (1128, 1_204_533), 7396, 33_220),
}


def test_golden_captures_have_the_reference_figures(
    golden_1gpu: Path, golden_1gpu_parquet: Path, golden_2gpu: Path
) -> None:
    for name, path in (("one", golden_1gpu), ("one", golden_1gpu_parquet), ("two", golden_2gpu), ("two", TWO_GPUS)):
        found = figures(path)
        by_class: dict[tuple[int, int], tuple[int, int]] = {(c, k): (n, t) for c, _, k, n, t in found["coverage"]}
        in_step, outside = (sum(n for (c, _), (n, _) in by_class.items() if c == code) for code in (1, 2))
        assert (by_class[0, 0], by_class[0, 1], in_step, outside) == REFERENCE[name]
        assert len(found["counts"]) == (184 if name == "one" else 376)
        assert all(launch[-1] for launch in found["launches"])  # has_work


def test_what_is_trimmed_already_says_why_its_copy_is_larger(tmp_path: Path) -> None:
    """Parquet files are compressed, a SQLite file is not."""
    as_sqlite, as_parquet = (
        run("trim", TWO_GPUS, tmp_path / "two.sqlite").out,
        run("trim", TWO_GPUS, tmp_path / "two").out,
    )
    assert (
        " rows kept: there was nothing to trim" in as_sqlite and " rows kept: there was nothing to trim" in as_parquet
    )
    assert "SQLite files are not compressed" in as_sqlite and "SQLite" not in as_parquet
    assert (tmp_path / "two.sqlite").stat().st_size > sum(map(len, content(TWO_GPUS).values()))


def test_the_demo_capture_is_small_and_has_nothing_else() -> None:
    files = content(CAPTURE)
    assert sum(map(len, files.values())) < 3_000_000
    assert {Path(name).stem for name in files} <= {table.name for table in nsys_tables.ALL}
    rows = select(open_export(CAPTURE))
    assert {table.name for table in rows} == {Path(name).stem for name in files}
    assert all(
        len(kept) == pq.read_metadata(CAPTURE / f"{table.name}.parquet").num_rows for table, kept in rows.items()
    )


def test_launches_without_work_and_stream_captures_survive(tmp_path: Path) -> None:
    export = Export()
    worker = simple_run(export, steps=2)
    with worker.step(2), worker.layer(0):
        worker.call()  # its kernel is lost
        worker.call("cudaMemcpyAsync_v3020", returned=1)  # failed
        worker.call("cudaStreamSynchronize_v3020")
        captured = worker.call()
        end = export.rows["CUPTI_ACTIVITY_KIND_RUNTIME"][captured - 1]["end"]
        worker.create_node(1)["start"] = end - 1  # a stream capture took it
    worker.call()  # between steps
    worker.create_node(2)
    worker.clone_node(12, 2)
    with worker.step(3):
        launch = worker.call("cudaGraphLaunch_v10000")
        worker.kernel(correlation=launch, node=12)
        worker.kernel(correlation=launch, node=99)  # never created
    worker.create_node(3)  # of no use
    source = export.save(tmp_path / "built.sqlite")
    done = trimmed(source, tmp_path / "out.sqlite")
    expected = figures(source)
    assert figures(tmp_path / "out.sqlite") == expected
    assert [launch[-1] for launch in expected["launches"]].count(False) == 1
    assert expected["nodes_unresolved"] == 1
    calls = len(export.rows["CUPTI_ACTIVITY_KIND_RUNTIME"])
    assert done.rows["CUPTI_ACTIVITY_KIND_RUNTIME"] == (calls, calls - 2)
    assert done.rows["CUDA_GRAPH_NODE_EVENTS"] == (5, 4)


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


@pytest.mark.slow
@pytest.mark.parametrize("name", ["out.sqlite", "out"])
@pytest.mark.parametrize("encoding", ["binary", "words"])
@pytest.mark.parametrize("depth", [1, 2, 5])
def test_clones_of_clones_give_the_same_tables(tmp_path: Path, depth: int, encoding: str, name: str) -> None:
    source = cloned(depth, encoding).save(tmp_path / "built.sqlite")
    done = trimmed(source, tmp_path / name)
    before, after = done.rows["CUDA_GRAPH_NODE_EVENTS"]
    assert before - after == 2 * (1 + 2 * depth)  # a node of no use and two rows of each clone, in two processes
    whole, small = tmp_path / "of-the-whole", tmp_path / "of-the-trimmed"
    for folder, path in ((whole, source), (small, tmp_path / name)):
        analyze([path], folder)
    tables = sorted(path.name for path in (whole / RESULTS).glob("*.csv"))
    assert "moe_layer_timings.csv" in tables
    for table in tables:
        assert (whole / RESULTS / table).read_bytes() == (small / RESULTS / table).read_bytes(), table
    times = pl.read_csv(whole / RESULTS / "moe_layer_timings.csv").filter(rank=0).sort("step", "layer_idx")
    assert times["kernel_time_ns"].to_list() == [100, 200] * 3
    checks = [
        {check["name"]: check["status"] for check in json.loads(file.read_text())["checks"]}
        for file in ((folder / RESULTS / "moe_capture_validation.json") for folder in (whole, small))
    ]
    assert checks[0] == checks[1]


def test_ids_that_collide_between_processes(tmp_path: Path) -> None:
    export = Export()
    simple_run(export, pid=100, rank=0, world_size=2)
    other = Process(export, pid=200, rank=1, world_size=2)
    other.send_meta()
    for _ in range(30):
        other.call("cudaEventRecord_v3020")  # with the numbers of the first one's launches
    source = export.save(tmp_path / "built.sqlite")
    done = trimmed(source, tmp_path / "out")
    assert figures(tmp_path / "out") == figures(source)
    before, after = done.rows["CUPTI_ACTIVITY_KIND_RUNTIME"]
    assert before - after == 30


def test_a_domain_without_events(tmp_path: Path) -> None:
    export = Export()
    Process(export).kernel()
    source = export.save(tmp_path / "built.sqlite")
    for name in ("out.sqlite", "out"):
        trimmed(source, tmp_path / name)
        trimmed(tmp_path / name, tmp_path / f"again-{name}")
        assert figures(tmp_path / f"again-{name}") == figures(source)


# The files ------------------------------------------------------------------------------------------------------------


def test_sqlite_has_nsys_own_declarations(golden_2gpu: Path, tmp_path: Path) -> None:
    trimmed(golden_2gpu, tmp_path / "out.db")
    connection = sqlite3.connect(tmp_path / "out.db")

    def declared(table: str) -> dict[str, str]:
        rows = connection.execute(f"PRAGMA table_info({table})").fetchall()
        return {r[1]: r[2] + (" NOT NULL" if r[3] else "") + (" KEY" if r[5] else "") for r in rows}

    assert declared("NVTX_EVENTS") == {
        "start": "INTEGER NOT NULL", "end": "INTEGER", "eventType": "INTEGER NOT NULL", "text": "TEXT",
        "globalTid": "INTEGER", "textId": "INTEGER", "domainId": "INTEGER", "int64Value": "INTEGER",
        "category": "INTEGER", "binaryData": "TEXT",
    }  # fmt: skip
    assert declared("StringIds") == {"id": "INTEGER NOT NULL KEY", "value": "TEXT NOT NULL"}
    assert declared("CUPTI_ACTIVITY_KIND_KERNEL")["correlationId"] == "INTEGER"
    assert declared("CUPTI_ACTIVITY_KIND_KERNEL")["demangledName"] == "INTEGER NOT NULL"
    kinds = connection.execute("SELECT DISTINCT typeof(binaryData) FROM NVTX_EVENTS").fetchall()
    assert sorted(kinds) == [("blob",), ("null",)]
    names = [n for (n,) in connection.execute("SELECT name FROM sqlite_master WHERE type = 'table'")]
    for name in set(names) - {"StringIds", "ENUM_CUDA_MEMCPY_OPER"}:
        count, low, high = connection.execute(f"SELECT count(*), min(rowid), max(rowid) FROM {name}").fetchone()
        assert (low, high) == (1, count), name
    starts = [s for (s,) in connection.execute("SELECT start FROM CUPTI_ACTIVITY_KIND_RUNTIME ORDER BY rowid")]
    source = sqlite3.connect(golden_2gpu).execute("SELECT start FROM CUPTI_ACTIVITY_KIND_RUNTIME ORDER BY rowid")
    assert starts == [s for (s,) in source]


def test_parquet_has_nsys_own_types(golden_2gpu: Path, tmp_path: Path) -> None:
    trimmed(golden_2gpu, tmp_path / "out")

    def types(table: str) -> dict[str, str]:
        return {f.name: str(f.type) for f in pq.read_schema(tmp_path / "out" / f"{table}.parquet")}

    assert types("NVTX_EVENTS") == {
        "start": "int64", "end": "int64", "eventType": "uint32", "text": "large_string", "globalTid": "uint64",
        "textId": "uint32", "domainId": "uint64", "int64Value": "int64", "category": "uint64",
        "binaryData": "string",
    }  # fmt: skip
    assert types("CUPTI_ACTIVITY_KIND_KERNEL") == {
        "start": "int64", "end": "int64", "deviceId": "uint32", "streamId": "uint64", "correlationId": "uint32",
        "globalPid": "uint64", "demangledName": "uint64", "graphNodeId": "uint64",
    }  # fmt: skip
    assert types("CUPTI_ACTIVITY_KIND_RUNTIME")["returnValue"] == "uint32"
    assert types("StringIds") == {"id": "int32", "value": "large_string"}
    assert types("PROCESSES") == {"globalPid": "uint64", "pid": "uint64"}
    assert types("DIAGNOSTIC_EVENT") == {"timestamp": "int64", "severity": "int32", "text": "large_string"}


def test_ids_with_the_highest_bit(tmp_path: Path) -> None:
    """SQLite stores ids signed, Parquet unsigned."""
    export = Export()
    worker = simple_run(export)
    worker.create_node(-5)
    worker.clone_node(-6, -5)
    with worker.step(3):
        worker.kernel(correlation=worker.call("cudaGraphLaunch_v10000"), node=-6)
    source = export.save(tmp_path / "built.sqlite")
    trimmed(source, tmp_path / "out")
    assert (
        pq.read_table(tmp_path / "out" / "CUPTI_ACTIVITY_KIND_KERNEL.parquet")["graphNodeId"][-1].as_py() == 2**64 - 6
    )
    trimmed(tmp_path / "out", tmp_path / "back.sqlite")
    assert figures(source) == figures(tmp_path / "out") == figures(tmp_path / "back.sqlite")


def test_an_older_export_without_payload_columns(tmp_path: Path) -> None:
    export = Export()
    simple_run(export, encoding="words")
    source = export.save(tmp_path / "built.sqlite")
    with sqlite3.connect(source) as connection:
        connection.execute("ALTER TABLE NVTX_EVENTS DROP COLUMN binaryData")
        connection.execute("ALTER TABLE CUPTI_ACTIVITY_KIND_KERNEL DROP COLUMN graphNodeId")
    for name in ("out.sqlite", "out"):
        trimmed(source, tmp_path / name)
        assert figures(tmp_path / name) == figures(source)
        assert not open_export(tmp_path / name).has_blob_column()


# moe.meta -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["out.sqlite", "out"])
def test_meta_spelled_in_words(tmp_path: Path, name: str) -> None:
    export = Export()
    private = json.loads(private_meta(b"{}", 1))
    for pid in (100, 200):
        simple_run(export, pid=pid, rank=pid // 100 - 1, world_size=2, encoding="words", meta=private)
    source = export.save(tmp_path / "built.sqlite")
    assert holds(source, MARKER)
    trimmed(source, tmp_path / name)
    assert not holds(tmp_path / name, MARKER)
    assert figures(tmp_path / name) == figures(source)
    raw = [meta.raw for meta in read_events(open_export(tmp_path / name)).metas.values()]
    assert [(r["model"], r["pid"], r["seed"], "host" in r) for r in raw] == [("Qwen3", 1, 17, False)] * 2
    assert raw[0]["run_id"] == raw[1]["run_id"]
    trimmed(tmp_path / name, tmp_path / f"again-{name}")
    assert list(content(tmp_path / name).values()) == list(content(tmp_path / f"again-{name}").values())


@pytest.mark.parametrize("lost", ["the end", "the middle", "the length", "all but the text"])
def test_words_of_a_broken_meta_are_blanked(tmp_path: Path, lost: str) -> None:
    export = Export()
    for pid in (100, 200):
        worker = simple_run(export, pid=pid, rank=pid // 100 - 1, world_size=2, encoding="words")
        worker.meta = {"host": MARKER * 3, **worker.meta}
        before = len(export.rows["NVTX_EVENTS"])
        worker.send_meta()
        rows = export.rows["NVTX_EVENTS"]
        if lost == "the end":
            del rows[-3:]
        elif lost == "the middle":
            del rows[before + 5]
            worker.counts(9, 0, [1, 2, 0, 3])
        elif lost == "the length":
            del rows[before]
        else:
            del rows[before : before + 2]
            worker.counts(9, 0, [1, 2, 0, 3])
    source = export.save(tmp_path / "built.sqlite")
    assert holds(source, MARKER)
    trimmed(source, tmp_path / "out.sqlite")
    assert not holds(tmp_path / "out.sqlite", MARKER)
    assert figures(tmp_path / "out.sqlite") == figures(source)
    assert sum(figures(source)["problems"].values()) == 2


def test_meta_as_bytes_payload(tmp_path: Path) -> None:
    export = Export()
    simple_run(export, steps=1, meta={"host": MARKER})
    mark = next(r for r in export.rows["NVTX_EVENTS"] if r["textId"] == export.string("moe.meta"))
    text = mark["binaryData"][40:]
    mark["binaryData"] = struct.pack("<4Q", 1, 77, len(text), 32) + text
    export.add("NVTX_PAYLOAD_SCHEMAS", domainId=1, schemaId=77, type=1, numEntries=1, payloadSize=len(text))
    export.add(
        "NVTX_PAYLOAD_SCHEMA_ENTRIES",
        domainId=1, schemaId=77, idx=0, flags=16, type=32, name="bytes", arrayOrUnionDetail=len(text),
    )  # fmt: skip
    source = export.save(tmp_path / "built.sqlite")
    trimmed(source, tmp_path / "out.sqlite")
    assert not holds(tmp_path / "out.sqlite", MARKER)
    assert figures(tmp_path / "out.sqlite") == figures(source)


def scrubbed(**raw: Any) -> dict[str, Any]:
    text = json.dumps(raw).encode()
    clean = scrub_text(text, "here")
    assert len(clean) == len(text)
    assert scrub_text(clean, "here") == clean
    found: dict[str, Any] = json.loads(clean)
    return found


def test_what_leaves_meta() -> None:
    assert scrubbed(host="h", rank=1) == {"rank": 1}
    assert scrubbed(model="/a/b/c") == {"model": "c"}
    assert scrubbed(model="/a/b/c/") == {"model": "c"}
    assert scrubbed(model="C:\\Users\\me\\c") == {"model": "c"}
    assert scrubbed(model="Qwen/Qwen3-30B-A3B") == {"model": "Qwen3-30B-A3B"}
    assert scrubbed(model=None) == {"model": None}
    assert scrubbed(run_id="0f3e-77", pid=3) == {"run_id": "0f3e-77", "pid": 3}
    assert len(scrubbed(run_id="bob-1")["run_id"]) == 5
    assert "b" + "ob" not in scrubbed(run_id="bob-1")["run_id"]
    assert scrubbed(layers=[{"layer": 0, "name": "a.b", "x": "/p/q"}]) == {
        "layers": [{"layer": 0, "name": "a.b", "x": "q"}]
    }
    assert scrubbed(unknown="text", other=[1, 2], more=[["x"]], last={"k": 1}, flag=True) == {
        "other": [1, 2],
        "flag": True,
    }


def test_meta_without_secrets_stays_byte_for_byte() -> None:
    text = b'{ "rank" : 1,  "vllm": "0.26.0" }   \0\0'
    assert scrub_text(text, "here") == text


@pytest.mark.parametrize("text", [b"", b"not json", b"[1]", b"\xff\xfe", b'{"host": "xy'])
def test_meta_that_nobody_can_read_is_refused(tmp_path: Path, text: bytes) -> None:
    with pytest.raises(NvtxmoeError, match=r"moe\.meta isn't"):
        scrub_text(text, "here")


json_values = st.recursive(
    st.none() | st.booleans() | st.integers(-(10**9), 10**9) | st.text(max_size=12),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=8,
)
keys = st.sampled_from(["host", "model", "run_id", "pid", "layers", "rank", "other"]) | st.text(max_size=6)


@pytest.mark.slow
@given(st.dictionaries(keys, json_values, max_size=6), st.integers(0, 9))
def test_any_meta_keeps_its_length(raw: dict[str, Any], zeros: int) -> None:
    text = json.dumps(raw).encode() + b"\0" * zeros
    clean = scrub_text(text, "here")
    assert len(clean) == len(text)
    found = json.loads(clean.rstrip(b"\0"))
    assert "host" not in found
    assert found.get("pid") == raw.get("pid") or isinstance(raw.get("pid"), str | list | dict)
    assert scrub_text(clean, "here") == clean


# What it refuses ------------------------------------------------------------------------------------------------------


@pytest.fixture
def small(tmp_path: Path) -> Path:
    export = Export()
    simple_run(export)
    return export.save(tmp_path / "small.sqlite")


def test_an_existing_export_is_replaced(small: Path, golden_1gpu: Path, tmp_path: Path) -> None:
    for name in ("out.sqlite", "out"):
        trimmed(golden_1gpu, tmp_path / name)
        trimmed(small, tmp_path / name)
        assert figures(tmp_path / name) == figures(small)
    (tmp_path / "empty").mkdir()
    trimmed(small, tmp_path / "empty")
    assert figures(tmp_path / "empty") == figures(small)
    assert not [f for f in tmp_path.iterdir() if f.name.startswith(".")]


def test_outputs_that_are_refused(small: Path, tmp_path: Path) -> None:
    (tmp_path / "link.sqlite").symlink_to(small)
    (tmp_path / "notes.sqlite").write_text("mine")
    (tmp_path / "file").write_text("mine")
    (tmp_path / "folder.sqlite").mkdir()
    (tmp_path / "pictures").mkdir()
    (tmp_path / "pictures" / "one.png").write_text("mine")
    trimmed(small, tmp_path / "mixed")
    (tmp_path / "mixed" / "notes.txt").write_text("mine")
    other = sqlite3.connect(tmp_path / "other.db")
    other.execute("CREATE TABLE accounts (id)")
    other.close()
    before = {f: content(f) for f in tmp_path.iterdir()}
    for name, message in {
        "small.sqlite": "input and output are the same",
        "link.sqlite": "input and output are the same",
        "notes.sqlite": "exists and isn't an export",
        "other.db": "exists and isn't an export",
        "file": "a file, where a folder of Parquet files",
        "folder.sqlite": "a folder, where a SQLite file would be written",
        "pictures": "exists and isn't an export",
        "mixed": r"the folder holds other files too \(notes\.txt\)",
        "new.nsys-rep": "reports can't be written",
        "missing/out.sqlite": "cannot be written: No such file or directory",
        "missing/out": "cannot be written: No such file or directory",
    }.items():
        with pytest.raises(NvtxmoeError, match=message):
            trimmed(small, tmp_path / name)
    assert before == {f: content(f) for f in tmp_path.iterdir()}


def test_the_input_may_be_named_by_its_report(small: Path) -> None:
    export = open_export(small)
    export.source = small.with_name("report.nsys-rep")
    with pytest.raises(NvtxmoeError, match="input and output are the same"):
        trim(export, small)


@pytest.mark.parametrize("name", ["out.sqlite", "out"])
def test_nothing_is_half_written(
    small: Path, golden_1gpu: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    out = tmp_path / name
    trimmed(golden_1gpu, out)
    before = content(out)

    def no_room(*_: object, **__: object) -> None:
        raise OSError(28, os.strerror(28))

    for target, attribute_ in ((Path, "replace"), (pq, "write_table"), (write_export, "_declared")):
        with monkeypatch.context() as patch:
            patch.setattr(target, attribute_, no_room)
            if attribute_ == "replace" or (attribute_ == "write_table") == (name == "out"):
                with pytest.raises(NvtxmoeError, match="cannot be written: No space left on device"):
                    trimmed(small, out)
        assert content(out) == before
    assert sorted(f.name for f in tmp_path.iterdir()) == sorted([name, "small.sqlite"])


#: Trims SOURCE into the folder of an earlier export, in a process for each step that changes the file system, killed
#: before that step. Arguments: SOURCE, EARLIER (copied each time), FOLDER of the copies. Prints the number of steps.
KILLED = """
import os, shutil, signal, sys
from pathlib import Path
from nvtxmoe_analysis.readers.open import open_export
from nvtxmoe_analysis.trimming.trim import trim

def write(source, out, count):
    steps = 0

    def stepping(owner, name):
        real = getattr(owner, name)
        def step(*arguments, **more):
            nonlocal steps
            steps += 1
            if steps == count:
                os.kill(os.getpid(), signal.SIGKILL)
            return real(*arguments, **more)
        setattr(owner, name, step)

    for owner, name in ((Path, "replace"), (Path, "rename"), (Path, "unlink"), (Path, "mkdir"), (os, "mkdir")):
        stepping(owner, name)
    trim(open_export(source), out)

source, earlier, folder = map(Path, sys.argv[1:])
count, status = 0, -9
while status == -signal.SIGKILL:
    count += 1
    out = folder / str(count)
    shutil.copytree(earlier, out)
    pid = os.fork()  # before anything of polars runs
    if pid == 0:
        try:
            write(source, out, count)
        finally:
            os._exit(0)
    status = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
print(count)
"""


@pytest.mark.slow
def test_a_folder_is_replaced_whole_whenever_it_is_killed(tmp_path: Path) -> None:
    export = Export()
    simple_run(export, steps=2)
    earlier = trimmed(export.save(tmp_path / "earlier.sqlite"), tmp_path / "earlier").out
    graphs = cloned(2, "binary").save(tmp_path / "graphs.sqlite")  # another set of tables
    trimmed(graphs, tmp_path / "new")
    old, new = content(earlier), content(tmp_path / "new")
    assert set(old) != set(new)
    (tmp_path / "runs").mkdir()
    command = [sys.executable, "-c", KILLED, str(graphs), str(earlier), str(tmp_path / "runs")]
    env = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}
    done = subprocess.run(command, env=env, capture_output=True, text=True, check=True)
    number = int(done.stdout)
    assert number > len(new)
    is_new = []
    for count in range(1, number + 1):
        out = tmp_path / "runs" / str(count)
        open_export(out)  # finishes what was interrupted
        tables = visible(out)
        assert tables in (old, new), count
        is_new.append(tables == new)
        if count % 5 == 0:
            trimmed(graphs, out)  # what the killed one left is in nobody's way
            assert content(out) == new
    assert is_new == sorted(is_new)
    assert is_new[0] is False
    assert is_new[-1] is True


def visible(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir() if not path.name.startswith(".")}


# The command ----------------------------------------------------------------------------------------------------------


def test_command(golden_2gpu: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "shared.sqlite"
    assert cli.run(["trim", str(golden_2gpu), str(out)]) == 0
    assert (
        capsys.readouterr().out == f"{out}: 3.9 MB -> 3.9 MB, 89,797 of 89,797 rows kept: there was nothing to trim\n"
    )
    assert cli.run(["trim", "--json", str(golden_2gpu), str(out)]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["rows_after"] == 89_797
    assert found["tables"]["CUPTI_ACTIVITY_KIND_KERNEL"] == {"before": 40_601, "after": 40_601}
    assert found["bytes_after"] == out.stat().st_size


def test_command_errors(
    payload_encodings: Path, golden_1gpu: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.run(["trim", str(payload_encodings), str(tmp_path / "out.sqlite")]) == 2
    assert "no events of the NVTX domain nvtxmoe" in capsys.readouterr().err
    assert cli.run(["trim", str(golden_1gpu), str(golden_1gpu)]) == 2
    assert "input and output are the same" in capsys.readouterr().err
    assert not (tmp_path / "out.sqlite").exists()
