"""What is put together of several reports: in which order rows stand, and what merging them needs."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from dataclasses import replace
from itertools import permutations
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
from hypothesis import given
from hypothesis import strategies as st

from nvtxmoe.formats import schema
from nvtxmoe_analysis.core.grouping import in_order
from nvtxmoe_analysis.core.parallel import ordered_map
from nvtxmoe_analysis.facts.capture_facts import CaptureFacts, read_capture
from nvtxmoe_analysis.facts.layer_rows import KEY
from nvtxmoe_analysis.facts.routing_features import cell_features
from nvtxmoe_analysis.facts.selection import Selection
from nvtxmoe_analysis.metrics import token_paths
from nvtxmoe_analysis.metrics.run_metrics import RunMetrics
from nvtxmoe_analysis.outputs import write
from nvtxmoe_analysis.outputs.capture_validation import validate
from nvtxmoe_analysis.outputs.registry import document_builders, table_builders
from nvtxmoe_analysis.outputs.write import as_text, write_set
from nvtxmoe_analysis.readers.open import open_export
from nvtxmoe_analysis.run.row_order import order_of
from nvtxmoe_analysis.run.run_facts import merge
from nvtxmoe_analysis.run.stacked import Stacked
from tests.support.export_builder import Export, Process
from tests.support.written_results import written

pytestmark = pytest.mark.slow
Rows = list[tuple[int | None, int, int, int | None]]

NUMBERS = st.integers(0, 3)
REPORTS = st.lists(st.lists(st.tuples(st.none() | NUMBERS, NUMBERS, NUMBERS, st.none() | NUMBERS)), max_size=4)


# Order ---------------------------------------------------------------------------------------------------------------


def frame(rows: Rows, number: int = 0) -> pl.DataFrame:
    """Rows of a report in their order; ``from`` tells the report and the row."""
    columns = dict.fromkeys((*KEY, "gpu_start_ns"), pl.Int64)
    made = pl.DataFrame(rows, schema=columns, orient="row").sort(*columns, maintain_order=True)
    return made.with_columns(pl.format("{}.{}", pl.lit(number), pl.int_range(pl.len())).alias("from"))


@given(REPORTS)
def test_rows_of_reports_are_sorted(reports: list[Rows]) -> None:
    """As all of them together would be, by a stable sort: nulls first, of equal rows an earlier report's."""
    parts = [frame(rows, number) for number, rows in enumerate([*reports, []])]
    assert (
        order_of(parts).together(parts).rows()
        == pl.concat(parts).sort(*KEY, "gpu_start_ns", maintain_order=True).rows()
    )


def test_reports_of_ranks_of_their_own_are_put_one_after_the_other() -> None:
    parts = [frame([(2, 0, 0, 5), (3, 0, 0, 5)]), frame([]), frame([(0, 7, 0, 5), (1, 0, 0, 5)])]
    found = order_of(parts)
    assert (found.reports, found.rows) == ((2, 0, 1), None)


@pytest.mark.parametrize("second", [[(2, 0, 0, 5)], [(4, 0, 0, 5)], [(None, 0, 0, 5)]], ids=["between", "same", "none"])
def test_reports_that_interleave_are_sorted_by_row(second: Rows) -> None:
    assert order_of([frame([(1, 0, 0, 5), (4, 0, 0, 5)]), frame(second)]).rows is not None


def one_report(ranks: tuple[int, ...]) -> Export:
    """Data-parallel ranks of four in one report. Rank r has r + 2 steps, its layers other counts and times."""
    export = Export()
    for rank in ranks:
        worker = Process(
            export, pid=100 + rank, rank=rank, world_size=4, layers=2, meta={"dp_rank": rank, "dp_size": 4}
        )
        worker.send_meta()
        for step in range(rank + 2):
            with worker.step(step):
                for layer in range(2):
                    with worker.layer(layer), worker.phase("experts", layer):
                        worker.kernel(100 * (rank + 1) + layer, name="fused")
            for layer in range(2):
                worker.counts(step, layer, [rank, 3 - layer, step, 5])
            worker.topk(step, 0, [[rank, (rank + 1) % 4]])
    return export


