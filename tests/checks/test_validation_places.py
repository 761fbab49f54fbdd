"""Checks of where GPU work belongs, and of several faults at once."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.support.constructed_runs import GOOD, one_layer, simple
from tests.support.export_builder import Export, Process
from tests.support.written_results import written


def no_correlation(export: Export, worker: Process) -> None:
    worker.kernel(7)["correlationId"] = 0
    worker.memcpy(8)["correlationId"] = None


def launch_call_missing(export: Export, worker: Process) -> None:
    worker.kernel(7, correlation=999)
    worker.memset(8, correlation=998)


def node_unresolved(export: Export, worker: Process) -> None:
    launch = worker.call("cudaGraphLaunch_v10000")
    worker.kernel(7, correlation=launch, node=5)
    worker.kernel(8, correlation=launch, node=5)


def crossing(export: Export, worker: Process) -> None:
    """A layer that ends after the phase inside it began and before it ends."""
    layer = worker.nvtx(59, "moe.layer.0", int64Value=0)
    phase = worker.nvtx(59, "moe.experts", int64Value=0)
    worker.kernel(7)
    worker.kernel(8)
    layer["end"] = export.tick()
    phase["end"] = export.tick()


def whole_graph(export: Export, worker: Process) -> None:
    row = worker._activity(export.now, 15, worker.call("cudaGraphLaunch_v10000"), None)
    del row["graphNodeId"]
    export.add("CUPTI_ACTIVITY_KIND_GRAPH_TRACE", **row, graphId=1)


@pytest.mark.parametrize(
    ("act", "reason", "operations", "others"),
    [
        (no_correlation, "no_correlation_id", 2, {"launches_have_work"}),  # the calls seem to have nothing
        (launch_call_missing, "launch_call_missing", 2, set()),
        (node_unresolved, "graph_node_unresolved", 2, {"graph_tracing", "graph_nodes"}),
        (crossing, "crossing_ranges", 2, {"ranges_nest"}),
        (whole_graph, "graph_level_tracing", 1, {"graph_tracing"}),
    ],
)
def test_unplaced(
    tmp_path: Path, act: Callable[[Export, Process], None], reason: str, operations: int, others: set[str]
) -> None:
    export, worker = one_layer()
    with worker.step(0):
        with worker.layer(0):
            worker.kernel(100)
        act(export, worker)
    worker.counts(0, 0, GOOD)
    found = written(tmp_path, export)
    assert found.check("operations_placed") == (
        "fail",
        f"{operations} of {operations + 1} GPU operations are unplaced: {reason} {operations}.",
        {
            "operations": operations + 1,
            "unplaced": operations,
            "reasons": {reason: {"operations": operations, "time_ns": 15}},
            "repeated_calls": 0,
        },
    )
    assert found.statuses == dict.fromkeys({"operations_placed", *others}, "fail")
    unplaced = found.validation["coverage"]["classes"]["unplaced"]
    assert (unplaced["operations"], unplaced["time_ns"]) == (operations, 15)
    assert unplaced["reasons"] == {reason: {"operations": operations, "time_ns": 15}}
    assert found.validation["coverage"]["placed_pct_of_step_time"] == 100 * 100 / 115
    # Never spread over the cells.
    assert found.rows("moe_layer_timings", "kernel_count", "kernel_time_ns", "memcpy_count") == [("1", "100", "0")]


def test_unplaced_reasons_by_time(tmp_path: Path) -> None:
    """The longest first, the same in the message and in the figures."""
    export, worker = one_layer()
    with worker.step(0), worker.layer(0):
        worker.kernel(5, correlation=999)
        worker.kernel(100)["correlationId"] = 0
    worker.counts(0, 0, GOOD)
    _, message, figures = written(tmp_path, export).check("operations_placed")
    assert message == "2 of 2 GPU operations are unplaced: no_correlation_id 1, launch_call_missing 1."
    assert list(figures["reasons"]) == ["no_correlation_id", "launch_call_missing"]


def test_crossing_ranges(tmp_path: Path) -> None:
    """Nothing was launched where they cross, so nothing is unplaced; that they cross is a fault all the same."""
    export, worker = one_layer()
    with worker.step(0):
        layer = worker.nvtx(59, "moe.layer.0", int64Value=0)
        worker.kernel(50)
        phase = worker.nvtx(59, "moe.experts", int64Value=0)
        layer["end"] = export.tick()
        phase["end"] = export.tick()
    worker.counts(0, 0, GOOD)
    found = written(tmp_path, export)
    assert found.check("ranges_nest") == ("fail", "2 ranges cross another of their thread.", {"crossing": 2})
    assert found.statuses == {"ranges_nest": "fail"}


def test_nsys_warns(tmp_path: Path) -> None:
    """Captures with a warning have been found whole: the verdict stays."""
    export = simple()
    for text in ("Not all NVTX events might have been collected.", "Profiling has started.", "3 events were dropped."):
        export.add("DIAGNOSTIC_EVENT", timestamp=0, severity=2, text=text)
    found = written(tmp_path, export)
    assert found.check("profiler_warnings") == (
        "warn",
        "nsys says: 3 events were dropped. Not all NVTX events might have been collected. The other checks tell "
        "whether anything is missing.",
        {"messages": ["3 events were dropped.", "Not all NVTX events might have been collected."]},
    )
    assert (found.verdict, found.validation["reasons"]) == ("complete", [])


def test_data_parallel_ranks_reduce_nothing_after_a_layer(tmp_path: Path) -> None:
    """Their exchange is inside the layer: no moe.collective range is missing."""
    export = Export()
    for rank in range(2):
        sizes = {"ep_size": 2, "dp_size": 2, "dp_rank": rank}
        worker = Process(export, pid=100 + rank, rank=rank, world_size=2, layers=1, meta=sizes)
        worker.send_meta()
        with worker.step(0):
            with worker.layer(0):
                worker.kernel(100, "fused")
                worker.kernel(30, "all_gather")
            worker.kernel(20, "lm_head")
        worker.counts(0, 0, GOOD)
    assert written(tmp_path, export).check("collectives_seen") == (
        "pass",
        "Data-parallel ranks exchange tokens inside their layers; no collective was seen right after a layer.",
        {"processes_that_share_layers": 2, "collective_ranges": 0, "inferred": 0},
    )


@pytest.mark.parametrize("sizes", [{"tp_size": 2}, {"meta": {"ep_size": 2}}])
@pytest.mark.parametrize("seen", [True, False])
def test_collectives(tmp_path: Path, sizes: dict[str, Any], seen: bool) -> None:
    """The reduction of a shared layer counts in it where moe.collective says whose it is, else outside, as inferred."""
    export = Export()
    for rank in range(2):
        worker = Process(export, pid=100 + rank, rank=rank, world_size=2, layers=1, **sizes)
        worker.send_meta()
        with worker.step(0):
            with worker.layer(0):
                worker.kernel(100, "fused")
            with worker.phase("collective", 0) if seen else worker.range("other.range"):
                worker.kernel(30, "all_reduce")
        worker.counts(0, 0, GOOD)
    found = written(tmp_path, export)
    figures = {"processes_that_share_layers": 2, "collective_ranges": 2 if seen else 0, "inferred": 0 if seen else 2}
    columns = ("collective_ns", "collective_inferred_ns", "own_ns")
    times = found.rows("moe_layer_timings", "kernel_count", "kernel_time_ns")
    rows = found.rows("moe_kernel_timings", "rank", "phase", "kernel_name", "total_ns")
    if seen:
        assert found.check("collectives_seen") == ("pass", "2 moe.collective ranges.", figures)
        assert times == [("2", "130")] * 2
        assert ("1", "collective", "all_reduce", "30") in rows
        assert found.rows("moe_layer_correlation", *columns) == [("30", "0", "100")] * 2
    else:
        assert found.check("collectives_seen") == (
            "warn",
            "No moe.collective range: reductions of MoE results after their layers count outside them; 2 right after a "
            "layer are tied to it, in collective_inferred_ns. The time of a collective includes waiting for other "
            "ranks.",
            figures,
        )
        assert times == [("1", "100")] * 2
        assert found.rows("moe_layer_correlation", *columns) == [("0", "30", "100")] * 2
        assert [row[:2] for row in rows if row[2] == "all_reduce"] == [
            ("0", "step_collective"),
            ("1", "step_collective"),
        ]
    assert found.verdict == "complete"


def test_several_problems_at_once(tmp_path: Path) -> None:
    """Each is named, in the order of the checks; warnings are no reasons."""
    export, worker = one_layer(world_size=2)
    with worker.step(0) as first, worker.layer(0):
        worker.kernel()
        worker.call()  # without its kernel
        worker.kernel(correlation=999)
    first["end"] = None
    worker.counts(0, 0, [2, 2, 1, 0])
    worker.topk(0, 0, [[0, 1]])
    export.add("DIAGNOSTIC_EVENT", timestamp=0, severity=2, text="Events were lost.")
    found = written(tmp_path, export)
    assert found.statuses == {
        "ranks_present": "fail",
        "steps_closed": "fail",
        "counts_sum": "fail",
        "topk_agrees": "fail",
        "launches_have_work": "fail",
        "operations_placed": "fail",
        "profiler_warnings": "warn",
    }
    assert found.validation["reasons"] == [
        "1 rank of 2 missing: 1. Give every rank's report.",
        "1 step still open when the capture ended.",
        "1 of 1 counts have a wrong sum: moe.counts of rank 0 step 0 layer 0 sums to 5, not 3 tokens x 2.",
        "In 1 of 1 sampled (rank, step, layer) the tokens' experts are not those counted.",
        "1 of 2 launches in steps have lost GPU work, from rank 0 step 0 on (cudaLaunchKernel_v7000): the GPU half of "
        "the capture is not whole.",
        "1 of 2 GPU operations are unplaced: launch_call_missing 1.",
    ]


def test_a_whole_capture(golden_2gpu: Path, tmp_path: Path) -> None:
    """The pass of what constructed runs don't have: graphs, copies, many ranks."""
    found = written(tmp_path, golden_2gpu)
    assert found.statuses == {"collectives_seen": "warn", "profiler_warnings": "warn"}
    assert found.check("graph_tracing")[1] == "86 graph launches, traced by node."
    assert found.check("graph_nodes")[2] == {"unresolved": 0, "node_rows": 3420}
    assert found.check("launches_have_work")[1] == "All 3,848 launches in steps have their GPU work."
    assert found.check("layers_have_work")[2] == {"cells": 376, "without_work": 0}
    assert found.check("operations_placed")[1] == "All 45,152 GPU operations have their place."
