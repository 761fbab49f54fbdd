"""Completeness against what must be there: steps of ranks, counts of steps."""

from __future__ import annotations

import shutil
import sqlite3
from collections.abc import Iterable
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from nvtxmoe.errors import NvtxmoeError
from nvtxmoe_analysis.events.decode import read_events
from nvtxmoe_analysis.facts.selection import Selection
from nvtxmoe_analysis.readers.open import open_export
from tests.support.constructed_runs import GOOD
from tests.support.export_builder import Export, Process
from tests.support.written_results import Written, written


def without_steps(path: Path, rank: int, steps: Iterable[int], folder: Path) -> Path:
    """A copy of an export without all NVTX rows of some steps of a rank: ranges, counts, samples."""
    events = read_events(open_export(path))
    (pid,) = [pid for pid, meta in events.metas.items() if meta.rank == rank]
    copy = folder / "cut.sqlite"
    shutil.copy(path, copy)
    gone = set(steps)
    mine = events.steps.filter(pid=pid)
    spans = [(row["start"], row["end"]) for row in mine.iter_rows(named=True) if row["step"] in gone]
    thread = mine["globalTid"][0]
    cells = events.counts.cells.filter(pid=pid)
    marks = [start for step, start in cells.select("step", "start").iter_rows() if step in gone]
    with closing(sqlite3.connect(copy)) as connection:
        connection.executemany(
            "DELETE FROM NVTX_EVENTS WHERE globalTid = ? AND start = ? AND eventType = 34",
            [(thread, start) for start in marks],
        )
        connection.executemany(
            "DELETE FROM NVTX_EVENTS WHERE globalTid = ? AND start >= ? AND start < ? AND eventType = 59",
            [(thread, *span) for span in spans],
        )
        connection.commit()
    return copy


def ran(export: Export, steps: Iterable[int], tokens: int = 3, **process: Any) -> Process:
    """A process with one layer that ran these steps."""
    worker = Process(export, layers=1, **process)
    worker.send_meta()
    for step in steps:
        with worker.step(step, tokens=tokens), worker.layer(0):
            worker.kernel()
        worker.counts(step, 0, GOOD)
    return worker


def ranks(*steps: Iterable[int], **process: Any) -> Export:
    """A rank per list of steps, in one export."""
    export = Export()
    for rank, own in enumerate(steps):
        ran(export, own, pid=100 + rank, rank=rank, world_size=len(steps), **process)
    return export


@pytest.mark.parametrize(
    ("gone", "fails", "said"),
    [
        (range(20), "ranks_in_step", "20 steps missing that other ranks have: steps 0 to 19 of rank 1. Steps 20 to 45"),
        (range(20, 30), "steps_consecutive", "10 steps missing between captured steps: steps 20 to 29 of rank 1."),
    ],
)
def test_a_tensor_parallel_rank_lacks_steps(
    golden_vllm_ranks: dict[str, Path], tmp_path: Path, gone: range, fails: str, said: str
) -> None:
    found = written(tmp_path, without_steps(golden_vllm_ranks["tp2"], 1, gone, tmp_path))
    status, message, figures = found.check(fails)
    assert (found.verdict, status, figures["missing"]) == ("incomplete", "fail", len(gone))
    assert message.startswith(said)
    # The lost steps are in the denominators: 2 ranks x 46 steps x 4 layers.
    counted = found.check("steps_have_counts")[2]
    assert (counted["cells"], counted["missing"], counted["of_lost_steps"]) == (368, 4 * len(gone), 4 * len(gone))
    assert found.validation["selection"]["steps_lost"] == len(gone)


PARALLEL: dict[str, dict[str, Any]] = {
    "tensor": {"tp_size": 2},
    "pipeline": {},
    "data": {"meta": {"dp_size": 2}},
}


