"""Checks of the GPU half: what was traced, and whether launches have their work."""

from __future__ import annotations

import json
import sqlite3
from pathlib import Path

import pytest

from nvtxmoe.cli import run
from tests.support import naive_analysis
from tests.support.constructed_runs import GOOD, make_nodes, one_layer, replay, simple, without
from tests.support.export_builder import Export, Process, simple_run
from tests.support.written_results import TABLES, written

ROUTING_FILES = (
    "moe_expert_activations.csv",
    "moe_expert_coselection.csv",
    "moe_routing_weights_hist.csv",
    "moe_load_imbalance.csv",
    "moe_summary.json",
)


# Tracing -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("gone", "lost", "figures", "others"),
    [
        (["RUNTIME", "KERNEL"], "no CUDA activity", (0, 0), set()),
        (["KERNEL"], "CUDA calls but no GPU operation", (9, 0), {"launches_have_work"}),
        (["RUNTIME"], "GPU operations but no CUDA call", (0, 9), {"operations_placed"}),
    ],
)
def test_cuda_not_traced(
    tmp_path: Path, gone: list[str], lost: str, figures: tuple[int, int], others: set[str]
) -> None:
    found = written(tmp_path, without(simple(), *gone))
    assert found.check("cuda_tracing") == (
        "fail",
        f"built0.sqlite: {lost}. GPU time is unknown. Capture with "
        "`nsys profile -t cuda,nvtx --cuda-graph-trace=node`.",
        {"runtime_calls": figures[0], "gpu_operations": figures[1]},
    )
    assert found.verdict == "incomplete"
    assert found.statuses == dict.fromkeys({"cuda_tracing", *others}, "fail")
    # The cells are there, at zero; the routing is whole.
    assert found.rows("moe_layer_timings", "num_tokens", "kernel_count", "launched_by") == [("3", "0", "none")] * 6
    assert found.rows("moe_kernel_timings", "rank") == []
    (tmp_path / "whole").mkdir()
    whole = written(tmp_path / "whole", simple())
    for name in ROUTING_FILES:
        assert found.text(name) == whole.text(name), name


def test_cuda_not_traced_in_one_of_two_reports(tmp_path: Path) -> None:
    exports = [simple(rank=rank, world_size=2) for rank in range(2)]
    found = written(tmp_path, exports[0], without(exports[1], "KERNEL"))
    status, message, figures = found.check("cuda_tracing")
    assert (status, figures) == ("fail", {"runtime_calls": 18, "gpu_operations": 9})
    assert message.startswith("built1.sqlite: CUDA calls but no GPU operation.")


def test_cuda_not_traced_in_one_of_two_processes(tmp_path: Path) -> None:
    """The report has CUDA activity; that one worker has none shows in its steps."""
    export = Export()
    simple_run(export, pid=100, world_size=2)
    other = simple_run(export, pid=101, rank=1, world_size=2)
    for kind, ident in (("RUNTIME", "globalTid"), ("KERNEL", "globalPid")):
        table = export.rows[f"CUPTI_ACTIVITY_KIND_{kind}"]
        table[:] = [row for row in table if row[ident] >> 24 != other.tid >> 24]
    found = written(tmp_path, export)
    assert found.check("cuda_tracing")[0] == "pass"
    assert found.statuses == {"launches_have_work": "fail"}
    start = next(row["start"] for row in export.rows["NVTX_EVENTS"] if row["globalTid"] == other.tid and row["end"])
    assert found.check("launches_have_work") == (
        "fail",
        "3 steps with tokens have no launch, from rank 1 step 0 on: the GPU half of the capture is not whole.",
        {
            "launches": 9,
            "graph_launches": 0,
            "without_work": 0,
            "partial_graphs": 0,
            "steps_without_launch": 3,
            "first": {
                "report": str(tmp_path / "built0.sqlite"),
                "rank": 1,
                "step": 0,
                "name": None,
                "start": start,
            },
            "steps_affected": 3,
        },
    )


