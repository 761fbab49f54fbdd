"""Collectives and the layer that each is tied to: by its ranges, or by inference, or to none."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import polars as pl

from nvtxmoe_analysis.facts.capture_facts import CaptureFacts, read_capture
from nvtxmoe_analysis.facts.selection import Selection
from nvtxmoe_analysis.readers.open import open_export
from tests.support.export_builder import Export, Process
from tests.support.written_results import written

REDUCE = "ncclDevKernel_AllReduce_Sum_bf16_RING_LL(T1)"
Tied = tuple[int | None, int | None, bool, str | None, bool, int]


def facts(export: Export, folder: Path, selection: Selection | None = None) -> CaptureFacts:
    path = folder / "built.sqlite"
    path.unlink(missing_ok=True)
    return read_capture(open_export(export.save(path)), selection or Selection())


def tied(export: Export, folder: Path) -> list[Tied]:
    """(step, layer, inferred, phase, graph, ns) of each collective, in the order in which they ran."""
    frame = facts(export, folder).collectives.with_columns(ns=pl.col("end") - pl.col("start"))
    return frame.select("step", "layer", "inferred", "phase", "graph", "ns").rows()


def begin() -> tuple[Export, Process]:
    export = Export()
    worker = Process(export, world_size=2, tp_size=2)
    worker.send_meta()
    return export, worker


@contextmanager
def moe(worker: Process, layer: int) -> Iterator[None]:
    """A layer with a kernel in it."""
    with worker.layer(layer):
        worker.kernel(100, "fused")
        yield


def test_the_first_kernel_after_a_layer(tmp_path: Path) -> None:
    """Not the second, nor one behind another kernel; copies may come first."""
    export, worker = begin()
    with worker.step(7):
        worker.kernel(1, REDUCE)  # before any layer
        with moe(worker, 0):
            pass
        worker.memcpy()
        worker.memset()
        worker.kernel(2, REDUCE)
        worker.kernel(3, REDUCE)  # attention's
        with moe(worker, 1):
            pass
        worker.kernel(50, "rms_norm")
        worker.kernel(4, REDUCE)
        with moe(worker, 2):
            worker.kernel(5, REDUCE)
            with worker.phase("combine", 2):
                worker.kernel(6, REDUCE)
    assert tied(export, tmp_path) == [
        (7, None, False, None, False, 1),
        (7, 0, True, None, False, 2),
        (7, None, False, None, False, 3),
        (7, None, False, None, False, 4),
        (7, 2, False, "other", False, 5),
        (7, 2, False, "combine", False, 6),
    ]


def test_another_step_another_thread_another_range(tmp_path: Path) -> None:
    export, worker = begin()
    other = worker.tid + 1
    with worker.step(0), moe(worker, 0):
        pass
    worker.kernel(1, REDUCE)  # between steps
    with worker.step(1):
        worker.kernel(2, REDUCE)  # after the layer of the step before
        with moe(worker, 0):
            pass
        with worker.range("somebody.elses"):
            worker.kernel(3, REDUCE)  # no range of ours
        with moe(worker, 1):
            pass
        with worker.layer(2):
            pass
        worker.kernel(4, REDUCE)  # after a layer without a kernel
        with moe(worker, 3):
            pass
        mine, worker.tid = worker.tid, other
        worker.kernel(5, REDUCE)  # the step's range is not on this thread
        worker.tid = mine
    assert tied(export, tmp_path) == [
        (1, None, False, None, False, 2),
        (1, 0, True, None, False, 3),
        (1, 2, True, None, False, 4),
    ]


def test_a_range_tells_it(tmp_path: Path) -> None:
    """Where moe.collective is put around a layer's reduction, nothing is inferred for that layer, in no step."""
    export, worker = begin()
    for step in range(2):
        with worker.step(step):
            with moe(worker, 0):
                pass
            if step == 0:
                with worker.phase("collective", 0):
                    worker.kernel(1, REDUCE)
                worker.kernel(2, REDUCE)
            else:
                worker.kernel(3, REDUCE)
            with moe(worker, 1):
                pass
            worker.kernel(4, REDUCE)
    assert tied(export, tmp_path) == [
        (0, 0, False, "collective", False, 1),
        (0, None, False, None, False, 2),
        (0, 1, True, None, False, 4),
        (1, None, False, None, False, 3),
        (1, 1, True, None, False, 4),
    ]


def test_ranges_of_one_process_say_nothing_of_another(tmp_path: Path) -> None:
    export, worker = begin()
    other = Process(export, pid=101, rank=1, world_size=2, tp_size=2)
    other.send_meta()
    with worker.step(0), worker.phase("collective", 0):
        worker.kernel(1, REDUCE)
    with other.step(0):
        with moe(other, 0):
            pass
        other.kernel(2, REDUCE)
    assert tied(export, tmp_path) == [(0, 0, False, "collective", False, 1), (0, 0, True, None, False, 2)]


