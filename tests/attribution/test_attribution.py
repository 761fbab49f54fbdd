"""Attribution: constructed cases with the whole answer, and random captures against a brute force."""

from __future__ import annotations

from collections import Counter
from contextlib import AbstractContextManager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nvtxmoe_analysis.attribution.attribute import Attribution, attribute
from nvtxmoe_analysis.attribution.gpu_operations import KINDS
from nvtxmoe_analysis.attribution.launches import Launches
from nvtxmoe_analysis.attribution.layer_sums import cell_timings
from nvtxmoe_analysis.attribution.placed import CLASSES, REASONS
from nvtxmoe_analysis.attribution.ranges import PHASE_NAMES, classify, flatten
from nvtxmoe_analysis.events.decode import read_events
from nvtxmoe_analysis.readers.open import open_export
from tests.support import brute_attribution
from tests.support.export_builder import Export, Process


def placed(export: Export, folder: Path) -> tuple[Attribution, Launches, pl.DataFrame]:
    """Attribute a constructed export."""
    path = export.save(folder / "built.sqlite")
    opened = open_export(path)
    events = read_events(opened)
    segments = flatten(classify(events.ranges, events.steps))
    launches = Launches(opened, segments)
    return attribute(opened, segments, launches), launches, events.steps


def coverage(found: Attribution) -> dict[tuple[str, str, str], tuple[int, int]]:
    """(class, reason, kind) -> (operations, ns)."""
    return {
        (CLASSES[c], REASONS[r], KINDS[k]): (n, t)
        for c, r, k, n, t in found.coverage.select("class", "reason", "kind", "operations", "time_ns").rows()
    }


def cells(found: Attribution) -> list[tuple[int, int, str, str, bool]]:
    """(step row, layer, phase, kind, graph) of the operations in layers."""
    frame = found.in_layer.sort("start")
    return [
        (s, n, PHASE_NAMES[p], KINDS[k], g)
        for s, n, p, k, g in frame.select("step_row", "layer", "phase", "kind", "graph").rows()
    ]


def test_eager_launches_belong_where_their_call_starts(tmp_path: Path) -> None:
    export = Export()
    worker = Process(export)
    worker.send_meta()
    worker.kernel(5)  # before any step
    with worker.step(0):
        worker.kernel(7)
        with worker.layer(1):
            worker.kernel(11)
            with worker.phase("experts", 1):
                worker.kernel(13)
                worker.memset(17)
            worker.memcpy(19)
        worker.memcpy(23)
    with worker.range("moe.idle"), worker.layer(0):
        worker.kernel(29)
    found, _, _ = placed(export, tmp_path)
    assert coverage(found) == {
        ("in_layer", "", "kernel"): (2, 24),
        ("in_layer", "", "memcpy"): (1, 19),
        ("in_layer", "", "memset"): (1, 17),
        ("in_step", "", "kernel"): (1, 7),
        ("in_step", "", "memcpy"): (1, 23),
        ("outside_steps", "", "kernel"): (1, 5),
        ("outside_steps", "idle", "kernel"): (1, 29),
    }
    assert cells(found) == [
        (0, 1, "other", "kernel", False),
        (0, 1, "experts", "kernel", False),
        (0, 1, "experts", "memset", False),
        (0, 1, "other", "memcpy", False),
    ]


def test_containment_is_half_open(tmp_path: Path) -> None:
    export = Export()
    worker = Process(export)
    worker.send_meta()
    with worker.step(0) as step, worker.layer(0) as layer:
        call = worker.call()
    start = export.rows["CUPTI_ACTIVITY_KIND_RUNTIME"][0]["start"]
    worker.kernel(correlation=call)
    layer["end"] = start  # the call starts as the layer ends: outside it
    found, _, _ = placed(export, tmp_path)
    assert set(coverage(found)) == {("in_step", "", "kernel")}
    step["end"], layer["start"], layer["end"] = start + 1, start, start + 1  # the last and first nanosecond are inside
    (tmp_path / "built.sqlite").unlink()
    found, _, _ = placed(export, tmp_path)
    assert set(coverage(found)) == {("in_layer", "", "kernel")}


