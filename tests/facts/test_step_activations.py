"""moe_step_activations: the counts of every cell, once a group, in Parquet whatever the other tables are."""

from __future__ import annotations

import io
import time
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest

from nvtxmoe_analysis.events.tables import CountTable, TopkTable
from nvtxmoe_analysis.facts.selection import Selection
from nvtxmoe_analysis.metrics.run_metrics import RunMetrics
from nvtxmoe_analysis.outputs import step_activations
from nvtxmoe_analysis.run.routing import Agreement, Routing
from tests.support import naive_analysis
from tests.support.cli import RESULTS, analyze
from tests.support.export_builder import Export, Process
from tests.support.sessions import journal, run_of
from tests.support.written_results import file_set, written

STEM = "moe_step_activations"
SCHEMA = {
    "rank": pl.Int64, "step": pl.Int64, "layer_idx": pl.Int64, "num_tokens": pl.Int64, "counts": pl.List(pl.UInt32),
}  # fmt: skip


def run(*, rank: int = 0, more: int = 0, **process: Any) -> Export:
    """Two steps of two layers; layer 1 sends its counts before layer 0, and step 1 before step 0."""
    export = Export()
    worker = Process(export, rank=rank, pid=100 + rank, **process)
    worker.send_meta()
    for step in range(2):
        with worker.step(step):
            for layer in range(2):
                with worker.layer(layer):
                    worker.kernel()
    for step in (1, 0):
        for layer in (1, 0):
            worker.counts(step, layer, [step, layer, more, 6 - step - layer - more])
    return export


def test_every_cell_in_order(tmp_path: Path) -> None:
    table = written(tmp_path, run()).frame(STEM)
    assert table.schema == SCHEMA
    assert table.rows() == [
        (0, 0, 0, 3, [0, 0, 0, 6]),
        (0, 0, 1, 3, [0, 1, 0, 5]),
        (0, 1, 0, 3, [1, 0, 0, 5]),
        (0, 1, 1, 3, [1, 1, 0, 4]),
    ]


def test_layers_with_different_numbers_of_experts(tmp_path: Path) -> None:
    """A list is as long as its layer has experts, whatever another one has."""
    export = Export()
    worker = Process(export)
    worker.send_meta()
    with worker.step(0):
        pass
    cells = [[6, 0, 0, 0, 0], [5, 1], [1, 2, 3]]
    for layer, counts in enumerate(cells):
        worker.counts(0, layer, counts)
    assert written(tmp_path, export).frame(STEM)["counts"].to_list() == cells


def test_a_count_of_32_bits(tmp_path: Path) -> None:
    export = Export()
    worker = Process(export, layers=1)
    worker.send_meta()
    with worker.step(0):
        pass
    worker.counts(0, 0, [2**32 - 1, 0, 1, 70_000])
    assert written(tmp_path, export).frame(STEM)["counts"].to_list() == [[2**32 - 1, 0, 1, 70_000]]


def test_tensor_parallel_copies_are_there_once(tmp_path: Path) -> None:
    """Of a group the lowest rank's; data-parallel ranks each have their rows."""
    shared = [run(rank=rank, world_size=2, tp_size=2) for rank in range(2)]
    assert written(tmp_path, *shared).frame(STEM).equals(written(tmp_path, run()).frame(STEM))
    apart = written(tmp_path, *(run(rank=rank, more=rank, world_size=2) for rank in range(2))).frame(STEM)
    assert apart["rank"].to_list() == [0] * 4 + [1] * 4
    assert apart["counts"].to_list()[4:] == [[0, 0, 1, 5], [0, 1, 1, 4], [1, 0, 1, 4], [1, 1, 1, 3]]


def test_ranks_without_meta(tmp_path: Path) -> None:
    """Each for itself, by rank."""
    export = Export()
    for rank in range(3):
        Process(export, rank=rank, pid=100 + rank).counts(0, 0, [rank, 6 - rank, 0, 0])
    found = written(tmp_path, export).frame(STEM)
    assert found.select("rank", "counts").rows() == [(rank, [rank, 6 - rank, 0, 0]) for rank in range(3)]