@pytest.fixture(scope="module")
def by_order(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, str]]:
    """The tables' texts, of ranks 0 and 2 in one report and 1 and 3 in another, in either order, and of a report a
    rank in three orders; of tables that hold no time of a report's own."""
    found = []
    groups: list[list[tuple[int, ...]]] = [[(0, 2), (1, 3)], [(1, 3), (0, 2)]]
    groups += [[(rank,) for rank in order] for order in list(permutations(range(4)))[::9]]
    for ranks in groups:
        got = written(tmp_path_factory.mktemp("ordered"), *(one_report(one) for one in ranks))
        found.append({stem: got.text(stem) for stem in table_builders() if (got.folder / f"{stem}.csv").exists()})
        found[-1]["rows"] = str(got.rows("moe_layer_timings", "rank", "step", "layer_idx", "kernel_time_ns"))
    return found


@pytest.mark.parametrize(
    "stem", ["moe_layer_correlation", "moe_expert_activations", "moe_routing_weights_hist", "rows"]
)
def test_how_ranks_are_spread_over_reports_changes_nothing(by_order: list[dict[str, str]], stem: str) -> None:
    assert len(by_order) == 5
    assert len({one[stem] for one in by_order}) == 1


def test_rows_of_reports_that_interleave(by_order: list[dict[str, str]]) -> None:
    assert by_order[0]["rows"] == str(
        [
            (str(rank), str(step), str(layer), str(100 * (rank + 1) + layer))
            for rank in range(4)
            for step in range(rank + 2)
            for layer in range(2)
        ]
    )


def test_features_are_of_their_cells(tmp_path: Path) -> None:
    """Where cells move, and where copies of tensor-parallel ranks are left out."""
    facts = []
    for rank in (1, 0):
        export = Export()
        worker = Process(export, pid=100 + rank, rank=rank, world_size=2, tp_size=2, layers=1)
        worker.send_meta()
        for step in (2, 0, 1)[rank:]:
            with worker.step(step):
                pass
            worker.counts(step, 0, [step, 3, 3 - step, 0])
        facts.append(read_capture(open_export(export.save(tmp_path / f"{rank}.sqlite")), Selection()))
    found = metrics(facts)
    assert found.routing.counts.cells.select("rank", "step").rows() == [(0, 0), (0, 1), (0, 2)]
    expected = cell_features(found.routing.counts)
    assert found.features.select(expected.drop("min_count").columns).rows() == expected.drop("min_count").rows()


# What merging needs --------------------------------------------------------------------------------------------------


def whole_run(folder: Path) -> CaptureFacts:
    """A rank with idle batches and moe.collective ranges, that shares layers with one that is not here."""
    export = Export()
    worker = Process(export, pid=100, rank=0, world_size=2, tp_size=2, layers=1)
    worker.send_meta()
    for step in (0, 2):
        with worker.step(step):
            with worker.layer(0), worker.phase("experts", 0):
                worker.kernel(100)
            with worker.range(schema.COLLECTIVE, 0):
                worker.kernel(50, name="ncclDevKernel_AllReduce")
        worker.counts(step, 0, [1, 2, 3, 0])
        if step == 0:
            with worker.range(schema.IDLE):
                worker.kernel(10)
    return read_capture(open_export(export.save(folder / "whole.sqlite")), Selection())


def metrics(reports: Sequence[CaptureFacts]) -> RunMetrics:
    return RunMetrics.of(merge(reports, Selection(), {}))


def everything(results: RunMetrics) -> list[Any]:
    tables = [build(results).to_dicts() for build in table_builders().values()]
    return [*tables, *(build(results) for build in document_builders().values())]


def test_facts_to_merge_give_the_same(tmp_path: Path) -> None:
    whole = whole_run(tmp_path)
    lean = whole.to_merge()
    assert lean.events.ranges["name"].to_list() == [schema.IDLE]
    assert len(whole.events.ranges) > 1
    assert everything(metrics([lean])) == everything(metrics([whole]))
    (seen,) = (one for one in validate(metrics([lean]))[0] if one.name == "collectives_seen")
    assert (seen.status, seen.evidence["collective_ranges"]) == ("pass", 2)


def test_merged_reports_hold_no_counts_of_their_own(tmp_path: Path) -> None:
    """In whatever order they were given: they are put in that of their ranks."""
    ranks = (2, 0, 3, 1)
    exports = [open_export(one_report((rank,)).save(tmp_path / f"{rank}.sqlite")) for rank in ranks]
    given = [read_capture(export, Selection()) for export in exports]
    found = metrics(given)
    in_order = sorted(given, key=lambda one: min(meta.rank for meta in one.metas.values()))
    for report, before in zip(found.reports, in_order, strict=True):
        assert np.shares_memory(report.counts.matrix, found.routing.counts.matrix)
        assert report.events.counts is report.counts
        assert np.array_equal(report.counts.matrix, before.counts.matrix)
        assert report.counts.cells.equals(before.counts.cells)
    assert found.routing.order.reports == (0, 1, 2, 3)
    assert found.routing.counts.cells["rank"].unique(maintain_order=True).to_list() == [0, 1, 2, 3]
    chosen = metrics([replace(one, counts=replace(one.counts)) for one in given])
    assert all(a.events.counts is b.events.counts for a, b in zip(chosen.reports, in_order, strict=True))