def test_graph_replays_take_the_step_of_the_launch_and_the_layer_of_the_creation(tmp_path: Path) -> None:
    export = Export()
    worker = Process(export)
    worker.send_meta()
    with worker.layer(0), worker.phase("route", 0):
        worker.create_node(1)
    with worker.layer(1):
        worker.create_node(2)
        worker.create_node(3)
    worker.create_node(4)  # between layers: attention
    for clone, original in ((101, 1), (102, 2), (103, 3), (104, 4)):
        worker.clone_node(clone, original)
    for step in range(2):
        with worker.step(step):
            launch = worker.call("cudaGraphLaunch_v10000")
            worker.kernel(10, correlation=launch, node=101)
            worker.memcpy(20, correlation=launch, node=102)
            worker.memset(30, correlation=launch, node=103)
            worker.kernel(40, correlation=launch, node=104)
    warm_up = worker.call("cudaGraphLaunch_v10000")
    worker.kernel(50, correlation=warm_up, node=101)
    found, launches, _ = placed(export, tmp_path)
    assert coverage(found) == {
        ("in_layer", "", "kernel"): (2, 20),
        ("in_layer", "", "memcpy"): (2, 40),
        ("in_layer", "", "memset"): (2, 60),
        ("in_step", "", "kernel"): (2, 80),
        ("outside_steps", "", "kernel"): (1, 50),
    }
    assert cells(found)[:3] == [
        (0, 0, "route", "kernel", True),
        (0, 1, "other", "memcpy", True),
        (0, 1, "other", "memset", True),
    ]
    assert launches.in_steps()["has_work"].to_list() == [True, True]


def test_a_node_launched_without_a_clone_is_its_own_original(tmp_path: Path) -> None:
    export = Export()
    worker = Process(export)
    worker.send_meta()
    with worker.layer(1):
        worker.create_node(5)
    with worker.step(0):
        worker.kernel(correlation=worker.call("cudaGraphLaunch_v10000"), node=5)
    found, _, _ = placed(export, tmp_path)
    assert cells(found) == [(0, 1, "other", "kernel", True)]


def test_mixed_launches_and_union_of_intervals(tmp_path: Path) -> None:
    export = Export()
    worker = Process(export)
    worker.send_meta()
    with worker.layer(0):
        worker.create_node(1)
    worker.clone_node(2, 1)
    with worker.step(0):
        launch = worker.call("cudaGraphLaunch_v10000")
        worker.kernel(100, correlation=launch, node=2, start=10_000)  # 10,000..10,100
        with worker.layer(0):
            worker.kernel(100, start=10_050)  # overlaps: ..10,150
            worker.kernel(10, start=10_060)  # within
            worker.kernel(5, start=10_150)  # touches: ..10,155
            worker.kernel(50, start=20_000)  # apart
    found, _, _ = placed(export, tmp_path)
    row = cell_timings(found.in_layer).row(0, named=True)
    assert row["launched_by"] == "mixed"
    assert (row["kernel_count"], row["kernel_time_ns"], row["busy_ns"]) == (5, 265, 205)
    assert (row["gpu_start_ns"], row["gpu_end_ns"]) == (10_000, 20_050)


def test_ids_that_collide_between_processes(tmp_path: Path) -> None:
    """Every id is the same in both processes; only the pid tells them apart."""
    export = Export()
    workers = [Process(export, pid=pid, rank=r, world_size=2) for r, pid in enumerate((100, 200))]
    for worker in workers:
        worker.send_meta()
        with worker.layer(worker.rank):
            worker.create_node(1)
        worker.clone_node(2, 1)
    for worker in workers:
        with worker.step(7):
            launch = worker.call("cudaGraphLaunch_v10000")
            worker.kernel(100 + worker.rank, correlation=launch, node=2)
    found, _, steps = placed(export, tmp_path)
    ranks = dict(enumerate(steps["rank"].to_list()))
    got = {(ranks[s], n, e - b) for s, n, b, e in found.in_layer.select("step_row", "layer", "start", "end").rows()}
    assert got == {(0, 0, 100), (1, 1, 101)}