def test_graphs_traced_as_a_whole(tmp_path: Path) -> None:
    """nsys's default: a record a graph, no kernels."""
    export, worker = one_layer()
    for step in range(2):
        with worker.step(step):
            launch = worker.call("cudaGraphLaunch_v10000")
        row = worker._activity(export.now, 500, launch, None)
        del row["graphNodeId"]
        export.add("CUPTI_ACTIVITY_KIND_GRAPH_TRACE", **row, graphId=1)
        worker.counts(step, 0, GOOD)
    found = written(tmp_path, export)
    assert found.check("graph_tracing") == (
        "fail",
        "2 CUDA graphs were recorded as a whole, without their kernels: no layer can be told. Capture with "
        "--cuda-graph-trace=node.",
        {"graph_launches": 2, "whole_graph_records": 2, "node_rows": 0},
    )
    assert found.check("operations_placed")[2] == {
        "operations": 2,
        "unplaced": 2,
        "reasons": {"graph_level_tracing": {"operations": 2, "time_ns": 1000}},
        "repeated_calls": 0,
    }
    assert found.statuses == {"graph_tracing": "fail", "operations_placed": "fail"}
    assert found.validation["coverage"]["classes"]["unplaced"]["kinds"] == {"graph": {"operations": 2, "time_ns": 1000}}
    assert found.validation["coverage"]["placed_pct_of_step_time"] == 0.0


def test_graph_nodes_traced(tmp_path: Path) -> None:
    export, worker = one_layer()
    make_nodes(worker, 2)
    for step in range(2):
        with worker.step(step):
            replay(worker, [101, 102])
        worker.counts(step, 0, GOOD)
    found = written(tmp_path, export)
    assert found.check("graph_tracing") == (
        "pass",
        "2 graph launches, traced by node.",
        {"graph_launches": 2, "whole_graph_records": 0, "node_rows": 6},
    )
    assert found.check("graph_nodes") == (
        "pass",
        "Every replayed graph node leads to its creation.",
        {"unresolved": 0, "node_rows": 6},
    )
    assert (found.verdict, found.statuses) == ("complete", {})


def test_node_rows_missing(tmp_path: Path) -> None:
    """The capture began after vLLM had made its graphs."""
    export, worker = one_layer()
    with worker.step(0):
        replay(worker, [101, 102])
        worker.kernel(40, "sample")
    worker.counts(0, 0, GOOD)
    found = written(tmp_path, export)
    assert found.check("graph_tracing") == (
        "fail",
        "1 graph launch but no graph node was recorded: the capture began after the graphs were made, or traced no "
        "nodes.",
        {"graph_launches": 1, "whole_graph_records": 0, "node_rows": 0},
    )
    assert found.check("graph_nodes") == (
        "fail",
        "2 graph nodes of replayed graphs lead to no creation: the capture must include the time when vLLM captures "
        "its graphs.",
        {"unresolved": 2, "node_rows": 0},
    )
    assert found.check("operations_placed") == (
        "fail",
        "2 of 3 GPU operations are unplaced: graph_node_unresolved 2.",
        {
            "operations": 3,
            "unplaced": 2,
            "reasons": {"graph_node_unresolved": {"operations": 2, "time_ns": 200}},
            "repeated_calls": 0,
        },
    )
    assert found.statuses == dict.fromkeys(("graph_tracing", "graph_nodes", "operations_placed"), "fail")


def test_one_graphs_nodes_missing(tmp_path: Path) -> None:
    """Some graphs were made before the capture began; what the others did is placed."""
    export, worker = one_layer()
    make_nodes(worker, 2)
    for step in range(2):
        with worker.step(step):
            replay(worker, [101, 102] if step else [201, 202, 203])
        worker.counts(step, 0, GOOD)
    found = written(tmp_path, export)
    assert found.check("graph_nodes")[1:] == (
        "3 graph nodes of replayed graphs lead to no creation: the capture must include the time when vLLM captures "
        "its graphs.",
        {"unresolved": 3, "node_rows": 6},
    )
    assert found.statuses == {"graph_nodes": "fail", "operations_placed": "fail"}
    assert found.rows("moe_layer_timings", "step", "kernel_time_ns") == [("0", "0"), ("1", "200")]


# Launches ----------------------------------------------------------------------------------------------------------


