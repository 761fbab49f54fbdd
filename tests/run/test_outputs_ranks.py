"""What becomes of several ranks and reports, and of cells that only half of a capture knows."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest

from nvtxmoe.errors import NvtxmoeError
from nvtxmoe_analysis.facts.selection import Selection
from tests.support.export_builder import Export, Process
from tests.support.written_results import Written, literal, written

EPOCH_NS = 1_700_000_000_000_000_000
TIMINGS = ("rank", "step", "layer_idx", "num_tokens", "kernel_count", "kernel_time_ns", "gpu_start_ns", "launched_by")


def worker_of(export: Export, rank: int, world_size: int, **process: Any) -> Process:
    """A process that has announced itself; pids follow ranks."""
    worker = Process(export, pid=100 + rank, rank=rank, world_size=world_size, **process)
    worker.send_meta()
    return worker


def run_step(
    worker: Process, step: int, at_ns: int, counts: dict[int, list[int]], *, ns: int = 100, gpu_ns: int = 9000
) -> None:
    """A step with one kernel a layer, and its counts."""
    worker.export.now = max(worker.export.now, at_ns - 10)
    with worker.step(step):
        for layer in counts:
            with worker.layer(layer), worker.phase("experts", layer):
                worker.kernel(ns, name="fused", start=gpu_ns + layer * 1000)
    for layer, numbers in counts.items():
        worker.counts(step, layer, numbers)


def data_parallel(folder: Path, later_ns: int | None) -> Written:
    """Two reports of a rank each; the second's time 0 is ``later_ns`` after the first's, or unknown."""
    exports = []
    for rank, at_ns, first, second in (
        (0, 1_000_000_000, [3, 2, 1, 0], [1, 1, 2, 2]),
        (1, 600_000_000, [0, 0, 3, 3], [6, 0, 0, 0]),
    ):
        export = Export()
        worker = worker_of(export, rank, 2, layers=1)
        run_step(worker, 0, at_ns, {0: first}, gpu_ns=9000 + rank)
        worker.topk(0, 0, [[0, 1]] if rank == 0 else [[3, 2], [2, 3]])
        run_step(worker, 1, at_ns + 250_000_000, {0: second}, ns=200)
        exports.append(export)
    exports[1].rows["TARGET_INFO_SESSION_START_TIME"] = (
        [] if later_ns is None else [{"utcEpochNs": EPOCH_NS + later_ns}]
    )
    return written(folder, *exports)


def test_data_parallel_ranks_are_added(tmp_path: Path) -> None:
    found = data_parallel(tmp_path, 500_000_000)
    assert found.text("moe_expert_activations") == literal("""
        layer_idx,expert_id,activation_count,percentage
        0,0,10,41.6666667
        0,1,3,12.5
        0,2,6,25
        0,3,5,20.8333333
        """)
    summary = found.json("moe_summary")
    assert summary["layer_0"]["total_activations"] == 24
    assert summary["layer_0"]["load_balance_ratio"] == 10 / 3


def test_each_data_parallel_rank_has_its_own_imbalance(tmp_path: Path) -> None:
    """On one axis: rank 1's report began half a second later, so its 0.6 s is 1.1 s of rank 0's."""
    found = data_parallel(tmp_path, 500_000_000)
    assert found.text("moe_load_imbalance") == literal("""
        layer_idx,timestamp_sec,std_dev,max_min_ratio,max_mean_ratio,step,num_tokens,rank
        0,0,1.11803399,,2,0,3,0
        0,0.25,0.5,2,1.33333333,1,3,0
        0,0.1,1.5,,2,0,3,1
        0,0.35,2.59807621,,4,1,3,1
        """)
    assert found.validation["clock"] == {
        "unit": "ns",
        "gpu_start_ns": "each report's own time",
        "reports_aligned": True,
        "origin_ns": EPOCH_NS + 1_000_000_000,
    }
    # GPU times stay those that Nsight Systems shows.
    assert found.rows("moe_layer_timings", *TIMINGS) == [
        ("0", "0", "0", "3", "1", "100", "9000", "eager"),
        ("0", "1", "0", "3", "1", "200", "9000", "eager"),
        ("1", "0", "0", "3", "1", "100", "9001", "eager"),
        ("1", "1", "0", "3", "1", "200", "9000", "eager"),
    ]


def test_sampled_tokens_of_each_rank(tmp_path: Path) -> None:
    found = data_parallel(tmp_path, 0)
    assert found.text("moe_routing_weights_hist") == literal("""
        layer_idx,token_idx,expert_id,weight,step,rank
        0,0,0,0.5,0,0
        0,0,1,0.25,0,0
        0,0,3,0.5,0,1
        0,0,2,0.25,0,1
        0,1,2,0.5,0,1
        0,1,3,0.25,0,1
        """)
    assert found.text("moe_expert_coselection") == literal("""
        layer_idx,expert_id_1,expert_id_2,coselection_count,tokens
        0,0,1,1,3
        0,2,3,2,3
        """)


def test_reports_without_a_clock_are_said_to_be_unaligned(tmp_path: Path) -> None:
    found = data_parallel(tmp_path, None)
    assert found.validation["clock"]["reports_aligned"] is False
    assert found.rows("moe_load_imbalance", "rank", "timestamp_sec") == [
        ("0", "0"), ("0", "0.25"), ("1", "0"), ("1", "0.25"),
    ]  # fmt: skip


def test_order_of_the_inputs_is_of_no_account(tmp_path: Path) -> None:
    data_parallel(tmp_path, 500_000_000)
    paths = [tmp_path / f"built{i}.sqlite" for i in (0, 1)]
    (tmp_path / "a").mkdir()
    (tmp_path / "b").mkdir()
    one, other = written(tmp_path / "a", *paths), written(tmp_path / "b", *reversed(paths))
    for file in one.folder.iterdir():
        if file.name != "moe_capture_validation.json":
            assert file.read_bytes() == (other.folder / file.name).read_bytes(), file.name


def test_a_rank_given_twice_is_refused(tmp_path: Path) -> None:
    data_parallel(tmp_path, 0)
    with pytest.raises(NvtxmoeError, match="given twice"):
        written(tmp_path, tmp_path / "built0.sqlite", tmp_path / "built0.sqlite")
    copy = Path(shutil.copy(tmp_path / "built0.sqlite", tmp_path / "copy.sqlite"))
    with pytest.raises(NvtxmoeError, match="two processes say they are rank 0"):
        written(tmp_path, tmp_path / "built0.sqlite", copy)


def test_tensor_parallel_groups_count_once_each(tmp_path: Path) -> None:
    """Ranks 0 and 1 see one half of the tokens, 2 and 3 the other; all in one report, with colliding ids."""
    export = Export()
    for rank in range(4):
        worker = worker_of(export, rank, 4, tp_size=2, layers=1)
        run_step(worker, 0, 0, {0: [3, 3, 0, 0] if rank < 2 else [0, 1, 2, 3]}, ns=10 + rank)
        worker.topk(0, 0, [[0, 1]] * 3 if rank < 2 else [[2, 3], [3, 2], [3, 1]])
    found = written(tmp_path, export)
    assert found.rows("moe_expert_activations", "activation_count") == [("3",), ("4",), ("2",), ("3",)]
    assert found.rows("moe_load_imbalance", "rank", "max_mean_ratio") == [("0", "2"), ("2", "2")]
    sampled = [(rank, expert) for rank, experts in (("0", "010101"), ("2", "233231")) for expert in experts]
    assert found.rows("moe_routing_weights_hist", "rank", "expert_id") == sampled
    # GPU time is every rank's own.
    assert found.rows("moe_layer_timings", "rank", "kernel_time_ns") == [
        ("0", "10"), ("1", "11"), ("2", "12"), ("3", "13"),
    ]  # fmt: skip
    assert found.rows("moe_layer_correlation", "rank", "total_activations") == [
        ("0", "6"), ("1", "6"), ("2", "6"), ("3", "6"),
    ]  # fmt: skip
    assert found.check("tensor_parallel_copies")[0] == "pass"
    assert found.verdict == "complete"


def test_a_selected_rank_of_a_group_speaks_for_it(tmp_path: Path) -> None:
    export = Export()
    for rank in range(2):
        run_step(worker_of(export, rank, 2, tp_size=2, layers=1), 0, 0, {0: [3, 3, 0, 0]})
    found = written(tmp_path, export, selection=Selection(ranks=frozenset({1})))
    assert found.rows("moe_expert_activations", "activation_count") == [("3",), ("3",), ("0",), ("0",)]
    assert found.rows("moe_load_imbalance", "rank") == [("1",)]
    assert found.rows("moe_layer_timings", "rank") == [("1",)]
    # The checks look at the whole capture all the same.
    assert found.check("tensor_parallel_copies")[2] == {"compared": 1, "differing": 0}


def test_pipeline_parallel_ranks_have_other_layers(tmp_path: Path) -> None:
    export = Export()
    for rank, numbers in ((0, [0, 1]), (1, [2, 3])):
        layers = [{"layer": n, "name": "", "num_experts": 4, "top_k": 2, "local_experts": None} for n in numbers]
        worker = worker_of(export, rank, 2, meta={"layers": layers})
        run_step(worker, 0, 0, {n: [n, 6 - n, 0, 0] for n in numbers}, gpu_ns=5000)
    found = written(tmp_path, export)
    assert found.verdict == "complete"
    assert list(found.json("moe_summary")) == ["layer_0", "layer_1", "layer_2", "layer_3"]
    assert found.rows("moe_layer_timings", *TIMINGS) == [
        ("0", "0", "0", "3", "1", "100", "5000", "eager"),
        ("0", "0", "1", "3", "1", "100", "6000", "eager"),
        ("1", "0", "2", "3", "1", "100", "7000", "eager"),
        ("1", "0", "3", "3", "1", "100", "8000", "eager"),
    ]
    assert found.rows("moe_load_imbalance", "layer_idx", "rank") == [("0", "0"), ("1", "0"), ("2", "1"), ("3", "1")]


# Half-known cells --------------------------------------------------------------------------------------------------


def test_counts_of_a_step_whose_range_was_not_captured(tmp_path: Path) -> None:
    """The tables leave them out: a capture window began after that step."""
    export = Export()
    worker = worker_of(export, 0, 1, layers=1)
    worker.counts(4, 0, [6, 0, 0, 0])
    run_step(worker, 5, 0, {0: [2, 2, 1, 1]})
    found = written(tmp_path, export)
    assert found.rows("moe_expert_activations", "activation_count") == [("2",), ("2",), ("1",), ("1",)]
    assert found.statuses == {"steps_consecutive": "warn", "counts_have_steps": "warn"}
    assert found.text("moe_load_imbalance") == literal("""
        layer_idx,timestamp_sec,std_dev,max_min_ratio,max_mean_ratio,step,num_tokens,rank
        0,0,0.5,2,1.33333333,5,3,0
        """)
    assert found.text("moe_layer_timings").splitlines()[1:] == [
        "0,5,0,3,0,3,1,100,0,0,0,0,100,9000,9100,eager",
    ]


def test_a_step_without_counts_has_its_gpu_time(tmp_path: Path) -> None:
    export = Export()
    worker = worker_of(export, 0, 1, layers=1)
    with worker.step(0, tokens=5, prefill=4), worker.layer(0):
        worker.kernel(100, start=9000)
    found = written(tmp_path, export)
    assert found.text("moe_layer_timings").splitlines()[1:] == ["0,0,0,5,4,1,1,100,0,0,0,0,100,9000,9100,eager"]
    assert found.text("moe_layer_correlation").splitlines()[1:] == [
        "0,0,0,5,4,1,,,,,,,,,,1,100,100,eager,mixed,,,,,,,,,,,0,0,0,0,0,0,100,0,100,100,0,0,0,0,0,0,0,0,0,0,100"
    ]
    assert found.rows("moe_expert_activations", "expert_id") == []  # unknown is not zero


def test_a_layer_that_no_meta_names_counts(tmp_path: Path) -> None:
    export = Export()
    worker = worker_of(export, 0, 1, layers=1)
    run_step(worker, 0, 0, {0: [2, 2, 2, 0], 9: [0, 0, 6, 0]})
    found = written(tmp_path, export)
    assert found.rows("moe_layer_timings", "layer_idx", "kernel_count") == [("0", "1"), ("9", "1")]
    assert list(found.json("moe_summary")) == ["layer_0", "layer_9"]


def test_experts_that_the_counts_do_not_mention(tmp_path: Path) -> None:
    """moe.meta knows of eight, this mark has four: the others got nothing."""
    export = Export()
    worker = worker_of(export, 0, 1, layers=1, experts=8)
    run_step(worker, 0, 0, {0: [2, 2, 1, 1]})
    found = written(tmp_path, export)
    assert found.rows("moe_expert_activations", "activation_count") == [(n,) for n in "22110000"]
    assert found.json("moe_summary")["layer_0"]["activation_coverage_pct"] == 50.0


def test_mixed_launches(tmp_path: Path) -> None:
    """A cell with graph work and eager work; the graph's part is placed by where its nodes were made."""
    export = Export()
    worker = worker_of(export, 0, 1, layers=2)
    with worker.layer(0), worker.phase("experts", 0):
        worker.create_node(1)
        worker.create_node(2)
    with worker.layer(1), worker.phase("route", 1):
        worker.create_node(3)
    for clone, original in ((11, 1), (12, 2), (13, 3)):
        worker.clone_node(clone, original)
    with worker.step(0):
        replay = worker.call("cudaGraphLaunch_v10000")
        worker.kernel(100, "fused", correlation=replay, node=11, start=5000)
        worker.memset(30, correlation=replay, node=12).update(start=5050, end=5080)
        worker.kernel(40, "topk", correlation=replay, node=13, start=6000)["streamId"] = 8
        with worker.layer(0):
            worker.kernel(60, "fused", start=5090)
    for layer in (0, 1):
        worker.counts(0, layer, [2, 2, 1, 1])
    found = written(tmp_path, export)
    assert found.text("moe_layer_timings").splitlines()[1:] == [
        "0,0,0,3,0,3,2,160,0,0,1,30,150,5000,5150,mixed",
        "0,0,1,3,0,3,1,40,0,0,0,0,40,6000,6040,graph",
    ]
    assert found.text("moe_kernel_timings").splitlines()[1:] == [
        "0,0,experts,fused,graph,1,100,100,100,100",
        "0,0,other,fused,eager,1,60,60,60,60",
        "0,0,experts,[CUDA memset],graph,1,30,30,30,30",
        "0,1,route,topk,graph,1,40,40,40,40",
    ]
    assert found.verdict == "complete"