def test_unplaced_by_reason(tmp_path: Path) -> None:
    export = Export()
    worker = Process(export)
    worker.send_meta()
    worker.clone_node(2, 1)  # the creation of node 1 was not captured
    with worker.step(0):
        worker.kernel(10, correlation=worker.call("cudaGraphLaunch_v10000"), node=2)
        worker.kernel(20, correlation=worker.call("cudaGraphLaunch_v10000"), node=77)  # nowhere at all
        worker.kernel(30, correlation=9_999)  # its launch call was not captured
        worker.kernel(40, correlation=0)
        launch = worker.call("cudaGraphLaunch_v10000")
        export.add("CUPTI_ACTIVITY_KIND_GRAPH_TRACE", **worker._activity(5000, 50, launch, None))
    with worker.step(1) as step, worker.layer(0) as layer:
        worker.kernel(60)
    layer["end"] = step["end"] + 100  # crosses the step
    worker.kernel(70)  # after both
    found, _, _ = placed(export, tmp_path)
    assert coverage(found) == {
        ("outside_steps", "", "kernel"): (1, 70),
        ("unplaced", "graph_node_unresolved", "kernel"): (2, 30),
        ("unplaced", "launch_call_missing", "kernel"): (1, 30),
        ("unplaced", "no_correlation_id", "kernel"): (1, 40),
        ("unplaced", "graph_level_tracing", "graph"): (1, 50),
        ("unplaced", "crossing_ranges", "kernel"): (1, 60),
    }
    assert found.nodes_unresolved == 2


def test_launches_are_judged_not_completion_times(tmp_path: Path) -> None:
    export = Export()
    worker = Process(export)
    worker.send_meta()
    with worker.step(0):
        worker.kernel(10**9)  # ends long after the step
        worker.call("cudaLaunchKernel_v7000")  # lost
        worker.call("cudaEventRecord_v3020")  # gives no GPU work
        worker.call("cudaLaunchKernel_v7000", returned=1)  # failed
        captured = worker.call("cuLaunchKernelEx")
        node = worker.create_node(1)  # while the call ran: it was recorded into a graph
    node["start"] = node["end"] = export.rows["CUPTI_ACTIVITY_KIND_RUNTIME"][captured - 1]["end"]
    worker.call("cudaLaunchKernel_v7000")  # lost, but in no step
    _, launches, _ = placed(export, tmp_path)
    assert launches.in_steps().select("name", "has_work").rows() == [
        ("cudaLaunchKernel_v7000", True),
        ("cudaLaunchKernel_v7000", False),
    ]


def test_a_graph_launch_that_lost_nodes_is_partial(tmp_path: Path) -> None:
    export = Export()
    worker = Process(export)
    worker.send_meta()
    with worker.layer(0):
        for node in (1, 2, 3):
            worker.create_node(node)
            worker.clone_node(10 + node, node)
    launches = []
    for step, nodes in enumerate(((11, 12, 13), (11, 12), (11, 12, 13))):
        with worker.step(step):
            launches.append(worker.call("cudaGraphLaunch_v10000"))
            for node in nodes:
                worker.kernel(correlation=launches[-1], node=node)
    found, _, _ = placed(export, tmp_path)
    assert found.partial_graphs.tolist() == [1]


def test_a_phase_names_its_layer_where_no_layer_range_stands(tmp_path: Path) -> None:
    export = Export()
    worker = Process(export)
    worker.send_meta()
    with worker.step(0):
        with worker.layer(0):
            worker.kernel(1)
        with worker.phase("collective", 0):
            worker.kernel(2)
    found, _, _ = placed(export, tmp_path)
    assert cells(found) == [(0, 0, "other", "kernel", False), (0, 0, "collective", "kernel", False)]