def test_a_graph_launch_that_lost_half_its_nodes(tmp_path: Path) -> None:
    export, worker = one_layer()
    make_nodes(worker, 4)
    for step in range(3):
        with worker.step(step):
            replay(worker, [101, 102, 103, 104][: 2 if step == 1 else 4])
        worker.counts(step, 0, GOOD)
    found = written(tmp_path, export)
    launch = export.rows["CUPTI_ACTIVITY_KIND_RUNTIME"][1]["start"]
    assert found.check("launches_have_work") == (
        "fail",
        "1 of 3 launches in steps have lost GPU work, from rank 0 step 1 on (cudaGraphLaunch_v10000): the GPU half of "
        "the capture is not whole.",
        {
            "launches": 3,
            "graph_launches": 3,
            "without_work": 0,
            "partial_graphs": 1,
            "steps_without_launch": 0,
            "first": {
                "report": str(tmp_path / "built0.sqlite"),
                "rank": 0,
                "step": 1,
                "name": "cudaGraphLaunch_v10000",
                "start": launch,
            },
            "steps_affected": 1,
        },
    )
    assert found.statuses == {"launches_have_work": "fail"}


@pytest.mark.parametrize("most_ids", [0, 5000])
def test_launches_of_an_unknown_name_are_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, most_ids: int) -> None:
    """A call that a later CUDA names otherwise, alone in its step; another process has the same correlation id.

    Found by a second look, at those correlation ids or at the whole table.
    """
    monkeypatch.setattr("nvtxmoe_analysis.attribution.launches.MOST_IDS", most_ids)
    export, worker = one_layer(world_size=2)
    with worker.step(0), worker.layer(0):
        worker.kernel(100, "fused", correlation=worker.call("cudaStartKernel_v99000"))
    worker.counts(0, 0, GOOD)
    other = Process(export, pid=200, rank=1, world_size=2, layers=1)
    other.send_meta()
    with other.step(0), other.layer(0):
        other.kernel(70, "fused")
    other.counts(0, 0, GOOD)
    found = written(tmp_path, export)
    assert (found.verdict, found.statuses) == ("complete", {})
    assert found.check("launches_have_work")[2]["launches"] == 2
    assert found.rows("moe_layer_timings", "rank", "kernel_time_ns", "launched_by") == [
        ("0", "100", "eager"), ("1", "70", "eager"),
    ]  # fmt: skip


def test_steps_without_a_launch(tmp_path: Path) -> None:
    """The calls are lost with their work, so no launch lacks any. An empty step needs none."""
    export, worker = one_layer()
    for step, tokens in enumerate((3, 0, 3)):
        with worker.step(step, tokens=tokens):
            if step == 0:
                with worker.layer(0):
                    worker.kernel()
        worker.counts(step, 0, GOOD if tokens else [0] * 4, tokens=tokens)
    found = written(tmp_path, export)
    assert found.check("launches_have_work")[:2] == (
        "fail",
        "1 step with tokens has no launch, from rank 0 step 2 on: the GPU half of the capture is not whole.",
    )
    assert found.statuses == {"launches_have_work": "fail"}


def test_a_layer_whose_range_was_not_open(tmp_path: Path) -> None:
    """All launches have their work, but some of it was not placed in its layer: zeros that are no measurement."""
    export = Export()
    worker = Process(export, layers=2)
    worker.send_meta()
    for step in range(3):
        with worker.step(step):
            with worker.layer(0):
                worker.kernel()
            worker.kernel()  # layer 1's
        for layer in range(2):
            worker.counts(step, layer, GOOD)
    found = written(tmp_path, export)
    assert found.check("layers_have_work") == (
        "fail",
        "3 of 6 (rank, step, layer) with tokens have no GPU work, the first rank 0 step 0 layer 1: was the layer's "
        "range open when it was launched, or its graph captured?",
        {
            "cells": 6,
            "without_work": 3,
            "examples": ["rank 0 step 0 layer 1", "rank 0 step 1 layer 1", "rank 0 step 2 layer 1"],
        },
    )
    assert (found.verdict, found.statuses) == ("incomplete", {"layers_have_work": "fail"})


@pytest.mark.parametrize("by_graph", [True, False])
def test_a_layer_whose_work_is_lost_is_named_once(tmp_path: Path, by_graph: bool) -> None:
    """Its launch lacks work: that is the fault, and its empty cell no second one."""
    export = Export()
    worker = Process(export, layers=2)
    worker.send_meta()
    for layer in range(2):
        with worker.layer(layer):
            worker.create_node(1 + layer)
    for node in (1, 2):
        worker.clone_node(100 + node, node)
    for step in range(2):
        with worker.step(step):
            if by_graph:
                replay(worker, [101, 102][: 2 - step])
            else:
                for layer in range(2):
                    with worker.layer(layer):
                        worker.kernel()
        for layer in range(2):
            worker.counts(step, layer, GOOD)
    if not by_graph:
        export.rows["CUPTI_ACTIVITY_KIND_KERNEL"].pop()
    found = written(tmp_path, export)
    assert found.statuses == {"launches_have_work": "fail"}
    assert found.check("launches_have_work")[2]["partial_graphs"] == by_graph
    assert found.check("layers_have_work") == (
        "pass",
        "All 2 (rank, step, layer) have GPU work.",
        {"cells": 2, "without_work": 0},
    )
    assert found.rows("moe_layer_timings", "kernel_count") == [("1",), ("1",), ("1",), ("0",)]