def captured(worker: Process, graph: int, names: dict[int, str]) -> dict[int, str]:
    """A graph of two layers whose originals are numbered in it: 0 before, 1 in, 2 and 3 after layer 0, 4 in layer 1."""
    base = graph << 32
    worker.create_node(base)
    with worker.layer(0):
        worker.create_node(base + 1)
    worker.create_node(base + 2)
    worker.create_node(base + 3)
    with worker.layer(1):
        worker.create_node(base + 4)
    clones = {((graph + 1) << 32) + index: name for index, name in names.items()}
    for clone in clones:
        worker.clone_node(clone, base + (clone & 0xFFFFFFFF))
    return clones


def replay(worker: Process, nodes: dict[int, str], copies: tuple[int, ...] = ()) -> None:
    launch = worker.call("cudaGraphLaunch_v10000")
    for clone, name in nodes.items():
        if clone & 0xFFFFFFFF in copies:
            worker.memcpy(1, correlation=launch, node=clone)
        else:
            worker.kernel(
                10 + (clone & 0xFFFFFFFF), name, correlation=launch, node=clone, start=worker.export.tick(500)
            )


def test_in_a_graph_the_creation_of_nodes_tells(tmp_path: Path) -> None:
    """However the kernels ran: in every replay the node created first after the layer."""
    export, worker = begin()
    nodes = captured(worker, 1, {3: REDUCE, 0: REDUCE, 1: "fused", 2: REDUCE, 4: "fused"})
    for step in range(2):
        with worker.step(step):
            replay(worker, nodes)
    assert tied(export, tmp_path) == [
        row
        for step in range(2)
        for row in [
            (step, None, False, None, True, 13),
            (step, None, False, None, True, 10),
            (step, 0, True, None, True, 12),
        ]
    ]


def test_a_copy_of_a_graph_may_come_first(tmp_path: Path) -> None:
    export, worker = begin()
    nodes = captured(worker, 1, {0: "k", 1: "fused", 2: "", 3: REDUCE})
    with worker.step(0):
        replay(worker, nodes, copies=(2,))
    assert tied(export, tmp_path) == [(0, 0, True, None, True, 13)]


def test_the_next_graph_begins_after_a_layer_of_this_one(tmp_path: Path) -> None:
    """Its first collective stands right after the last layer's range, but in another graph. Nor does a graph that is
    never replayed make it the last layer's."""
    export, worker = begin()
    captured(worker, 1, {0: "k", 1: "fused", 2: "k", 4: "fused"})
    second = captured(worker, 3, {0: REDUCE, 1: "fused", 2: REDUCE, 4: "fused"})
    with worker.step(0):
        replay(worker, second)
    assert tied(export, tmp_path) == [(0, None, False, None, True, 10), (0, 0, True, None, True, 12)]


def test_times_of_the_layer(tmp_path: Path) -> None:
    """Inferred collectives stand beside the kernel time, those inside the layer are in it but not its own: all that
    lies in ``moe.collective`` is one, whatever its name."""
    export, worker = begin()
    with worker.step(0, tokens=3):
        with moe(worker, 0), worker.phase("dispatch", 0):
            worker.kernel(7, REDUCE)
        worker.kernel(20, REDUCE)
        with moe(worker, 1):
            pass
        with worker.phase("collective", 1):
            worker.kernel(30, REDUCE)
            worker.kernel(5, "add")
    for layer in (0, 1):
        worker.counts(0, layer, [2, 2, 1, 1])
    found = written(tmp_path, export)
    columns = (
        "layer_idx",
        "kernel_time_ns",
        "dispatch_ns",
        "collective_ns",
        "other_ns",
        "collective_inferred_ns",
        "own_ns",
    )
    assert found.rows("moe_layer_correlation", *columns) == [
        ("0", "107", "7", "0", "100", "20", "100"),
        ("1", "135", "0", "35", "100", "0", "100"),
    ]
    assert found.rows("moe_layer_correlation", "step_collective_ns", "step_gpu_ns") == [("20", "262")] * 2


def test_what_is_kept(tmp_path: Path) -> None:
    """All are there, for they are compared between ranks; those outside the selection are marked."""
    export, worker = begin()
    for step in range(2):
        with worker.step(step):
            for layer in range(2):
                with moe(worker, layer):
                    pass
                worker.kernel(10 * step + layer, REDUCE)
            worker.kernel(90 + step, REDUCE)

    def kept(selection: Selection) -> list[int]:
        frame = facts(export, tmp_path, selection).collectives
        assert len(frame) == 6
        return frame.filter("kept").select(pl.col("end") - pl.col("start")).to_series().to_list()

    assert kept(Selection()) == [0, 1, 90, 10, 11, 91]
    assert kept(Selection(first_step=1)) == [10, 11, 91]
    assert kept(Selection(layers=frozenset({1}))) == [1, 11]
    assert kept(Selection(ranks=frozenset({5}))) == []


def test_no_collective_at_all(tmp_path: Path) -> None:
    export, worker = begin()
    with worker.step(0), moe(worker, 0):
        pass
    assert facts(export, tmp_path).collectives.is_empty()
