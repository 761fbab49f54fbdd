"""The GPU work of whole steps: by class outside layers, between steps, idle, unplaced; hand-computed."""

from __future__ import annotations

import csv
import io
from pathlib import Path

import pytest

from nvtxmoe_analysis.attribution.step_sums import SLOTS
from nvtxmoe_analysis.facts.selection import Selection
from tests.outputs.test_outputs import send_counts
from tests.support.export_builder import Export, Process
from tests.support.written_results import Written, written

CLASSES = {
    "kernel_unified_attention": ("step_attention", 1),
    "ncclDevKernel_AllGather_RING_LL(T1)": ("step_collective", 2),
    "_topk_topp_kernel": ("step_sampling", 4),
    "nvjet_sm90_tst_64x8": ("step_dense", 8),
    "triton_per_fused_rms_norm_1": ("step_norm", 16),
    "nvtxmoe_count": ("step_recording", 32),
    "triton_poi_fused_3": ("step_other", 64),
}
COLUMNS = tuple(f"{slot}_ns" for slot in SLOTS if slot not in ("idle", "layers"))


def run(worker: Process, step: int, *, factor: int = 1) -> None:
    """A step with one kernel of every class, a copy (128), a memset (256), and a layer of 1,000 + 50 ns."""
    with worker.step(step, tokens=2, prefill=2):
        for name, (_, ns) in CLASSES.items():
            worker.kernel(ns * factor, name)
        worker.memcpy(128 * factor)
        with worker.layer(0), worker.phase("experts", 0):
            worker.kernel(1000 * factor, "nvjet_sm90_tst_64x8")  # in a layer no class counts
            worker.memcpy(50 * factor)
        worker.memset(256 * factor)
    send_counts(worker, step, 0, [1, 1, 0, 2], tokens=2, top_k=2)


def two_steps() -> Export:
    export = Export()
    worker = Process(export, layers=1)
    worker.send_meta()
    worker.kernel(9_999, "warm-up")  # before the first step: in no row
    run(worker, 0)
    worker.kernel(512, "nvjet_sm90_tst_64x8")
    worker.memcpy(1024)
    with worker.range("moe.idle"), worker.layer(0):
        worker.kernel(2048, "dummy")
    run(worker, 1, factor=10)
    worker.kernel(4096, "after")
    return export


def by_phase(found: Written) -> dict[tuple[str, str, str], tuple[int, int]]:
    """(rank, phase, name) -> (count, ns) of work outside layers."""
    rows = csv.DictReader(io.StringIO(found.text("moe_kernel_timings")))
    return {
        (r["rank"], r["phase"], r["kernel_name"]): (int(r["count"]), int(r["total_ns"]))
        for r in rows
        if r["layer_idx"] == ""
    }


def test_a_step_by_class(tmp_path: Path) -> None:
    found = written(tmp_path, two_steps())
    assert found.verdict == "complete"
    wanted = [
        dict.fromkeys(COLUMNS, 0) | {f"{phase}_ns": ns * factor for phase, ns in CLASSES.values()}
        | {"step_memory_ns": (128 + 256) * factor, "between_steps_ns": between}
        for factor, between in ((1, 512 + 1024), (10, 4096))
    ]  # fmt: skip
    assert found.rows("moe_layer_correlation", *COLUMNS) == [tuple(str(row[c]) for c in COLUMNS) for row in wanted]
    total = 127 + 384 + 1050
    share = f"{100 * 1050 / total:.9g}"
    assert found.rows("moe_layer_correlation", "step_gpu_ns", "step_share_pct", "kernel_time_ns") == [
        (str(total), share, "1000"),
        (str(10 * total), share, "10000"),
    ]


def test_by_name(tmp_path: Path) -> None:
    found = written(tmp_path, two_steps())
    assert by_phase(found) == {
        **{("0", phase, name): (2, 11 * ns) for name, (phase, ns) in CLASSES.items()},
        ("0", "step_memory", "[CUDA memcpy kind 1]"): (2, 11 * 128),
        ("0", "step_memory", "[CUDA memset]"): (2, 11 * 256),
        ("0", "between_steps", "nvjet_sm90_tst_64x8"): (1, 512),
        ("0", "between_steps", "[CUDA memcpy kind 1]"): (1, 1024),
        ("0", "between_steps", "after"): (1, 4096),
        ("0", "idle", "dummy"): (1, 2048),
    }
    last = list(csv.DictReader(io.StringIO(found.text("moe_kernel_timings"))))[2]  # after the layer's two rows
    assert (last["phase"], last["mean_ns"], last["min_ns"], last["max_ns"]) == ("between_steps", "4096", "4096", "4096")


