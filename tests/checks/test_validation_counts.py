"""Checks of steps and counts against each other."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from nvtxmoe.formats import schema
from nvtxmoe_analysis.facts.selection import Selection
from tests.support.constructed_runs import one_layer
from tests.support.export_builder import Export, Process, simple_run
from tests.support.written_results import written


def run_step(worker: Process, step: int, ns: int = 100, **scheduled: int) -> dict[str, Any]:
    with worker.step(step, **scheduled) as row, worker.layer(0):
        worker.kernel(ns)
    return row


def test_step_still_open(tmp_path: Path) -> None:
    export, worker = one_layer()
    run_step(worker, 0)
    worker.counts(0, 0, [2, 2, 1, 1])
    run_step(worker, 1)["end"] = None
    found = written(tmp_path, export)
    assert found.check("steps_closed") == (
        "fail",
        "1 step still open when the capture ended.",
        {"steps": 2, "unclosed": 1},
    )
    # Its kernel belongs to it; its counts were never sent.
    assert found.rows("moe_layer_timings", "step", "kernel_time_ns") == [("0", "100"), ("1", "100")]
    assert found.statuses == {"steps_closed": "fail", "steps_have_counts": "fail"}


def test_no_step_at_all(tmp_path: Path) -> None:
    export, worker = one_layer()
    worker.kernel()
    found = written(tmp_path, export)
    assert found.check("steps_closed") == (
        "fail",
        "No moe.step range: no step was recorded.",
        {"steps": 0, "unclosed": 0},
    )
    assert found.statuses == {"steps_closed": "fail"}
    assert found.check("steps_have_counts")[:2] == ("not_applicable", "No step with tokens whose layers are known.")
    assert found.check("counts_sum")[:2] == ("not_applicable", "No counts in the capture.")
    assert found.check("tokens_agree")[:2] == ("not_applicable", "No counts whose step was captured.")
    assert found.check("topk_agrees")[:2] == ("not_applicable", "No step has both sampled tokens and counts.")
    assert found.check("launches_have_work")[:2] == ("not_applicable", "No launch inside a step was recorded.")


def test_repeated_step(tmp_path: Path) -> None:
    """Added up; the cell's extent reaches over both."""
    export, worker = one_layer()
    run_step(worker, 0, 100)
    worker.counts(0, 0, [2, 2, 1, 1])
    run_step(worker, 0, 30)
    found = written(tmp_path, export)
    message = (
        "1 step and 0 counts repeat a number that their rank has used: repeated steps are added up, of repeated "
        "counts the first counts."
    )
    assert found.check("unique_keys") == ("fail", message, {"repeated_steps": 1, "repeated_counts": 0})
    assert found.statuses == {"unique_keys": "fail"}
    assert found.rows("moe_layer_timings", "step", "kernel_count", "kernel_time_ns") == [("0", "2", "130")]
    assert found.rows("moe_load_imbalance", "step", "timestamp_sec") == [("0", "0")]


def test_repeated_counts(tmp_path: Path) -> None:
    export, worker = one_layer()
    run_step(worker, 0)
    worker.counts(0, 0, [2, 2, 1, 1])
    worker.counts(0, 0, [0, 0, 3, 3])
    found = written(tmp_path, export)
    assert found.check("unique_keys")[2] == {"repeated_steps": 0, "repeated_counts": 1}
    assert found.statuses == {"unique_keys": "fail"}
    assert found.rows("moe_expert_activations", "activation_count") == [("2",), ("2",), ("1",), ("1",)]
    assert len(found.rows("moe_layer_timings", "rank")) == len(found.rows("moe_load_imbalance", "rank")) == 1


def test_a_step_number_of_another_rank_is_no_repetition(tmp_path: Path) -> None:
    export = Export()
    for rank in range(2):
        simple_run(export, pid=100 + rank, rank=rank, world_size=2)
    assert written(tmp_path, export).check("unique_keys")[0] == "pass"