def test_filters(tmp_path: Path) -> None:
    chosen = Selection(first_step=1, layers=frozenset({0}))
    assert written(tmp_path, run(), selection=chosen).frame(STEM).rows() == [(0, 1, 0, 3, [1, 0, 0, 5])]


def test_no_counts(tmp_path: Path) -> None:
    export = Export()
    Process(export).send_meta()
    table = written(tmp_path, export).frame(STEM)
    assert (table.schema, len(table)) == (SCHEMA, 0)


@pytest.mark.parametrize("formats", [["csv"], ["parquet"], ["csv", "parquet"]])
def test_parquet_whatever_the_format(tmp_path: Path, formats: list[str]) -> None:
    """A folder that CSV files go into loses no table of Parquet but those in the format left."""
    source, folder = run().save(tmp_path / "run.sqlite"), tmp_path / "out" / RESULTS
    for asked in (["parquet", "csv"], formats):
        options = [part for form in asked for part in ("--format", form)]
        ran = analyze(source, tmp_path / "out", *options, "--sqlite", tmp_path / "all.db")
        if asked != formats:
            (folder / f"{STEM}.csv").write_text("of another version\n")
    assert {file.name for file in folder.iterdir()} == file_set(*formats)
    assert f"  {STEM}.parquet\n" in ran.out
    assert len(pl.read_parquet(folder / f"{STEM}.parquet")) == 4
    names = pl.read_database_uri(
        "SELECT name FROM sqlite_master", f"sqlite://{tmp_path / 'all.db'}", engine="connectorx"
    )
    assert STEM not in names["name"].to_list()
    assert "moe_load_imbalance" in names["name"].to_list()


def test_direct_mode(tmp_path: Path) -> None:
    journal(tmp_path, run_of())
    table = written(tmp_path, tmp_path).frame(STEM)
    assert (table.schema, table.select("step", "layer_idx").rows()) == (
        SCHEMA, [(step, layer) for step in range(3) for layer in range(2)],
    )  # fmt: skip
    assert {sum(counts) for counts in table["counts"].to_list()} == {6}


def test_the_other_tables_can_be_made_of_it(golden_2gpu: Path, tmp_path: Path) -> None:
    """The real capture: cell by cell what brute force reads, and its sums are moe_expert_activations."""
    found = written(tmp_path, golden_2gpu)
    table = found.frame(STEM)
    naively = naive_analysis.read(golden_2gpu)
    assert table.rows() == [
        (*key, naively.answer.cells[key].num_tokens, list(naively.answer.cells[key].counts)) for key in naively.counted
    ]
    summed = (
        table.select("layer_idx", "counts", expert_id=pl.int_ranges(pl.col("counts").list.len()))
        .explode("counts", "expert_id")
        .group_by("layer_idx", "expert_id")
        .agg(pl.col("counts").cast(pl.Int64).sum())
        .sort("layer_idx", "expert_id")
    )
    assert summed.rows() == pl.read_csv(found.folder / "moe_expert_activations.csv").drop("percentage").rows()


@pytest.mark.slow
def test_many_cells_in_little_time() -> None:
    """232,576 cells of 128 experts are two copies of a matrix: no Python for each cell, or this takes minutes."""
    cells, experts = 232_576, 128
    matrix = np.random.default_rng(1).poisson(4.0, (cells, experts)).astype(np.uint8)
    numbers = np.arange(cells)
    frame = pl.DataFrame(
        {
            "rank": np.zeros(cells, dtype=np.int64),
            "step": numbers // 48,
            "layer": numbers % 48,
            "num_tokens": np.full(cells, 64),
            "num_experts": np.full(cells, experts),
        }
    )
    routing = Routing(CountTable(frame, matrix), _no_topk(), {}, Agreement(0, 0, None))
    results = RunMetrics((), Selection(), routing, pl.DataFrame(), 0, aligned=True)
    begun = time.process_time()
    table = step_activations.build(results)
    table.write_parquet(io.BytesIO(), compression="zstd")
    assert time.process_time() - begun < 100  # it takes less than one
    assert np.array_equal(table["counts"].explode().to_numpy().reshape(cells, experts), matrix)


def _no_topk() -> TopkTable:
    none = np.zeros((0, 1), dtype=np.int32)
    return TopkTable(pl.DataFrame(), none[:, 0], none, none.astype(np.float32))