@pytest.mark.parametrize(
    ("selection", "phases"),
    [
        (Selection(first_step=1), {"between_steps": 4096}),
        (Selection(last_step=0), {"between_steps": 512 + 1024, "idle": 2048}),
        (Selection(skip_first=1), {"between_steps": 4096}),
        (Selection(ranks=frozenset({0})), {"between_steps": 512 + 1024 + 4096, "idle": 2048}),
    ],
)
def test_filters_of_steps(tmp_path: Path, selection: Selection, phases: dict[str, int]) -> None:
    """What came after a step goes with it."""
    found = by_phase(written(tmp_path, two_steps(), selection=selection))
    sums: dict[str, int] = {}
    for (_, phase, _), (_, ns) in found.items():
        sums[phase] = sums.get(phase, 0) + ns
    factor = 11 if selection.ranks else 10 if selection.last_step is None else 1
    assert sums == {
        **{phase: ns * factor for phase, ns in CLASSES.values()},
        "step_memory": 384 * factor,
        **phases,
    }


def test_filter_of_layers(tmp_path: Path) -> None:
    """The step stays whole, and the rows outside layers are left out."""
    whole = written(tmp_path, two_steps())
    columns = ("step", *COLUMNS, "step_gpu_ns", "step_share_pct")
    before = whole.rows("moe_layer_correlation", *columns)
    found = written(tmp_path, two_steps(), selection=Selection(layers=frozenset({0})))
    assert found.rows("moe_layer_correlation", *columns) == before
    assert by_phase(found) == {}


def test_what_cannot_be_placed(tmp_path: Path) -> None:
    """Its step is known: a node without a creation, a whole graph. A launch where ranges cross has none."""
    export = Export()
    worker = Process(export, layers=1)
    worker.send_meta()
    with worker.step(0, tokens=2):
        launch = worker.call("cudaGraphLaunch_v10000")
        worker.kernel(30, "a", correlation=launch, node=77)
        with worker.layer(0):
            worker.kernel(10, "b")
    with worker.step(1, tokens=2) as step:
        with worker.layer(0) as layer:
            worker.kernel(5, "c")
        worker.kernel(7, "d")
        layer["end"] = None  # still open: crosses the step
        worker.kernel(9, "e")
    assert step["end"] is not None
    found = written(tmp_path, export)
    columns = ("step", "step_unplaced_ns", "step_gpu_ns", "kernel_time_ns", "step_share_pct")
    rows = found.rows("moe_layer_correlation", *columns)
    assert rows[0] == ("0", "30", "40", "10", "25")
    assert rows[1][1:] == ("0", "0", "0", "")
    assert by_phase(found)["0", "step_unplaced", "a"] == (1, 30)


def test_two_processes(tmp_path: Path) -> None:
    """Work between steps goes to the process's own step, whatever the other one does, and to its rank."""
    export = Export()
    workers = [Process(export, pid=100 + r, rank=r, world_size=2, layers=1) for r in range(2)]
    for worker in workers:
        worker.send_meta()
    run(workers[0], 0)
    run(workers[1], 0, factor=2)
    workers[0].kernel(3, "between")
    workers[1].kernel(5, "between")
    workers[1].tid += 7  # a thread without any range
    workers[1].kernel(11, "between")
    found = written(tmp_path, export)
    assert found.rows("moe_layer_correlation", "rank", "between_steps_ns") == [("0", "3"), ("1", "16")]
    names = by_phase(found)
    assert (names["0", "between_steps", "between"], names["1", "between_steps", "between"]) == ((1, 3), (2, 16))


def test_idle_before_the_first_step(tmp_path: Path) -> None:
    """A rank that begins with dummy batches: its own work, though no step had begun; a filter of steps drops it."""
    export = Export()
    worker = Process(export, layers=1)
    worker.send_meta()
    with worker.range("moe.idle"):
        worker.kernel(6, "dummy")
    run(worker, 0)
    assert by_phase(written(tmp_path, export))["0", "idle", "dummy"] == (1, 6)
    assert ("0", "idle", "dummy") not in by_phase(written(tmp_path, export, selection=Selection(first_step=0)))


def test_a_number_that_comes_twice(tmp_path: Path) -> None:
    """Two ranges of one number are one step (a fault that a check names): their work is added."""
    export = Export()
    worker = Process(export, layers=1)
    worker.send_meta()
    for _ in range(2):
        with worker.step(4, tokens=2):
            worker.kernel(30, "k")
            with worker.layer(0):
                worker.kernel(70, "fused")
    found = written(tmp_path, export)
    columns = ("step", "kernel_time_ns", "step_other_ns", "step_gpu_ns", "step_share_pct")
    assert found.rows("moe_layer_correlation", *columns) == [("4", "140", "60", "200", "70")]


def test_steps_without_a_number(tmp_path: Path) -> None:
    """Without payloads each range is a step of its own."""
    export = Export()
    worker = Process(export, layers=1)
    worker.send_meta()
    for ns in (30, 60):
        with worker.step(0, tokens=2) as step:
            worker.kernel(ns, "k")
            with worker.layer(0):
                worker.kernel(70, "fused")
        step["binaryData"] = None
    found = written(tmp_path, export)
    assert found.rows("moe_layer_correlation", "step", "step_kind", "step_other_ns") == [("", "", "30"), ("", "", "60")]