def test_step_without_counts(tmp_path: Path) -> None:
    """A step without tokens needs none."""
    export, worker = one_layer()
    for step, tokens in ((0, 3), (1, 3), (2, 0), (3, 3)):
        run_step(worker, step, tokens=tokens)
        if step == 0:
            worker.counts(step, 0, [2, 2, 1, 1])
    found = written(tmp_path, export)
    assert found.check("steps_have_counts") == (
        "fail",
        "2 of 3 (rank, step, layer) without counts, the first rank 0 step 1 layer 0.",
        {"cells": 3, "missing": 2, "examples": ["rank 0 step 1 layer 0", "rank 0 step 3 layer 0"]},
    )
    assert found.statuses == {"steps_have_counts": "fail"}


def test_step_without_counts_of_a_layer_that_no_meta_names(tmp_path: Path) -> None:
    """Another step has counts of it, so this one should."""
    export, worker = one_layer()
    for step in range(2):
        with worker.step(step):
            for layer in (0, 5):
                with worker.layer(layer):
                    worker.kernel()
        for layer in (0, 5)[: 2 - step]:
            worker.counts(step, layer, [2, 2, 1, 1])
    found = written(tmp_path, export)
    assert found.check("steps_have_counts")[2] == {
        "cells": 4,
        "missing": 1,
        "examples": ["rank 0 step 1 layer 5"],
    }


def test_wrong_sum(tmp_path: Path) -> None:
    export, worker = one_layer()
    for step in range(3):
        run_step(worker, step)
        worker.counts(step, 0, [2, 2, 1, 1] if step else [2, 2, 1, 2])
    found = written(tmp_path, export)
    assert found.check("counts_sum") == (
        "fail",
        "1 of 3 counts have a wrong sum: moe.counts of rank 0 step 0 layer 0 sums to 7, not 3 tokens x 2.",
        {"cells": 3, "wrong": 1},
    )
    assert found.statuses == {"counts_sum": "fail"}


def test_wrong_sum_of_physical_experts(tmp_path: Path) -> None:
    """Six physical experts serve four logical ones; the logical counts are the tables'."""
    export, worker = one_layer()
    for step in range(2):
        run_step(worker, step)
        worker.counts(step, 0, [2, 2, 1, 1])
        worker.counts(step, 0, [1, 1, 1, 1, 1, 1 - step], event="physical")
    found = written(tmp_path, export)
    assert found.check("counts_sum") == (
        "fail",
        "1 of 4 counts have a wrong sum: moe.physical of rank 0 step 1 layer 0 sums to 5, not 3 tokens x 2.",
        {"cells": 4, "wrong": 1},
    )
    assert found.rows("moe_expert_activations", "activation_count") == [("4",), ("4",), ("2",), ("2",)]


def test_tokens_disagree(tmp_path: Path) -> None:
    """No other rank shares tokens with this one: one of the two numbers is wrong."""
    export, worker = one_layer()
    run_step(worker, 0)
    worker.counts(0, 0, [1, 1, 1, 1], tokens=2)
    run_step(worker, 1)
    worker.counts(1, 0, [2, 2, 1, 1])
    found = written(tmp_path, export)
    assert found.check("tokens_agree") == (
        "fail",
        "1 of 2 counts cover other tokens than their step scheduled, on a rank that works alone: one of the two "
        "numbers is wrong.",
        {"compared": 2, "differing": 1},
    )
    assert (found.statuses, found.verdict) == ({"tokens_agree": "fail"}, "incomplete")
    # What was counted, not what was scheduled.
    assert found.rows("moe_layer_timings", "num_tokens", "decode_tokens") == [("2", "3"), ("3", "3")]


def test_topk_disagrees(tmp_path: Path) -> None:
    export, worker = one_layer()
    for step in range(3):
        run_step(worker, step)
        worker.counts(step, 0, [2, 2, 1, 1])
        worker.topk(step, 0, [[0, 1], [0, 1], [2, 3 - step]])
    found = written(tmp_path, export)
    assert found.check("topk_agrees") == (
        "fail",
        "In 2 of 3 sampled (rank, step, layer) the tokens' experts are not those counted.",
        {"compared": 3, "differing": 2},
    )
    assert found.statuses == {"topk_agrees": "fail"}