@pytest.mark.parametrize("process", PARALLEL.values(), ids=PARALLEL)
def test_a_rank_has_3_of_30_steps(tmp_path: Path, process: dict[str, Any]) -> None:
    found = written(tmp_path, ranks(range(30), range(3), **process))
    assert found.verdict == "incomplete"
    assert found.check("ranks_in_step")[1].startswith("27 steps missing that other ranks have: steps 3 to 29 of rank 1")
    assert found.check("steps_have_counts")[2]["missing"] == 27


@pytest.mark.parametrize("process", PARALLEL.values(), ids=PARALLEL)
def test_a_rank_has_no_step(tmp_path: Path, process: dict[str, Any]) -> None:
    found = written(tmp_path, ranks(range(5), (), **process))
    assert found.check("ranks_in_step")[2]["missing"] == 5
    assert found.verdict == "incomplete"


def test_idle_batches_explain_the_steps_of_data_parallel_ranks(tmp_path: Path) -> None:
    export = Export()
    meta = {"dp_size": 2}
    ran(export, range(10), rank=0, world_size=2, meta=meta)
    other = ran(export, range(3), pid=101, rank=1, world_size=2, meta=meta)
    for _ in range(7):
        with other.range("moe.idle"):
            pass
    found = written(tmp_path, export)
    assert found.check("ranks_in_step")[:2] == ("pass", "2 ranks have the same first and last step.")
    assert found.verdict == "complete"
    export.rows["NVTX_EVENTS"].pop()
    lost = written(tmp_path, export)
    assert lost.check("ranks_in_step")[1].startswith("1 step missing that other ranks have: step 9 of rank 1.")


def test_a_hole_on_the_only_rank(tmp_path: Path) -> None:
    found = written(tmp_path, ranks([*range(10), *range(20, 30)]))
    assert found.check("steps_consecutive") == (
        "fail",
        "10 steps missing between captured steps: steps 10 to 19 of rank 0.",
        {"missing": 10, "gaps": 1, "begins_at": None, "not_judged": [], "examples": [[0, 10, 19]]},
    )
    counted = found.check("steps_have_counts")
    assert counted[1] == "10 of 30 (rank, step, layer) without counts, the first in steps 10 to 19 of rank 0."
    assert found.verdict == "incomplete"


def test_a_step_number_beyond_any_run(tmp_path: Path) -> None:
    """The gap is counted, not enumerated."""
    found = written(tmp_path, ranks([0, 1, (1 << 62)]))
    assert found.check("steps_consecutive")[2]["missing"] == (1 << 62) - 2


def test_a_window_that_all_ranks_share(tmp_path: Path) -> None:
    """Cut on purpose, so nothing is lost; the note tells where the capture begins."""
    found = written(tmp_path, ranks(range(20, 30), range(20, 30), tp_size=2))
    assert (found.verdict, found.validation["selection"]["steps_lost"]) == ("complete", 0)
    assert found.check("steps_consecutive")[:2] == (
        "warn",
        "The capture begins with step 20 on all ranks: steps before it are outside the capture window, or lost.",
    )


def windows(*bounds: list[int | None]) -> dict[str, Any]:
    """A process that recorded in windows."""
    return {"tp_size": 2, "meta": {"windows": list(bounds)}}


def test_steps_outside_of_windows_are_cut_on_purpose(tmp_path: Path) -> None:
    """A rank may have begun a step earlier or ended a step later than the window, which is what all ranks have."""
    steps = [*range(19, 30), *range(40, 46)], [*range(20, 31), *range(40, 45)]
    found = written(tmp_path, ranks(*steps, **windows([20, 29], [40, 44])))
    assert (found.verdict, found.validation["selection"]["steps_lost"]) == ("complete", 0)
    status, message, figures = found.check("steps_consecutive")
    assert (status, figures["windows"]) == ("pass", [[20, 29], [40, 44]])
    assert message == "No step number is missing inside of 2 windows."