# Parts ---------------------------------------------------------------------------------------------------------------

MATRICES = st.lists(st.lists(st.lists(st.integers(0, 300), min_size=1, max_size=3), max_size=4), min_size=1, max_size=4)


@given(MATRICES, st.data())
def test_rows_of_stacked_parts(parts: list[list[list[int]]], data: st.DataObject) -> None:
    """Of unequal widths and types."""
    arrays = []
    for part in parts:
        width = max((len(row) for row in part), default=1)
        padded = np.array([row + [7] * (width - len(row)) for row in part], dtype=np.int64).reshape(-1, width)
        arrays.append(padded.astype(np.min_scalar_type(padded.max(initial=0))))
    stacked = Stacked(arrays, 9)
    whole = stacked.whole()
    assert [row[: len(one)].tolist() for row, one in zip(whole, [r for a in arrays for r in a], strict=True)] == [
        row.tolist() for array in arrays for row in array
    ]
    at = np.array(
        data.draw(st.lists(st.integers(0, max(0, len(whole) - 1)), max_size=6 if len(whole) else 0)), np.int64
    )
    found = stacked.rows(at)
    assert found.dtype == whole.dtype
    assert np.array_equal(found, whole[at])
    single = Stacked([array[:, 0] for array in arrays], 0)
    assert np.array_equal(single.rows(at), single.whole()[at])


@given(st.lists(st.tuples(NUMBERS, NUMBERS)))
def test_in_order(rows: list[tuple[int, int]]) -> None:
    keys = [np.array([row[column] for row in rows], dtype=np.int64) for column in range(2)]
    assert in_order(*keys) == (rows == sorted(rows))
    assert in_order(*keys, strictly=True) == (rows == sorted(set(rows)))


def test_no_threads_within_threads() -> None:
    def inner(_: int) -> str:
        return threading.current_thread().name

    def outer(_: int) -> tuple[str, list[str]]:
        return threading.current_thread().name, list(ordered_map(inner, range(3)))

    for own, others in ordered_map(outer, range(3)):
        assert own != threading.main_thread().name
        assert others == [own] * 3
    assert threading.main_thread().name not in list(ordered_map(inner, range(3)))


@pytest.mark.parametrize("block", [1, 7, 64])
def test_choices_are_counted_block_by_block(monkeypatch: pytest.MonkeyPatch, block: int) -> None:
    rng = np.random.default_rng(3)
    a, b = (rng.permuted(np.tile(np.arange(6), (50, 1)), axis=1)[:, :2] for _ in range(2))
    monkeypatch.setattr(token_paths, "BLOCK", block)
    found = token_paths.joint(a, b)
    square = np.zeros((6, 6), dtype=np.int64)
    np.add.at(square, (a[:, :, None].repeat(2, axis=2), b[:, None, :].repeat(2, axis=1)), 1)
    assert found.tokens == 50
    assert np.array_equal(found.cells, np.flatnonzero(square))
    assert np.array_equal(found.counts, square[square > 0])


@pytest.mark.parametrize("rows", [0, 1, 3, 4, 7])
def test_csv_is_written_block_by_block(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, rows: int) -> None:
    numbers = [0.1, None, float("nan"), 1 / 3, 1e300, 0.1, -0.0][:rows]
    table = pl.DataFrame(
        {"a": numbers, "b, c": ["x", 'say "y"', None, "", "z\nz", "x", "x"][:rows], "n": list(range(rows))},
        schema={"a": pl.Float64, "b, c": pl.String, "n": pl.Int32},
    )
    monkeypatch.setattr(write, "BLOCK_ROWS", 3)
    write_set(tmp_path, {"t": table}, {}, ("csv", "parquet"))
    assert (tmp_path / "t.csv").read_text() == as_text(table).write_csv()
    found = pl.read_parquet(tmp_path / "t.parquet")
    assert found.schema["n"] == pl.Int64
    assert found["n"].to_list() == list(range(rows))