def test_samples_in_several_marks(tmp_path: Path) -> None:
    """A step's tokens may come in parts, and one mark may hold several layers."""
    export = Export()
    worker = Process(export, layers=2, experts=4, top_k=1)
    worker.send_meta()
    with worker.step(0):
        for layer in range(2):
            with worker.layer(layer):
                worker.kernel()
    worker.counts(0, 0, [2, 1, 0, 0])
    worker.counts(0, 1, [0, 0, 0, 3])
    rows = [(0, 0, token, [token // 2], [1.0]) for token in range(3)] + [(0, 1, t, [3], [1.0]) for t in range(3)]
    marks = np.array(rows, dtype=schema.topk_dtype(1))
    worker.mark("topk", marks[:2])
    worker.mark("topk", marks[2:])
    found = written(tmp_path, export)
    assert found.check("topk_agrees")[2] == {"compared": 2, "differing": 0}
    assert found.rows("moe_routing_weights_hist", "layer_idx", "token_idx", "expert_id") == [
        ("0", "0", "0"), ("0", "1", "0"), ("0", "2", "1"), ("1", "0", "3"), ("1", "1", "3"), ("1", "2", "3"),
    ]  # fmt: skip


def test_tensor_parallel_copies_differ(tmp_path: Path) -> None:
    """The lowest rank's counts are used, also where it is not the first process or report."""
    exports = []
    for rank in (1, 0):
        export, worker = one_layer(pid=200 - rank, rank=rank, world_size=2, tp_size=2)
        for step in range(3):
            run_step(worker, step)
            worker.counts(step, 0, [2, 2, 1, 1] if rank == 0 or step == 0 else [0, 2, 2, 2])
        exports.append(export)
    found = written(tmp_path, *exports)
    assert found.check("tensor_parallel_copies") == (
        "fail",
        "2 of 3 copies differ, the first between ranks 0 and 1 at step 1 layer 0. The lowest rank's counts are used.",
        {"compared": 3, "differing": 2},
    )
    assert found.statuses == {"tensor_parallel_copies": "fail", "collectives_seen": "warn"}
    assert found.rows("moe_expert_activations", "activation_count") == [("6",), ("6",), ("3",), ("3",)]
    # A filter hides nothing from the checks.
    filtered = written(tmp_path, *exports, selection=Selection(last_step=0))
    assert filtered.check("tensor_parallel_copies")[2] == {"compared": 3, "differing": 2}
    assert filtered.rows("moe_expert_activations", "activation_count") == [("2",), ("2",), ("1",), ("1",)]


def test_tensor_parallel_copies_agree(tmp_path: Path) -> None:
    export = Export()
    for rank in range(2):
        simple_run(export, pid=100 + rank, rank=rank, world_size=2, tp_size=2)
    assert written(tmp_path, export).check("tensor_parallel_copies") == (
        "pass",
        "All 6 copies are equal; each counts once.",
        {"compared": 6, "differing": 0},
    )


def test_a_cell_that_only_the_second_copy_has(tmp_path: Path) -> None:
    """Counted all the same; that the first rank lacks it is a loss."""
    export = Export()
    for rank in range(2):
        worker = Process(export, pid=100 + rank, rank=rank, world_size=2, tp_size=2, layers=1)
        worker.send_meta()
        for step in range(2):
            run_step(worker, step)
            if rank or not step:
                worker.counts(step, 0, [2, 2, 1, 1])
    found = written(tmp_path, export)
    assert found.statuses == {"steps_have_counts": "fail", "collectives_seen": "warn"}
    assert found.check("steps_have_counts")[2]["examples"] == ["rank 0 step 1 layer 0"]
    assert found.rows("moe_expert_activations", "activation_count") == [("4",), ("4",), ("2",), ("2",)]
    assert found.rows("moe_load_imbalance", "step", "rank") == [("0", "0"), ("1", "1")]
