"""Ids that repeat: of processes, of calls within a process, of graph nodes; and clones of clones."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.attribution.test_attribution import cells, coverage, placed
from tests.attribution.test_impossible_times import check_of
from tests.support import brute_attribution
from tests.support.export_builder import Export, Process
from tests.support.written_results import written


def work(worker: Process, ns: int, steps: int = 2) -> None:
    """Steps with a kernel of so many ns in each of two layers."""
    worker.send_meta()
    for number in range(steps):
        with worker.step(number):
            for layer in range(2):
                with worker.layer(layer):
                    worker.kernel(ns)
        for layer in range(2):
            worker.counts(number, layer, [3, 3, 0, 0])
            worker.topk(number, layer, [(0, 1)] * 3)


@pytest.mark.parametrize("machines", [(1, 2), (1, 1)])
def test_two_ranks_with_one_pid(tmp_path: Path, machines: tuple[int, int]) -> None:
    """On two machines, or one after the other on one: each has its own 100 and 200 ns, and nothing else is wrong."""
    export = Export()
    for rank, machine in enumerate(machines):
        work(Process(export, rank=rank, world_size=2, machine=machine), 100 * (rank + 1))
        export.now += 10**6  # the first one's last kernel starts before another process begins
    found = written(tmp_path, export)
    times = found.rows("moe_layer_timings", "rank", "kernel_count", "kernel_time_ns")
    assert set(times) == {("0", "1", "100"), ("1", "1", "200")}
    assert found.validation["verdict"] == "complete", found.validation["reasons"]
    assert [one["pid"] for one in found.validation["inputs"][0]["processes"]] == [100, 100]
    told = check_of(found, "process_ids")
    same = machines[0] == machines[1]
    assert (told["status"], told["figures"]["repeated_correlation_ids"]) == (("warn", 4) if same else ("pass", 0))
    assert len(told["figures"]["used_again"]) == same


def chain(worker: Process) -> None:
    """Nodes of layers 0 and 1, cloned, and the clones cloned again: 21 and 22."""
    for layer in range(2):
        with worker.layer(layer):
            worker.create_node(1 + layer)
    for first, second in ((11, 1), (12, 2), (21, 11), (22, 12)):
        worker.clone_node(first, second)


def test_a_clone_of_a_clone_reaches_the_layer_of_the_original(tmp_path: Path) -> None:
    export = Export()
    worker = Process(export)
    worker.send_meta()
    chain(worker)
    for number in range(2):
        with worker.step(number):
            launch = worker.call("cudaGraphLaunch_v10000")
            worker.kernel(100, correlation=launch, node=21)
            worker.kernel(200, correlation=launch, node=22)
    found, _, _ = placed(export, tmp_path)
    lasted = sorted((s, n, e - b) for s, n, b, e in found.in_layer.select("step_row", "layer", "start", "end").rows())
    assert lasted == [(0, 0, 100), (0, 1, 200), (1, 0, 100), (1, 1, 200)]


def broken(worker: Process) -> None:
    worker.clone_node(11, 1)  # the creation of node 1 is not there
    worker.clone_node(21, 11)


def circle(worker: Process) -> None:
    for clone, original in ((11, 12), (12, 11), (21, 11)):
        worker.create_node(clone)["originalGraphNodeId"] = original
    # Created once more, so that each can name the other's earlier creation; then the first ones go.
    worker.export.rows["CUDA_GRAPH_NODE_EVENTS"][0]["start"] = worker.export.rows["CUDA_GRAPH_NODE_EVENTS"][1]["start"]


@pytest.mark.parametrize("make", [broken, circle])
def test_a_chain_that_leads_nowhere_is_unresolved(tmp_path: Path, make: Any) -> None:
    export = Export()
    worker = Process(export)
    worker.send_meta()
    make(worker)
    with worker.step(0):
        worker.kernel(100, correlation=worker.call("cudaGraphLaunch_v10000"), node=21)
    found = written(tmp_path, export)
    assert found.validation["coverage"]["classes"]["unplaced"]["reasons"] == {
        "graph_node_unresolved": {"operations": 1, "time_ns": 100}
    }
    assert check_of(found, "graph_nodes")["status"] == "fail"


def test_a_node_created_twice_counts_where_it_was_last_created(tmp_path: Path) -> None:
    export = Export()
    worker = Process(export)
    worker.send_meta()
    for layer in range(2):  # the graph of the first round is destroyed, its ids are used again
        with worker.layer(layer):
            worker.create_node(1)
        worker.clone_node(11, 1)
        with worker.step(layer):
            worker.kernel(100, correlation=worker.call("cudaGraphLaunch_v10000"), node=11)
    found, _, _ = placed(export, tmp_path)
    assert cells(found) == [(0, 0, "other", "kernel", True), (1, 1, "other", "kernel", True)]


def test_a_node_created_only_after_its_replay_is_unresolved(tmp_path: Path) -> None:
    export = Export()
    worker = Process(export)
    worker.send_meta()
    with worker.step(0):
        worker.kernel(100, correlation=worker.call("cudaGraphLaunch_v10000"), node=11)
    with worker.layer(0):
        worker.create_node(1)
    worker.clone_node(11, 1)
    found, _, _ = placed(export, tmp_path)
    assert coverage(found) == {("unplaced", "graph_node_unresolved", "kernel"): (1, 100)}


ACTIONS = ["step", "layer", "pop", "kernel", "node", "clone", "replay", "again"]
TIMES = st.sampled_from([0, -500, 10**9, 2 * 10**9, 5 * 10**9, 3600 * 10**9, 1 << 60])


@pytest.mark.slow
@settings(max_examples=50, deadline=None)
@given(
    st.lists(st.tuples(st.integers(0, 2), st.sampled_from(ACTIONS)), max_size=50),
    st.lists(st.tuples(st.integers(0, 30), st.sampled_from(["start", "end"]), TIMES), max_size=3),
)
def test_random_captures_against_the_brute_force(  # noqa: PLR0912  a list of actions
    actions: list[tuple[int, str]], spoiled: list[tuple[int, str, int]]
) -> None:
    """Processes with one pid, ids used again, clones of clones, impossible times."""
    export = Export()
    export.now = 10**10
    workers = [Process(export, rank=r, world_size=3, machine=1 + r // 2) for r in range(3)]  # two are one id
    for worker in workers:
        worker.send_meta()
    stacks: list[list[Any]] = [[], [], []]
    for number, (which, action) in enumerate(actions):
        worker, stack = workers[which], stacks[which]
        if action in {"step", "layer"}:
            opened = worker.step(number) if action == "step" else worker.layer(number % 2)
            opened.__enter__()
            stack.append(opened)
        elif action == "pop" and stack:
            stack.pop().__exit__(None, None, None)
        elif action == "kernel":
            worker.kernel(number + 1)
        elif action == "node":
            worker.create_node(1 + number % 4)
        elif action == "clone":
            worker.clone_node(1 + number % 5, 1 + number % 3)
        elif action == "replay":
            launch = worker.call("cudaGraphLaunch_v10000")
            for node in (1, 2, 5):
                worker.kernel(number + 1, correlation=launch, node=node)
        elif action == "again":
            worker.correlation = 0
    for stack in stacks:
        while stack:
            stack.pop().__exit__(None, None, None)
    rows = export.rows["CUPTI_ACTIVITY_KIND_KERNEL"] + [r for r in export.rows["NVTX_EVENTS"] if r["eventType"] == 59]
    for index, column, by in spoiled:
        if rows:
            row = rows[index % len(rows)]
            row[column] = by if by <= 0 else row[column] + by
    with TemporaryDirectory() as folder:
        found, _, _ = placed(export, Path(folder))
        want = brute_attribution.totals(Path(folder) / "built.sqlite")
    got: Counter[tuple[str, str]] = Counter()
    for (place, reason, _), (number, _) in coverage(found).items():
        got[place, reason] += number
    told: Counter[tuple[str, str]] = Counter()
    layers: Counter[int | None] = Counter()
    for key, count in want.items():
        told[key.kind, key.reason] += count
        if key.kind == "in_layer":
            layers[key.layer] += count
    assert got == told
    assert Counter(found.in_layer["layer"].to_list()) == layers