RANGES = ["step", "layer0", "layer1", "experts", "route", "collective", "idle"]
ACTIONS = [*RANGES, "pop", "kernel", "copy", "set", "node", "clone", "replay", "lost", "orphan", "failed"]


@pytest.mark.slow
@settings(max_examples=60)
@given(
    st.lists(st.tuples(st.integers(0, 1), st.sampled_from(ACTIONS)), max_size=60),
    st.lists(st.tuples(st.integers(0, 40), st.integers(-30, 30)), max_size=2),
)
def test_random_captures_against_the_brute_force(actions: list[tuple[int, str]], shifts: list[tuple[int, int]]) -> None:
    """Two processes with colliding ids do anything; then some range ends are moved so that ranges may cross."""
    export = Export()
    workers = [Process(export, pid=100 + r, rank=r, world_size=2) for r in range(2)]
    stacks: list[list[object]] = [[], []]
    nodes: list[list[int]] = [[], []]
    clones: list[list[int]] = [[], []]
    for worker in workers:
        worker.send_meta()
    for number, (which, action) in enumerate(actions):
        act(workers[which], action, number, stacks[which], nodes[which], clones[which])
    for stack in stacks:
        while stack:
            stack.pop().__exit__(None, None, None)  # type: ignore[attr-defined]
    ranges = [row for row in export.rows["NVTX_EVENTS"] if row["eventType"] == 59]
    for index, shift in shifts:
        if ranges:
            row = ranges[index % len(ranges)]
            row["end"] = max(row["start"], row["end"] + shift)
    with TemporaryDirectory() as folder:
        found, _, steps = placed(export, Path(folder))
        want = brute_attribution.totals(Path(folder) / "built.sqlite")
    got: Counter[brute_attribution.Place] = Counter()
    for (kind, reason, _), (operations, _) in coverage(found).items():
        if kind != "in_layer":
            got[brute_attribution.Place(kind, reason, None, None, None)] += operations
    for step_row, layer, phase in found.in_layer.select("step_row", "layer", "phase").rows():
        got[brute_attribution.Place("in_layer", "", steps["row"][step_row], layer, PHASE_NAMES[phase])] += 1
    merged: Counter[brute_attribution.Place] = Counter()
    for key, count in want.items():
        merged[key if key.kind == "in_layer" else key._replace(step=None)] += count
    assert got == merged


def act(worker: Process, action: str, number: int, stack: list[object], nodes: list[int], clones: list[int]) -> None:  # noqa: PLR0912  a list of actions
    """One step of a random program."""
    if action in RANGES:
        opened: AbstractContextManager[dict[str, Any]]
        if action == "step":
            opened = worker.step(number)
        elif action.startswith("layer"):
            opened = worker.layer(int(action[-1]))
        elif action == "idle":
            opened = worker.range("moe.idle")
        else:
            opened = worker.phase(action, number % 2)
        opened.__enter__()
        stack.append(opened)
    elif action == "pop" and stack:
        stack.pop().__exit__(None, None, None)  # type: ignore[attr-defined]
    elif action == "kernel":
        worker.kernel(number + 1)
    elif action == "copy":
        worker.memcpy(number + 1)
    elif action == "set":
        worker.memset(number + 1)
    elif action == "node":
        nodes.append(len(nodes) + 1)
        worker.create_node(nodes[-1])
    elif action == "clone" and nodes:
        clones.append(1000 + len(clones))
        worker.clone_node(clones[-1], nodes[number % len(nodes)])
    elif action == "replay":
        launch = worker.call("cudaGraphLaunch_v10000")
        for node in clones[-3:]:
            worker.kernel(number + 1, correlation=launch, node=node)
    elif action == "lost":
        worker.call()
    elif action == "orphan":
        worker.kernel(correlation=100_000 + number)
    elif action == "failed":
        worker.call(returned=2)