def test_steps_left_out_leave_their_cells_out(tmp_path: Path) -> None:
    """Time is still counted from the first captured step."""
    export = Export()
    worker = worker_of(export, 0, 1, layers=1)
    for step in range(3):
        run_step(worker, step, 1_000_000_000 * (step + 1), {0: [2, 2, 1, 1]}, ns=10 + step)
        worker.topk(step, 0, [[step, 3]])
    found = written(tmp_path, export, selection=Selection(skip_first=1))
    assert found.rows("moe_layer_timings", "step", "kernel_time_ns") == [("1", "11"), ("2", "12")]
    assert found.rows("moe_kernel_timings", "count", "total_ns") == [("2", "23")]
    assert found.rows("moe_load_imbalance", "step", "timestamp_sec") == [("1", "1"), ("2", "2")]
    assert found.rows("moe_expert_coselection", "expert_id_1", "tokens") == [("1", "2"), ("2", "2")]
    assert found.rows("moe_routing_weights_hist", "step") == [("1",), ("1",), ("2",), ("2",)]
    assert found.rows("moe_expert_activations", "activation_count") == [("4",), ("4",), ("2",), ("2",)]
    selection = found.validation["selection"]
    assert (selection["skip_first"], selection["steps_kept"], selection["steps_captured"]) == (1, 2, 3)
    assert found.check("steps_have_counts")[2] == {"cells": 3, "missing": 0}
    assert found.validation["coverage"]["classes"]["in_layer"]["operations"] == 3