@pytest.mark.parametrize(
    ("other", "fails", "said"),
    [
        ([*range(20, 24), *range(26, 30)], "steps_consecutive", "2 steps missing between captured steps: steps 24 to"),
        (range(22, 30), "ranks_in_step", "2 steps missing that other ranks have: steps 20 to 21 of rank 1."),
        (range(20, 28), "ranks_in_step", "2 steps missing that other ranks have: steps 28 to 29 of rank 1."),
    ],
)  # fmt: skip
def test_a_step_that_is_lost_in_a_window_is_lost(other: Iterable[int], fails: str, said: str, tmp_path: Path) -> None:
    found = written(tmp_path, ranks(range(20, 30), other, **windows([20, 29])))
    assert (found.verdict, found.validation["selection"]["steps_lost"]) == ("incomplete", 2)
    assert found.check(fails)[1].startswith(said)


def test_a_window_that_was_open_at_the_end(tmp_path: Path) -> None:
    found = written(tmp_path, ranks(range(20, 30), range(20, 30), **windows([20, None])))
    assert found.verdict == "complete"
    lost = written(tmp_path, ranks(range(20, 30), range(20, 27), **windows([20, None])))
    assert lost.check("ranks_in_step")[1].startswith("3 steps missing that other ranks have: steps 27 to 29 of rank 1.")


def test_a_capture_of_nsys_that_begins_inside_of_a_window(tmp_path: Path) -> None:
    """nsys was started later: where the window began is not in the report."""
    found = written(tmp_path, ranks(range(25, 30), range(25, 30), **windows([20, 29])))
    assert found.check("steps_consecutive")[0] == "warn"


@pytest.mark.parametrize("value", [7, [3], [[1]], [[1, 2, 3]], [["a", 2]], [[-1, 2]], [[1, "b"]], {"first": 1}])
def test_windows_that_are_none_are_damage(value: Any, tmp_path: Path) -> None:
    with pytest.raises(NvtxmoeError, match=r"windows is .*, not pairs of a first and a last step"):
        written(tmp_path, ranks(range(3), meta={"windows": value}))


def test_filters_are_no_loss(tmp_path: Path) -> None:
    found = written(tmp_path, ranks(range(30)), selection=Selection(first_step=10, last_step=12))
    assert (found.verdict, found.validation["selection"]["steps_lost"]) == ("complete", 0)


def swapped(tmp_path: Path, steps: list[int]) -> Written:
    return written(tmp_path, ranks(steps))


def test_two_numbers_swapped(tmp_path: Path) -> None:
    found = swapped(tmp_path, [0, 1, 3, 2, 4])
    assert found.check("steps_in_order") == (
        "fail",
        "Step numbers fall 1 time, first step 2 of rank 0 after step 3.",
        {"steps": 5, "falling": 1},
    )
    assert found.statuses == {"steps_in_order": "fail"}


def test_counts_without_their_step(tmp_path: Path) -> None:
    """18 assignments are those of captured steps, not 36."""
    export = Export()
    worker = ran(export, range(3))
    for step in range(3, 6):
        worker.counts(step, 0, GOOD)
    found = written(tmp_path, export)
    assert sum(int(count) for (count,) in found.rows("moe_expert_activations", "activation_count")) == 18
    assert found.check("counts_have_steps") == (
        "fail",
        "3 of 6 counts belong to no captured step, the first rank 0 step 3 layer 0: 18 assignments left out of the "
        "tables.",
        {"counts": 6, "without_step": 3, "before_window": 0, "assignments_left_out": 18},
    )
    assert found.statuses == {"counts_have_steps": "fail"}


def test_a_step_with_a_lost_number_is_not_judged(tmp_path: Path) -> None:
    """Its counts may be those of any number."""
    export = ranks(range(3))
    row = [row for row in export.rows["NVTX_EVENTS"] if row["textId"] == export.string("moe.step")][1]
    row["binaryData"] = None
    found = written(tmp_path, export)
    assert found.statuses == {"blobs_present": "fail"}
    assert sum(int(count) for (count,) in found.rows("moe_expert_activations", "activation_count")) == 18
