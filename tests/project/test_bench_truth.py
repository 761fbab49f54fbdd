"""The benchmark's generator against brute force: what it wrote is what it says the true answer is."""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from polars.testing import assert_frame_equal

from nvtxmoe.formats import schema
from scripts.bench import brute_force
from scripts.bench.tile_capture import tile_capture

PROCESSES, KERNELS = 3, 30_000  # two tiles a process


@pytest.fixture(scope="module")
def tiled(golden_1gpu: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("bench")
    tile_capture(golden_1gpu, folder, KERNELS, 1.4, PROCESSES, 0, {"sqlite", "parquet"}, topk_every=2)
    return folder


@pytest.fixture(scope="module")
def answer(tiled: Path) -> brute_force.Answer:
    return brute_force.attribute(tiled / "tiled.sqlite")


@pytest.fixture
def export(tiled: Path) -> Iterator[sqlite3.Connection]:
    connection = sqlite3.connect(tiled / "tiled.sqlite")
    yield connection
    connection.close()


def truth(tiled: Path) -> dict[str, Any]:
    content: dict[str, Any] = json.loads((tiled / "truth.json").read_text())
    return content


def assert_same_rows(found: list[Any], expected: Path, key: list[str]) -> None:
    assert_frame_equal(pl.DataFrame(found).sort(key), pl.read_parquet(expected).sort(key))


def test_reference_figures(golden_1gpu: Path) -> None:
    reference = brute_force.summary(brute_force.attribute(golden_1gpu))
    coverage = reference.pop("coverage")
    assert reference == {
        "count_cells": 184,
        "topk_tokens": 1432,
        "kernel_count": 1300,
        "kernel_time_ns": 9029262,
        "memcpy_count": 552,
        "memcpy_time_ns": 601830,
        "memset_count": 0,
        "memset_time_ns": 0,
        "uncounted_cells": 0,
    }
    assert isinstance(coverage, dict)
    operations = {where: numbers["operations"] for where, numbers in coverage.items()}
    assert operations == {
        "in_layer": 1852,
        "in_step_outside_layers": 3044,
        "outside_steps": 21632,
        "unplaced": 0,
    }


def test_cells(tiled: Path, answer: brute_force.Answer) -> None:
    rows = brute_force.cell_rows(answer.cells, answer.operations)
    assert len(rows) == PROCESSES * 2 * 184
    assert_same_rows(rows, tiled / "truth_cells.parquet", ["rank", "step", "layer_idx"])


def test_kernels(tiled: Path, answer: brute_force.Answer) -> None:
    key = ["rank", "layer_idx", "phase", "kind", "name", "launched_by"]
    assert_same_rows(brute_force.kernel_rows(answer.operations), tiled / "truth_kernels.parquet", key)


def test_activations(tiled: Path, answer: brute_force.Answer) -> None:
    rows = brute_force.activation_rows(answer.cells)
    assert_same_rows(rows, tiled / "truth_activations.parquet", ["layer_idx", "expert_id"])


def test_summary(tiled: Path, answer: brute_force.Answer, export: sqlite3.Connection) -> None:
    said = truth(tiled)
    assert said["coverage"] == brute_force.coverage(answer.operations)
    assert said["topk_tokens"] == answer.topk_tokens
    assert said["count_cells"] == len(answer.cells)
    for word, query in {
        "kernels": "SELECT count(*) FROM CUPTI_ACTIVITY_KIND_KERNEL",
        "memcpys": "SELECT count(*) FROM CUPTI_ACTIVITY_KIND_MEMCPY",
        "runtime_calls": "SELECT count(*) FROM CUPTI_ACTIVITY_KIND_RUNTIME",
        "ranges": "SELECT count(*) FROM NVTX_EVENTS WHERE eventType = 59",
        "marks": "SELECT count(*) FROM NVTX_EVENTS WHERE eventType = 34",
    }.items():
        assert export.execute(query).fetchone() == (said[word],), word
    assert said["calls_per_kernel"] == said["runtime_calls"] / said["kernels"]


def test_counts_are_possible_routings(answer: brute_force.Answer) -> None:
    """Drawn anew in every tile, and no expert twice for one token."""
    assert all(max(cell.counts) <= cell.num_tokens for cell in answer.cells.values())
    cells = {key: cell.counts for key, cell in answer.cells.items() if cell.num_tokens > 10}
    differs = sum(counts != cells[rank, step + 46, layer] for (rank, step, layer), counts in cells.items() if step < 46)
    assert differs == len(cells) / 2


def test_samples_agree_with_counts(answer: brute_force.Answer, export: sqlite3.Connection) -> None:
    """moe.topk has no rank: its process's steps tell."""
    rank_of = {}
    rows = export.execute(
        "SELECT globalTid, value, binaryData FROM NVTX_EVENTS JOIN StringIds ON id = textId"
        " WHERE value IN ('moe.step', 'moe.topk') ORDER BY start"
    )
    seen = 0
    for tid, name, blob in rows:
        if name == schema.STEP:
            rank_of[tid] = int(np.frombuffer(blob[32:], dtype=schema.STEP_DTYPE)[0]["rank"])
            continue
        tokens = np.frombuffer(blob[40:], dtype=schema.topk_dtype(4))
        cell = answer.cells[rank_of[tid], int(tokens[0]["step"]), int(tokens[0]["layer"])]
        assert tuple(np.bincount(tokens["experts"].ravel(), minlength=32).tolist()) == cell.counts
        seen += 1
    assert seen == PROCESSES * 24  # of two tiles, one has samples


def test_ids_collide_between_processes(export: sqlite3.Connection) -> None:
    for table, ids, process in (
        ("CUPTI_ACTIVITY_KIND_RUNTIME", "correlationId", "globalTid"),
        ("CUDA_GRAPH_NODE_EVENTS", "graphNodeId", "globalTid"),
        ("CUPTI_ACTIVITY_KIND_KERNEL", "graphNodeId", "globalPid"),
    ):
        every = export.execute(
            f"SELECT min(processes) FROM (SELECT count(DISTINCT {process}) AS processes FROM {table}"
            f" WHERE {ids} IS NOT NULL GROUP BY {ids})"
        ).fetchone()
        assert every == (PROCESSES,), table
    twice = export.execute(
        "SELECT count(*) FROM (SELECT 1 FROM CUPTI_ACTIVITY_KIND_RUNTIME"
        " GROUP BY globalTid, correlationId HAVING count(*) > 1)"
    ).fetchone()
    assert twice == (0,)
    low_bits = export.execute("SELECT DISTINCT globalTid & 0xFFFFFF FROM CUPTI_ACTIVITY_KIND_RUNTIME").fetchall()
    assert len(low_bits) == 1


def test_rows_are_in_time_order_and_interleaved(export: sqlite3.Connection) -> None:
    for table, process in (("CUPTI_ACTIVITY_KIND_KERNEL", "globalPid"), ("NVTX_EVENTS", "globalTid")):
        rows = export.execute(f"SELECT start, {process} FROM {table} ORDER BY rowid").fetchall()
        assert [row[0] for row in rows] == sorted(row[0] for row in rows)
        assert sum(a[1] != b[1] for a, b in pairwise(rows)) > len(rows) / 10


def test_meta_names_every_rank(export: sqlite3.Connection) -> None:
    blobs = export.execute(
        "SELECT binaryData FROM NVTX_EVENTS JOIN StringIds ON id = textId WHERE value = 'moe.meta' ORDER BY start"
    ).fetchall()
    metas = [json.loads(blob[40:]) for (blob,) in blobs]
    assert [(m["rank"], m["dp_rank"]) for m in metas] == [(r, r) for r in range(PROCESSES)]
    assert {(m["world_size"], m["dp_size"], m["tp_size"]) for m in metas} == {(PROCESSES, PROCESSES, 1)}


def test_parquet_says_the_same(tiled: Path, export: sqlite3.Connection) -> None:
    folder = tiled / "tiled_pqtdir"
    (columns,) = zip(*export.execute("SELECT name FROM sqlite_master WHERE type = 'table'"), strict=True)
    with_rows = {t for t in columns if export.execute(f'SELECT 1 FROM "{t}" LIMIT 1').fetchone()}
    assert {path.stem for path in folder.glob("*.parquet")} == with_rows
    for table in ("CUPTI_ACTIVITY_KIND_KERNEL", "CUPTI_ACTIVITY_KIND_RUNTIME", "NVTX_EVENTS", "PROCESSES"):
        rows = pq.read_table(folder / f"{table}.parquet")
        if table == "NVTX_EVENTS":  # bytes that are labelled as text
            index = rows.schema.get_field_index("binaryData")
            assert rows.schema.field(index).type == pa.string()
            rows = rows.set_column(index, "binaryData", rows.column(index).cast(pa.binary()))
        found = list(zip(*(column.to_pylist() for column in rows.columns), strict=True))
        assert found == export.execute(f"SELECT * FROM {table} ORDER BY rowid").fetchall(), table
    runtime = pq.read_schema(folder / "CUPTI_ACTIVITY_KIND_RUNTIME.parquet")
    assert (runtime.field("globalTid").type, runtime.field("correlationId").type) == (pa.uint64(), pa.uint32())


def test_thinned_calls_keep_every_launch(golden_1gpu: Path, tmp_path: Path) -> None:
    tile_capture(golden_1gpu, tmp_path, 12_000, 1.0, 1, 0, {"sqlite"})
    answer = brute_force.attribute(tmp_path / "tiled.sqlite")
    assert truth(tmp_path)["coverage"] == brute_force.coverage(answer.operations)
    assert truth(tmp_path)["runtime_calls"] < 1.8 * truth(tmp_path)["kernels"]
    assert not (tmp_path / "tiled_pqtdir").exists()