CUT: dict[str, tuple[str, ...]] = {
    "kernels": ("KERNEL",),
    "operations": ("KERNEL", "MEMCPY", "MEMSET"),
    "calls too": ("KERNEL", "MEMCPY", "MEMSET", "RUNTIME"),
}


@pytest.mark.parametrize("kinds", CUT.values(), ids=CUT)
def test_the_gpu_half_is_lost_after_a_third(golden_1gpu: Path, tmp_path: Path, kinds: tuple[str, ...]) -> None:
    """As it happened to a real capture: NVTX goes on, CUDA events stop."""
    whole = naive_analysis.read(golden_1gpu)
    cut_ns = whole.steps[0, 15].start_ns + 1_000_000
    path = tmp_path / "cut.sqlite"
    path.write_bytes(golden_1gpu.read_bytes())
    connection = sqlite3.connect(path)
    present = {name for (name,) in connection.execute("SELECT name FROM sqlite_master WHERE type = 'table'")}
    for kind in kinds:
        if f"CUPTI_ACTIVITY_KIND_{kind}" in present:
            connection.execute(f"DELETE FROM CUPTI_ACTIVITY_KIND_{kind} WHERE start >= {cut_ns}")
    connection.commit()
    connection.close()

    found = written(tmp_path, path)
    assert found.verdict == "incomplete"
    status, message, figures = found.check("launches_have_work")
    assert status == "fail"
    if "RUNTIME" in kinds:
        # Nothing was launched in later steps; what remains of step 15 has its work.
        assert message.startswith("30 steps with tokens have no launch, from rank 0 step 16 on: ")
        assert (figures["without_work"], figures["steps_without_launch"], figures["steps_affected"]) == (0, 30, 30)
        assert figures["first"]["start"] == whole.steps[0, 16].start_ns
    else:
        lost = [
            op for op in whole.answer.operations if op.start_ns >= cut_ns and (len(kinds) > 1 or op.kind == "kernel")
        ]
        lost_ns = [op.launch_ns for op in lost if op.launch_ns is not None and op.placed.startswith("in_")]
        first = max(s for (_, s), step in whole.steps.items() if step.start_ns <= min(lost_ns))
        assert first == 15
        assert "from rank 0 step 15 on" in message
        assert (figures["steps_without_launch"], figures["steps_affected"]) == (0, 31)
    assert (figures["first"]["rank"], figures["first"]["report"]) == (0, str(path))

    (tmp_path / "whole").mkdir()
    reference = written(tmp_path / "whole", golden_1gpu)
    for name in ROUTING_FILES:
        assert found.text(name) == reference.text(name), name
    # What was measured before the cut stands; every cell has its row.
    cells, all_cells = (one.text("moe_layer_timings").splitlines() for one in (found, reference))
    assert cells[: 1 + 15 * 4] == all_cells[: 1 + 15 * 4]
    assert len(cells) == len(all_cells)


def test_exit_codes_of_a_loss(golden_1gpu: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """0 with the loss named; 3 with --strict, the files written all the same."""
    path = without(simple(), "KERNEL").save(tmp_path / "lost.sqlite")
    assert run(["analyze", str(path), "-o", str(tmp_path / "a")]) == 0
    assert "Capture incomplete" in capsys.readouterr().out
    assert run(["analyze", str(path), "-o", str(tmp_path / "b"), "--strict"]) == 3
    capsys.readouterr()
    for stem in TABLES:
        one, other = (tmp_path / at / "moe_expert_tracking" / f"{stem}.csv" for at in "ab")
        assert one.read_bytes() == other.read_bytes()
    assert run(["analyze", str(golden_1gpu), "-o", str(tmp_path / "c"), "--strict"]) == 0
    assert json.loads((tmp_path / "c/moe_expert_tracking/moe_capture_validation.json").read_text())["reasons"] == []
