"""Redundant facts that contradict one another are never complete."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from nvtxmoe.formats import schema
from tests.checks.test_expected_steps import ran, ranks
from tests.support.constructed_runs import GOOD, one_layer, simple, without
from tests.support.export_builder import Export, Process, simple_run
from tests.support.sessions import ENDED, journal, run_of
from tests.support.written_results import written

KERNEL = "CUPTI_ACTIVITY_KIND_KERNEL"


def test_every_kernel_row_twice(tmp_path: Path) -> None:
    export = simple()
    export.rows[KERNEL] += [dict(row) for row in export.rows[KERNEL]]
    found = written(tmp_path, export)
    assert found.check("operations_once")[2] == {"operations": 18, "repeated": 9}
    assert (found.verdict, found.statuses["operations_once"]) == ("incomplete", "fail")


def test_kernels_that_share_all_but_one_fact_are_no_repetition(tmp_path: Path) -> None:
    export, worker = one_layer()
    with worker.step(0), worker.layer(0):
        start = export.now + 5000
        for name in "ab":
            worker.kernel(100, name, start=start)
        worker.kernel(100, "b", start=start)
    worker.counts(0, 0, GOOD)
    assert written(tmp_path, export).check("operations_once")[0] == "pass"


def test_a_gpu_clock_a_year_before_its_launches(tmp_path: Path) -> None:
    export = simple()
    for row in export.rows[KERNEL]:
        for column in ("start", "end"):
            row[column] -= 365 * 86400 * 10**9
    assert written(tmp_path, export).verdict == "incomplete"


def test_a_gpu_clock_a_year_after_its_launches(tmp_path: Path) -> None:
    export = simple()
    for row in export.rows[KERNEL]:
        for column in ("start", "end"):
            row[column] += 365 * 86400 * 10**9
    found = written(tmp_path, export)
    assert found.check("gpu_clock")[0] == "fail"
    assert "begins 31,536,000.000 s after its step" in found.check("gpu_clock")[1]


def test_a_journal_whose_middle_blocks_are_gone(tmp_path: Path) -> None:
    """Its end record says 60 steps, 12 are there."""
    whole = run_of(steps=60)
    path = journal(tmp_path / "s", [*whole[:31], *whole[-30:]], end={**ENDED, "steps": 60})
    found = written(tmp_path, path)
    assert found.check("journals_agree")[:2] == (
        "fail",
        "Steps of journals are missing: rank0-100.journal has 12 steps, its end record 60.",
    )
    assert found.check("steps_consecutive")[2]["missing"] == 48
    assert found.verdict == "incomplete"


def test_one_rank_is_short_of_its_last_block(tmp_path: Path) -> None:
    """An end record stands before that block, as a worker writes it that gets another model."""
    session = tmp_path / "s"
    for rank in range(2):
        journal(session, run_of(rank, steps=6 - 2 * rank, world_size=2, tp_size=2), rank=rank, pid=100 + rank)
    found = written(tmp_path, session)
    assert found.check("journals_agree")[0] == "pass"
    assert found.check("ranks_in_step")[1].startswith("2 steps missing that other ranks have: steps 4 to 5 of rank 1.")
    assert found.verdict == "incomplete"


@pytest.mark.parametrize(
    ("idle", "others", "verdict"), [(3, 8, "complete"), (2, 8, "incomplete"), (3, 9, "incomplete")]
)
def test_idle_batches_of_journals(tmp_path: Path, idle: int, others: int, verdict: str) -> None:
    """Their number is in the end record; data-parallel ranks take as many batches."""
    said: dict[str, Any] = {"world_size": 2, "dp_size": 2, "vllm": "0.26.0"}
    ends = ({**ENDED, "steps": 8, "idle_steps": idle}, {**ENDED, "steps": others, "idle_steps": others - 5})
    for rank, end in enumerate(ends):
        journal(tmp_path / "s", run_of(rank, steps=5, dp_rank=rank, **said), rank=rank, pid=100 + rank, end=end)
    assert written(tmp_path, tmp_path / "s").verdict == verdict


def test_an_old_end_record_of_a_data_parallel_rank(tmp_path: Path) -> None:
    """It does not contain how many batches were idle."""
    meta: dict[str, Any] = {"dp_size": 2, "dp_rank": 0, "vllm": "0.26.0"}
    path = journal(tmp_path / "s", run_of(steps=5, world_size=1, **{**meta, "dp_size": 1}), end={**ENDED, "steps": 9})
    assert written(tmp_path, path).check("journals_agree")[0] == "fail"
    for rank in range(2):
        said: dict[str, Any] = {**meta, "dp_rank": rank, "world_size": 2}
        journal(tmp_path / "t", run_of(rank, steps=5, **said), rank=rank, pid=100 + rank, end={**ENDED, "steps": 9})
    assert written(tmp_path, tmp_path / "t").check("journals_agree")[0] == "pass"


def test_tensor_parallel_ranks_with_tp_size_1(tmp_path: Path) -> None:
    """Each token would count twice."""
    export = ranks(range(10), range(10))
    found = written(tmp_path, export)
    assert found.check("copies_counted_once")[:2] == (
        "fail",
        "All 10 counts of ranks 0 and 1 are equal, but moe.meta has them in different tensor-parallel groups: their "
        "tokens are counted more than once.",
    )
    (tmp_path / "b").mkdir()
    told = written(tmp_path / "b", ranks(range(10), range(10), meta={"tp_rank": 1}))
    assert "rank 0 has tp_rank 1 of tp_size 1" in told.check("ranks_agree")[1]


CONTRADICTIONS: dict[str, tuple[dict[str, Any], str]] = {
    "world": ({"world_size": 1}, "rank 1 of world_size 1"),
    "tp_rank": ({"tp_rank": 1, "tp_size": 2}, "rank 0 has tp_rank 1, not 0 (tp_size 2)"),
    "ep": ({"ep_rank": 2, "ep_size": 2}, "has ep_rank 2 of ep_size 2"),
    "dp": ({"dp_size": 4}, "has tp_size 1 x 4 data-parallel ranks, more than world_size"),
}


@pytest.mark.parametrize(("meta", "said"), CONTRADICTIONS.values(), ids=CONTRADICTIONS)
def test_sizes_that_can_not_be(tmp_path: Path, meta: dict[str, Any], said: str) -> None:
    found = written(tmp_path, ranks(range(3), range(3), meta=meta))
    assert said in found.check("ranks_agree")[1]
    assert found.verdict == "incomplete"


def test_another_rank_in_the_payloads(tmp_path: Path) -> None:
    export = Export()
    worker = Process(export, layers=1)
    worker.send_meta()
    worker.rank = 7
    with worker.step(0), worker.layer(0):
        worker.kernel()
    worker.counts(0, 0, GOOD)
    found = written(tmp_path, export)
    assert "moe.step of rank 7 from the process whose moe.meta has rank 0" in found.check("ranks_agree")[1]
    assert found.verdict == "incomplete"


@pytest.mark.parametrize(("key", "value"), [("num_experts", 8), ("top_k", 3)])
def test_another_shape_than_the_counts(tmp_path: Path, key: str, value: int) -> None:
    export = Export()
    worker = Process(export, layers=1)
    worker.meta["layers"][0][key] = value
    worker.send_meta()
    with worker.step(0), worker.layer(0):
        worker.kernel()
    worker.counts(0, 0, GOOD)
    found = written(tmp_path, export)
    assert (found.check("layer_shapes_agree")[0], found.verdict) == ("fail", "incomplete")


LOCAL: dict[str, tuple[list[list[int]], str]] = {
    "overlap": ([[0, 1], [1, 2, 3]], "expert 1 of layer 0 is on ranks 0 and 1"),
    "beyond": ([[0, 1], [2, 4]], "layer 0 of rank 1 names expert 4 of 4"),
    "negative": ([[0, 1, -1], [2, 3]], "layer 0 of rank 0 names expert -1 of 4"),
    "twice": ([[0, 1], [2, 3, 3]], "layer 0 of rank 1 names expert 3 twice"),
    "nowhere": ([[0, 1], [2]], "1 of 4 experts of layer 0 are on no rank"),
    "fine": ([[0, 2], [1, 3]], ""),
}


@pytest.mark.parametrize(("held", "said"), LOCAL.values(), ids=LOCAL)
def test_local_experts(tmp_path: Path, held: list[list[int]], said: str) -> None:
    export = Export()
    for rank, own in enumerate(held):
        layer = {"layer": 0, "num_experts": 4, "top_k": 2, "local_experts": own}
        meta = {"ep_size": 2, "ep_rank": rank, "layers": [layer]}
        ran(export, range(2), pid=100 + rank, rank=rank, world_size=2, tp_size=2, meta=meta)
    status, message, _ = written(tmp_path, export).check("local_experts_agree")
    assert (status, said in message) == ("fail" if said else "pass", True)


@pytest.mark.parametrize("keep", [0, 2])
def test_samples_are_gone(tmp_path: Path, keep: int) -> None:
    """All of them, or each second one."""
    export = simple()
    text = export.string("moe.topk")
    samples = [row for row in export.rows["NVTX_EVENTS"] if row["textId"] == text]
    gone = [row for at, row in enumerate(samples) if not keep or at % keep]
    export.rows["NVTX_EVENTS"] = [row for row in export.rows["NVTX_EVENTS"] if row not in gone]
    found = written(tmp_path, export)
    assert found.statuses == {"samples_present": "fail"}
    assert found.check("samples_present")[2] == {"cells": 6, "missing": len(gone)}


def test_pairs_that_are_all_zero(tmp_path: Path) -> None:
    """Co-selection is that of the sampled tokens then."""
    tables = []
    for zero in (None, True):
        export = Export()
        worker = simple_run(export, layers=1)
        if zero:
            row = np.array((0, 2, 0, 0, 9, np.zeros(6)), schema.pairs_dtype(4))
            worker.mark("pairs", row)
        folder = tmp_path / str(zero)
        folder.mkdir()
        tables.append(written(folder, export))
    sampled, empty = tables
    assert empty.text("moe_expert_coselection") == sampled.text("moe_expert_coselection")
    assert len(empty.rows("moe_expert_coselection", "tokens")) > 0
    status, message, figures = empty.check("pairs_agree")
    assert (status, figures) == ("fail", {"spans": 1, "wrong": 1, "empty": 1})
    assert message.endswith("Co-selection of their layers is that of the sampled tokens.")


def test_no_step_scheduled_a_token(tmp_path: Path) -> None:
    found = written(tmp_path, _with(lambda export: ran(export, range(3), tokens=0)))
    assert found.check("tokens_agree")[:2] == (
        "fail",
        "3 of 3 counts cover other tokens than their step scheduled, while their step scheduled none: one of the two "
        "numbers is wrong.",
    )


def test_kernel_names_are_missing(tmp_path: Path) -> None:
    export = simple()
    for row in export.rows[KERNEL][:2]:
        row["demangledName"] = 99999
    found = written(tmp_path, export)
    assert found.check("kernels_named")[2] == {"unnamed": 2}
    assert found.statuses == {"kernels_named": "fail"}


def test_steps_as_start_end_ranges(tmp_path: Path) -> None:
    export = simple()
    for row in export.rows["NVTX_EVENTS"]:
        if row["textId"] == export.string("moe.step"):
            row["eventType"] = 60
    message = written(tmp_path, export).check("steps_closed")[1]
    assert message == (
        "No push/pop range moe.step, but 3 start/end ranges of that name (eventType 60), which are on no thread: emit "
        "moe.step with push and pop."
    )


def test_no_cuda_though_it_was_asked_for(tmp_path: Path) -> None:
    export = without(simple(), "KERNEL", "RUNTIME")
    export.add("META_DATA_CAPTURE", name="PROCESS_0:COLLECT_CUDA_TRACE", value="true")
    message = written(tmp_path, export).check("cuda_tracing")[1]
    assert "The capture was asked to trace CUDA" in message
    assert "nsys profile" not in message


def _with(make: Callable[[Export], Any]) -> Export:
    export = Export()
    make(export)
    return export


def longer(export: Export, factor: int, kernels: slice) -> Export:
    """Kernels that last so many times as long, and end later."""
    for row in export.rows[KERNEL][kernels]:
        row["end"] = row["start"] + factor * (row["end"] - row["start"])
    return export


def test_one_kernel_of_an_hour(tmp_path: Path) -> None:
    """It is in no sum, and the capture is not complete."""
    sound = written(tmp_path, simple())
    (tmp_path / "b").mkdir()
    found = written(tmp_path / "b", longer(simple(), 36 * 10**9, slice(1, 2)))
    assert sound.verdict == "complete"
    assert (found.check("operation_times")[0], found.verdict) == ("fail", "incomplete")
    longest = [max(int(ns) for (ns,) in one.rows("moe_layer_timings", "kernel_time_ns")) for one in (found, sound)]
    assert longest[0] == longest[1]


def test_durations_times_1000(tmp_path: Path) -> None:
    """Kernels of one stream run one after the other: these would run at once."""
    found = written(tmp_path, longer(simple(), 1000, slice(None)))
    status, message, figures = found.check("operation_times")
    assert (status, found.verdict) == ("fail", "incomplete")
    assert message.startswith("7 of 9 GPU operations go on while two later ones of their stream have begun")
    assert figures["overlapping"] == 7
