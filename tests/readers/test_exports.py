"""Opening exports: rows in file order, large tables like small ones, both kinds of file alike."""

from __future__ import annotations

import gc
import sqlite3
import subprocess
import sys
import tempfile
from contextlib import closing
from pathlib import Path

import polars as pl
import pytest
from polars.testing import assert_frame_equal

from nvtxmoe_analysis.readers import base, nsys_tables, sqlite
from nvtxmoe_analysis.readers.open import open_export


@pytest.fixture
def everything_is_large(monkeypatch: pytest.MonkeyPatch) -> None:
    """Read even small tables the way large ones are read, in many batches."""
    monkeypatch.setattr(sqlite, "LARGE_ROWS", 1)
    monkeypatch.setattr(sqlite, "BATCH_ROWS", 1000)
    monkeypatch.setattr(base, "BATCH_ROWS", 1000)
    monkeypatch.setattr("nvtxmoe_analysis.readers.parquet.BATCH_ROWS", 1000)


def test_large_tables_read_like_small_ones(golden_2gpu: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    small = {}
    monkeypatch.setattr(sqlite, "LARGE_ROWS", 1 << 60)
    export = open_export(golden_2gpu)
    for table in nsys_tables.ALL:
        small[table.name] = export.read(table, row=True)
    blobs = export.read_blobs([1])
    monkeypatch.setattr(sqlite, "LARGE_ROWS", 1)
    for _ in range(5):  # the order in which threads finish differs from run to run
        export = open_export(golden_2gpu)
        for table in nsys_tables.ALL:
            large = export.read(table, row=True)
            assert_frame_equal(large, small[table.name])
            assert large["row"].is_sorted()
        assert_frame_equal(export.read_blobs([1]), blobs)


@pytest.mark.usefixtures("everything_is_large")
@pytest.mark.parametrize("capture", ["golden_1gpu", "golden_1gpu_parquet"])
def test_batches_are_the_table_in_order(capture: str, request: pytest.FixtureRequest) -> None:
    export = open_export(request.getfixturevalue(capture))
    columns = ("start", "end", "globalPid", "correlationId", "graphNodeId")
    batches = list(export.batches(nsys_tables.KERNEL, columns))
    assert len(batches) > 10
    assert_frame_equal(pl.concat(batches), export.read(nsys_tables.KERNEL, columns))
    ids = export.read(nsys_tables.RUNTIME)["correlationId"].to_list()[::7]
    calls = list(export.batches(nsys_tables.RUNTIME, ("start", "correlationId"), only=("correlationId", ids)))
    assert pl.concat(calls)["correlationId"].to_list() == ids


def test_sqlite_and_parquet_hold_the_same(golden_1gpu: Path, golden_1gpu_parquet: Path) -> None:
    ours, theirs = open_export(golden_1gpu), open_export(golden_1gpu_parquet)
    for table in nsys_tables.ALL:
        if table is nsys_tables.CAPTURE_META:  # left out of the Parquet capture when it was made
            continue
        assert_frame_equal(ours.read(table), theirs.read(table))
        if table is not nsys_tables.STRINGS:  # its rowids are its ids, which have gaps
            assert ours.rows(table) == theirs.rows(table) == len(ours.read(table))
    assert ours.read_blobs([1])["blob"].equals(theirs.read_blobs([1])["blob"])


@pytest.mark.usefixtures("everything_is_large")
def test_spans_without_rows(golden_1gpu: Path, tmp_path: Path) -> None:
    """Gaps in the rowids, and spans in which a filter or a missing payload leaves nothing."""
    copy = tmp_path / "copy.sqlite"
    copy.write_bytes(golden_1gpu.read_bytes())
    with sqlite3.connect(copy) as db:
        db.execute("UPDATE NVTX_EVENTS SET binaryData = NULL WHERE rowid < 1200")
        db.execute("DELETE FROM CUPTI_ACTIVITY_KIND_KERNEL WHERE rowid BETWEEN 2000 AND 9000")
    export = open_export(copy)
    with sqlite3.connect(copy) as db:
        blobs = db.execute("SELECT rowid FROM NVTX_EVENTS WHERE binaryData IS NOT NULL AND domainId = 1").fetchall()
        starts = db.execute("SELECT start FROM CUPTI_ACTIVITY_KIND_KERNEL").fetchall()
    assert export.read_blobs([1])["row"].to_list() == [row for (row,) in blobs]
    assert export.read(nsys_tables.KERNEL)["start"].to_list() == [start for (start,) in starts]
    batches = pl.concat(export.batches(nsys_tables.KERNEL, ("start",)))
    assert batches["start"].to_list() == [start for (start,) in starts]
    assert export.read(nsys_tables.KERNEL, only=("start", [1])).is_empty()


def test_unsigned_ids_wrap(tmp_path: Path) -> None:
    """SQLite stores 64-bit ids signed, Parquet unsigned: they must still meet."""
    top = (1 << 63) + 5
    pl.DataFrame({"name": ["EXPORT_PRODUCT_VERSION"], "value": ["2025"]}).write_parquet(
        tmp_path / "META_DATA_EXPORT.parquet"
    )
    pl.DataFrame(
        {"start": [1], "globalTid": [top], "graphNodeId": [top], "originalGraphNodeId": [None]},
        schema=dict.fromkeys(("start", "globalTid", "graphNodeId", "originalGraphNodeId"), pl.UInt64),
    ).write_parquet(tmp_path / "CUDA_GRAPH_NODE_EVENTS.parquet")
    assert open_export(tmp_path).read(nsys_tables.GRAPH_NODES)["graphNodeId"].to_list() == [top - (1 << 64)]


def test_the_older_name_of_the_node_table(golden_1gpu: Path, tmp_path: Path) -> None:
    """nsys 2023.4 calls it CUDA_GRAPH_EVENTS; later versions use that name for rows without node ids."""
    copy = tmp_path / "copy.sqlite"
    copy.write_bytes(golden_1gpu.read_bytes())
    with sqlite3.connect(copy) as db:
        db.execute("ALTER TABLE CUDA_GRAPH_NODE_EVENTS RENAME TO CUDA_GRAPH_EVENTS")
    assert (
        open_export(copy).read(nsys_tables.GRAPH_NODES).equals(open_export(golden_1gpu).read(nsys_tables.GRAPH_NODES))
    )
    with sqlite3.connect(copy) as db:
        db.execute("ALTER TABLE CUDA_GRAPH_EVENTS RENAME COLUMN graphNodeId TO graphId")
    assert not open_export(copy).has(nsys_tables.GRAPH_NODES)


# Reading changes nothing ----------------------------------------------------------------------------------------------

#: Copies FILE to OUT in WAL mode, adds a text to it, and ends without closing: the text stays in the log.
LEAVES_A_LOG = """
import os, shutil, sqlite3, sys
shutil.copy(sys.argv[1], sys.argv[2])
database = sqlite3.connect(sys.argv[2], isolation_level=None)
database.execute("PRAGMA journal_mode = WAL")
database.execute("INSERT INTO StringIds VALUES (900000001, 'in the log')")
os._exit(0)
"""


def state(folder: Path) -> dict[str, tuple[int, int, bytes]]:
    """Mode, time of change and bytes of each file."""
    return {path.name: (path.stat().st_mode, path.stat().st_mtime_ns, path.read_bytes()) for path in folder.iterdir()}


@pytest.mark.usefixtures("everything_is_large")
@pytest.mark.parametrize("mode", [0o444, 0o644])
@pytest.mark.parametrize("log", ["none", "clean", "with an index", "without an index"])
def test_reading_leaves_the_folder_as_it_is(golden_1gpu: Path, tmp_path: Path, log: str, mode: int) -> None:
    folder = tmp_path / "a folder?&%41"
    folder.mkdir()
    file = folder / "run#1.sqlite"
    if log == "none":
        file.write_bytes(golden_1gpu.read_bytes())
    elif log == "clean":
        file.write_bytes(golden_1gpu.read_bytes())
        with closing(sqlite3.connect(file)) as database:
            assert database.execute("PRAGMA journal_mode = WAL").fetchone() == ("wal",)
    else:
        subprocess.run([sys.executable, "-c", LEAVES_A_LOG, golden_1gpu, file], check=True)
        assert (folder / "run#1.sqlite-wal").stat().st_size > 0
        if log == "without an index":
            (folder / "run#1.sqlite-shm").unlink()
    file.chmod(mode)
    before = state(folder)
    export = open_export(file)
    for table in nsys_tables.ALL:
        if table is nsys_tables.STRINGS:
            continue
        assert_frame_equal(export.read(table), open_export(golden_1gpu).read(table))
    in_log = {900000001: "in the log"} if log.endswith("index") else {}
    assert export.strings([900000001]) == in_log
    assert export.read(nsys_tables.STRINGS)["value"].str.contains("in the log").sum() == len(in_log)
    assert len(export.read_blobs([1])) > 0
    assert state(folder) == before
    del export
    gc.collect()
    assert state(folder) == before


def test_the_copy_of_a_database_with_a_log_goes(
    golden_1gpu: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file, copies = tmp_path / "run.sqlite", tmp_path / "copies"
    copies.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(copies))
    subprocess.run([sys.executable, "-c", LEAVES_A_LOG, golden_1gpu, file], check=True)
    export = open_export(file)
    (copy,) = copies.iterdir()
    assert [path.suffix for path in copy.iterdir()] == [".sqlite"]  # no log, whose index two SQLites would share
    del export
    gc.collect()
    assert list(copies.iterdir()) == []
